"""The article in a web page, without its menus, adverts and footers, by trafilatura (Barbaresi 2021, acl-demo.15).

On 181 pages with human truth its 4-gram F1 is 0.96, against 0.67 for stripping tags.
"""

import logging
import re
from contextlib import suppress
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
# Of the most frequent Chinese characters, in either script; the bytes of one charset rarely spell them in the other.
COMMON = "的一是不在人有我他这這中大来來上国國个個到说說们們为為子和你地出也时時年得就那要下以会會自之学學对對后後多"


def decode_html(data: bytes, declared: str | None = None) -> tuple[str, str]:
    """(text, charset). The byte order mark decides, then the HTTP header, then the page's own word, then validity.

    A page that keeps to none of the charsets named is UTF-8 with stray bytes if nearly all of it is; GB 18030 or Big5
    if all of it is, whichever makes more common characters of it; and else windows-1252, as in browsers.
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
    possible = []
    for charset in ("gb18030", "big5hkscs"):
        with suppress(UnicodeDecodeError):
            possible.append((data.decode(charset), charset))
    if possible:
        return max(possible, key=lambda pair: sum(map(pair[0].count, COMMON)))
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
