"""Documents dropped for where they come from, when they were written, or the words they use."""

import re
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from athanor.corpus.documents import Document
from athanor.corpus.files import Input, decode
from athanor.corpus.steps import Step
from athanor.corpus.units import UNSPACED_UNIT
from athanor.errors import UserError


def entries(files: list[str] | str) -> Iterator[str]:
    """The lines of text files, without blank ones and those that begin with #."""
    for path in [files] if isinstance(files, str) else files:
        with Input(Path(path)) as file:
            for _, offset, line in file.lines():
                entry = decode(line, path, offset).strip()
                if entry and not entry.startswith("#"):
                    yield entry


class BlockedDomains(Step):
    """Drops the pages of hosts on a list, and of hosts below these: `example.com` blocks `www.example.com` too.

    Args:
        files: a host a line.
        key: field of meta with the page's address. Documents without it pass.
    """

    name = "blocked domains"

    def __init__(self, files: list[str] | str, key: str = "url", only: list[str] | None = None):
        super().__init__(only)
        self.hosts = {ascii_host(entry) for entry in entries(files)}
        self.key = key

    def apply(self, document: Document) -> Document | str:
        url = str(document.meta.get(self.key) or "")
        try:
            host = ascii_host(urlsplit(url if "//" in url else f"//{url}").hostname or "")
        except ValueError:
            return document
        while host:
            if host in self.hosts:
                return f"blocked domain {host}"
            host = host.partition(".")[2]
        return document


def ascii_host(host: str) -> str:
    """Lower case, 例子.cn as xn--fsqu00a.cn."""
    host = host.lower().rstrip(".")
    try:
        return host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        return host


class Recent(Step):
    """Drops documents older than so many years. Those without a date that can be read pass, and are counted.

    Args:
        years: the window's length.
        until: its end, as YYYY-MM-DD: a date of the experiment, not of the day it runs, so that it can be repeated.
        key: field of meta whose text begins with YYYY, YYYY-MM or YYYY-MM-DD.
    """

    name = "recent"

    def __init__(self, years: float, until: str, key: str = "date", only: list[str] | None = None):
        super().__init__(only)
        try:
            end = date.fromisoformat(str(until))
        except ValueError:
            raise UserError(f"Recent: until {until!r} is not a date such as 2026-01-31.") from None
        if years <= 0:
            raise UserError(f"Recent: years {years} must be above 0.")
        self.since = end - timedelta(days=365.2425 * years)
        self.key = key

    def apply(self, document: Document) -> Document | str:
        written = latest(str(document.meta.get(self.key) or ""))
        if written is None:
            self.counts["no date"] += 1
            return document
        return f"before {self.since}" if written < self.since else document


def latest(text: str) -> date | None:
    """The last day that a date, perhaps without its day or month, can mean."""
    found = re.match(r"(\d{4})(?:[-/](\d{1,2}))?(?:[-/](\d{1,2}))?(?!\d)", text)
    if not found:
        return None
    year, month, day = int(found[1]), int(found[2] or 12), found[3]
    try:
        if day:
            return date(year, month, int(day))
        return date(year + month // 12, month % 12 + 1, 1) - timedelta(days=1)
    except ValueError:
        return None


class WordList(Step):
    """Drops documents that use the words on a list, such as offensive ones.

    Args:
        files: a word or phrase a line; case is ignored. Where spaces divide words only whole words count; Chinese ones
            are found anywhere.
        maximum: occurrences that a document may have.
    """

    name = "word list"

    def __init__(self, files: list[str] | str, maximum: int = 0, only: list[str] | None = None):
        super().__init__(only)
        words = sorted({entry.casefold() for entry in entries(files)}, key=lambda word: (-len(word), word))
        if not words:
            raise UserError(f"WordList: {files} has no words.")
        spaced = [re.escape(word) for word in words if not UNSPACED_UNIT.search(word)]
        others = [re.escape(word) for word in words if UNSPACED_UNIT.search(word)]
        # A letter of a script without spaces is no part of the English word beside it.
        letter = r"[^\W_\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff]"
        patterns = [f"(?<!{letter})(?:{'|'.join(spaced)})(?!{letter})"] if spaced else []
        self.pattern = re.compile("|".join(patterns + others))
        self.maximum = maximum

    def apply(self, document: Document) -> Document | str:
        found = len(self.pattern.findall(document.text.casefold()))
        return f"more than {self.maximum} listed words" if found > self.maximum else document
