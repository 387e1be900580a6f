"""One spelling for one text: Unicode NFC, plain newlines and spaces, nothing invisible."""

import importlib
import re
import unicodedata
from datetime import date
from functools import cached_property
from typing import Any, Literal

from athanor.corpus.documents import Document
from athanor.corpus.steps import Step
from athanor.errors import UserError

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


# Full-width letters and digits to ASCII. Chinese punctuation is full width by right and stays.
WIDTH = {code: code - 0xFEE0 for first, last in ("０９", "ＡＺ", "ａｚ") for code in range(ord(first), ord(last) + 1)}
CONVERSIONS = {"simplified": "t2s", "traditional": "s2t"}


def rare(module: str, extra: str = "text") -> Any:
    """A library that only some configs need. extra: what brings it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"this config needs the package {module}; install it with `pip install 'athanor[{extra}]'`."
        ) from None


MONTHS = """
    January February March April May June July August September October November December
    """.split()  # noqa: SIM905
MONTH = "|".join(f"{month[:3]}(?:{month[3:]})?" if len(month) > 3 else month for month in MONTHS)
DATE = re.compile(
    rf"\b(?P<month>{MONTH})\.?\s(?P<day>\d\d?)(?:st|nd|rd|th)?,?\s(?P<year>[12]\d{{3}})\b"
    rf"|\b(?P<day2>\d\d?)(?:st|nd|rd|th)?\s(?:of\s)?(?P<month2>{MONTH})\.?,?\s(?P<year2>[12]\d{{3}})\b"
    r"|(?<![\d/])(?P<year3>[12]\d{3})\s?(?:年\s?|/)(?P<month3>\d\d?)\s?(?:月\s?|/)(?P<day3>\d\d?)"
    r"(?:\s?[日号號]|(?![\d/]))"
    r"|(?P<year4>[一二][〇零一二三四五六七八九]{3})年(?P<month4>十[一二]?|[一二三四五六七八九])月"
    r"(?P<day4>[一二三]?十[一二三四五六七八九]?|[一二三四五六七八九])[日号號]"
)
DIGITS = {digit: number % 10 for number, digit in enumerate("零一二三四五六七八九")} | {"〇": 0}
THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")


def iso_date(found: re.Match[str]) -> str:
    """YYYY-MM-DD of what DATE found; what is no day of the calendar stays."""
    year, month, day = (
        next(filter(None, (found[f"{part}{number}"] for number in ("", 2, 3, 4)))) for part in ("year", "month", "day")
    )
    if month[:3] in MONTH:
        month = str([name[:3] for name in MONTHS].index(month[:3]) + 1)
    try:
        return date(
            *(int(part) if part.isdecimal() else chinese_number(part) for part in (year, month, day))
        ).isoformat()
    except ValueError:
        return found[0]


def chinese_number(text: str) -> int:
    """二〇一九, or up to 三十一."""
    tens, ten, ones = text.partition("十")
    if ten:
        return 10 * (DIGITS[tens] if tens else 1) + (DIGITS[ones] if ones else 0)
    return int("".join(str(DIGITS[digit]) for digit in text))


class Normalize(Step):
    """Args:
    collapse_spaces: make one space of several between words. Not for code and tables.
    mojibake: repair text that was decoded with the wrong charset, such as â€œ for “ (ftfy). Entities stay.
    half_width: make ASCII of full-width letters and digits.
    dates: write as 2019-03-07 what is March 7, 2019; 7 March 2019; 2019/3/7; 2019年3月7日; 二〇一九年三月七日.
        Of 7/3/2019 nobody can tell the month, and it stays.
    numbers: write 1,234,567 as 1234567.
    script: convert Chinese characters, phrase by phrase (OpenCC); "und" and Chinese documents only.
    """

    name = "normalize"

    def __init__(
        self,
        collapse_spaces: bool = False,
        mojibake: bool = False,
        half_width: bool = False,
        dates: bool = False,
        numbers: bool = False,
        script: Literal["simplified", "traditional"] | None = None,
        only: list[str] | None = None,
    ):
        super().__init__(only)
        if script is not None and script not in CONVERSIONS:
            raise UserError(f"Normalize: script {script!r} must be simplified or traditional.")
        self.collapse_spaces = collapse_spaces
        self.mojibake = mojibake
        self.half_width = half_width
        self.dates = dates
        self.numbers = numbers
        self.script = script

    @cached_property
    def converter(self) -> Any:
        return rare("opencc").OpenCC(CONVERSIONS[self.script or ""])

    @cached_property
    def ftfy(self) -> Any:
        return rare("ftfy")

    def apply(self, document: Document) -> Document | str:
        text = document.text
        if self.mojibake:
            text = self.ftfy.fix_encoding(text)
        text = normalize(text)
        if self.collapse_spaces:
            text = INNER_RUNS.sub(" ", text)
        if self.half_width:
            text = text.translate(WIDTH)
        if self.dates:
            text = DATE.sub(iso_date, text)
        if self.numbers:
            text = THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
        if self.script and document.language.startswith(("zh", "und")):
            text = self.converter.convert(text)
        if not text or text.isspace():
            return "empty"
        if text != document.text:
            self.counts["changed"] += 1
        return document._replace(text=text)
