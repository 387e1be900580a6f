"""One spelling for one text: Unicode NFC, plain newlines and spaces, nothing invisible."""

import re
import unicodedata

from athanor.corpus.documents import Document
from athanor.corpus.steps import Step

NEWLINES = re.compile("\r\n?|[\v\f\x1c\x1d\x1e\x85\u2028\u2029]")
# Spaces that only typesetting tells from U+0020. The ideographic space U+3000 carries indentation in Chinese and stays.
SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f]")
# Controls, zero-width characters, soft hyphens, direction marks, byte order marks, surrogates, non-characters. The
# joiners U+200C and U+200D stay: they carry meaning in Persian, in Indian scripts and in emoji.
INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff"
    "\ud800-\udfff\ufdd0-\ufdef\ufff0-\ufffb\ufffe\uffff]"
)
TRAILING = re.compile("[ \t\u3000]+(?=\n|$)")
BLANKS = re.compile("\n{3,}")
INNER_RUNS = re.compile(r"(?<=\S)[ \t]{2,}(?=\S)")


def normalize(text: str) -> str:
    """Idempotent. Indentation, tabs and single blank lines stay, so that code and verse keep their shape."""
    text = NEWLINES.sub("\n", text)
    text = SPACES.sub(" ", text)
    text = INVISIBLE.sub("", text)
    text = unicodedata.normalize("NFC", text)
    text = TRAILING.sub("", text)
    return BLANKS.sub("\n\n", text).strip("\n")


class Normalize(Step):
    """Args:
    collapse_spaces: make one space of several between words. Not for code and tables.
    """

    name = "normalize"

    def __init__(self, collapse_spaces: bool = False, only: list[str] | None = None):
        super().__init__(only)
        self.collapse_spaces = collapse_spaces

    def apply(self, document: Document) -> Document | str:
        text = normalize(document.text)
        if self.collapse_spaces:
            text = INNER_RUNS.sub(" ", text)
        if not text or text.isspace():
            return "empty"
        if text != document.text:
            self.counts["changed"] += 1
        return document._replace(text=text)
