"""The article in a web page, without its menus, adverts and footers, by trafilatura (Barbaresi 2021, acl-demo.15).

On 181 pages with human truth its 4-gram F1 is 0.96, against 0.67 for stripping tags.
"""

import logging
import re
from typing import Any

from athanor.corpus.documents import Document
from athanor.corpus.steps import Step

META_CHARSET = re.compile(
    rb"""<(?:meta|\?xml)[^>]{0,200}?(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE
)
# What browsers read these names as (WHATWG Encoding Standard).
BROWSER_CHARSETS = {
    **dict.fromkeys(("gb2312", "gbk", "gb_2312-80", "x-gbk", "chinese"), "gb18030"),
    **dict.fromkeys(("ascii", "us-ascii", "latin1", "iso-8859-1", "iso8859-1"), "windows-1252"),
    "big5": "big5hkscs",
}


def decode_html(data: bytes, declared: str | None = None) -> tuple[str, str]:
    """(text, charset). The byte order mark decides, then the HTTP header, then the page's own word, then validity.

    A page that keeps to none of the charsets named is UTF-8 with stray bytes if nearly all of it is, GB 18030 if all of
    it is, and else windows-1252, as in browsers.
    """
    if data.startswith(b"\xef\xbb\xbf"):
        return data[3:].decode("utf-8", "replace"), "utf-8"
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace"), "utf-16"
    found = META_CHARSET.search(data[:4096])
    named = [name for name in (declared, found and found[1].decode("ascii", "replace")) if name]
    for name in (*named, "utf-8"):
        charset = BROWSER_CHARSETS.get(name.lower(), name.lower())
        try:
            return data.decode(charset), charset
        except (UnicodeDecodeError, LookupError):
            continue
    text = data.decode("utf-8", "replace")
    if text.count("\ufffd") <= 0.05 * sum(character > "\x7f" for character in text):
        return text, "utf-8"
    try:
        return data.decode("gb18030"), "gb18030"
    except UnicodeDecodeError:
        return data.decode("windows-1252", "replace"), "windows-1252"


class ExtractHtml(Step):
    """Markup to text, for the documents whose format is "html"; others pass.

    Args:
        fallback: take all text where no article is found; otherwise the page is dropped.
        tables: keep the text of tables.
        comments: keep readers' comments.
        fast: leave out trafilatura's second opinions (readability, jusText): three times faster, a little worse.
    """

    name = "extract html"

    def __init__(
        self,
        fallback: bool = True,
        tables: bool = True,
        comments: bool = False,
        fast: bool = False,
        only: list[str] | None = None,
    ):
        super().__init__(only)
        self.fallback = fallback
        self.options: dict[str, Any] = {"include_tables": tables, "include_comments": comments, "fast": fast}

    def apply(self, document: Document) -> Document | str:
        if document.meta.get("format") != "html":
            return document
        import trafilatura  # a third of a second, paid by those who have pages

        logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
        text = trafilatura.extract(document.text, **self.options)
        way = "article"
        if not text and self.fallback:
            text = trafilatura.html2txt(document.text)
            way = "fallback to all text"
        if not text or text.isspace():
            return "no text in the page"
        self.counts[way] += 1
        meta = {key: value for key, value in document.meta.items() if key != "format"}
        return document._replace(text=text, meta=meta)
