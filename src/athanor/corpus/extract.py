"""Web pages to text: the article without its menus, adverts and footers, and what the page says of itself."""

import logging
import re
from contextlib import suppress
from typing import Any, Literal, get_args

from athanor.corpus.article import Page, tree
from athanor.corpus.documents import Document
from athanor.corpus.metadata import metadata
from athanor.corpus.steps import Step
from athanor.errors import UserError

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


Method = Literal["density", "trafilatura", "trafilatura fast", "resiliparse", "all text"]


class ExtractHtml(Step):
    """Markup to text, for the documents whose format is "html"; others pass.

    Args:
        method: how the article is found. benchmarks/corpus.py measures them all: "density" (article.py) is the fastest
            of those that find it well; "all text" is the baseline that takes menus and adverts too.
        fallback: take all text where no article is found; otherwise the page is dropped.
        tables: keep the text of tables ("density" and "trafilatura").
        comments: keep readers' comments ("trafilatura").
        metadata: note title, date, page_language and url in meta, where the page says them and meta does not.
    """

    name = "extract html"

    def __init__(
        self,
        method: Method = "density",
        fallback: bool = True,
        tables: bool = True,
        comments: bool = False,
        metadata: bool = True,
        only: list[str] | None = None,
    ):
        super().__init__(only)
        if method not in get_args(Method):
            raise UserError(f"ExtractHtml: method {method!r} must be one of {', '.join(get_args(Method))}.")
        if comments and not method.startswith("trafilatura"):
            raise UserError(f"ExtractHtml: {method} knows no comments; leave them out, or set method: trafilatura.")
        self.method: Method = method
        self.fallback = fallback
        self.tables = tables
        self.comments = comments
        self.metadata = metadata

    def apply(self, document: Document) -> Document | str:
        if document.meta.get("format") != "html":
            return document
        meta = {key: value for key, value in document.meta.items() if key != "format"}
        root = tree(document.text) if self.metadata or self.method == "density" else None
        if root is None and not document.text.strip():
            return "no text in the page"
        if root is not None and self.metadata:
            meta = metadata(root, str(meta.get("url") or "")) | meta
        text = self.article(document.text, root)
        way = "article"
        if not text and self.fallback:
            text = all_text(document.text)
            way = "fallback to all text"
        if not text or text.isspace():
            return "no text in the page"
        self.counts[way] += 1
        return document._replace(text=text, meta=meta)

    def article(self, markup: str, root: Any) -> str | None:
        if self.method == "density":
            try:
                return Page(root, self.tables).article() if root is not None else ""
            except RecursionError:  # a page nested hundreds deep
                return ""
        if self.method == "resiliparse":
            return all_text(markup, main_content=True)
        if self.method == "all text":
            return all_text(markup)
        import trafilatura  # a third of a second, paid by those who want it

        logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
        fast = self.method == "trafilatura fast"
        return trafilatura.extract(markup, include_tables=self.tables, include_comments=self.comments, fast=fast)


def all_text(markup: str, main_content: bool = False) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    return extract_plain_text(
        markup, main_content=main_content, alt_texts=False, links=False, form_fields=False
    ).strip()
