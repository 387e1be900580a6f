"""Gopher's rules for quality and for repetition (Rae et al. 2021, arXiv:2112.11446, section A.1.1 and table A1).

They decide as datatrove's GopherQualityFilter and GopherRepetitionFilter do. For texts that are mostly Chinese, or in
another script without spaces, a character counts as a word: the mean length of words is not asked, the stop words are
Chinese function characters, and lists may begin with Chinese bullets.
"""

import re

import numpy as np

from athanor.corpus.deduplicate import GAMMA, mixed
from athanor.corpus.documents import Document
from athanor.corpus.steps import Step
from athanor.corpus.words import Words, words

PARAGRAPH = re.compile(r"\n{2,}")
BULLETS = ("•", "-")
UNSPACED_BULLETS = ("•", "-", "·", "●", "◆", "■", "○", "※")
ELLIPSES = ("...", "…")


class GopherQuality(Step):
    """None switches a rule off.

    Args:
        min_words, max_words: marks not counted.
        min_word_length, max_word_length: characters, on average.
        max_symbols: hash signs, or ellipses, to a word.
        max_bullets: share of the lines that begin with a bullet.
        max_ellipses: share of the lines that end with an ellipsis.
        min_alphabetic: share of the words, marks among them, that have a letter.
        min_stop_words: different ones.
    """

    name = "gopher quality"

    def __init__(
        self,
        min_words: int | None = 50,
        max_words: int | None = 100_000,
        min_word_length: float | None = 3.0,
        max_word_length: float | None = 10.0,
        max_symbols: float | None = 0.1,
        max_bullets: float | None = 0.9,
        max_ellipses: float | None = 0.3,
        min_alphabetic: float | None = 0.8,
        min_stop_words: int | None = 2,
        only: list[str] | None = None,
    ):
        super().__init__(only)
        self.min_words = min_words
        self.max_words = max_words
        self.min_word_length = min_word_length
        self.max_word_length = max_word_length
        self.max_symbols = max_symbols
        self.max_bullets = max_bullets
        self.max_ellipses = max_ellipses
        self.min_alphabetic = min_alphabetic
        self.min_stop_words = min_stop_words

    def apply(self, document: Document) -> Document | str:
        text = document.text
        found = words(text)
        plain = found.count - found.marks
        if not plain:
            return "no words"
        if self.min_words is not None and plain < self.min_words:
            return f"fewer than {self.min_words} words"
        if self.max_words is not None and plain > self.max_words:
            return f"more than {self.max_words} words"
        if not found.unspaced:
            mean = found.characters / plain
            if self.min_word_length is not None and mean < self.min_word_length:
                return "short words"
            if self.max_word_length is not None and mean > self.max_word_length:
                return "long words"
        if self.max_symbols is not None:
            if text.count("#") > self.max_symbols * found.count:
                return "too many hash signs"
            if text.count("...") + text.count("…") > self.max_symbols * found.count:
                return "too many ellipses"
        rows = text.splitlines()
        bullets = UNSPACED_BULLETS if found.unspaced else BULLETS
        limit = len(rows) * (self.max_bullets if self.max_bullets is not None else 1)
        if some(text, bullets, limit) and sum(row.lstrip().startswith(bullets) for row in rows) > limit:
            return "mostly bullets"
        limit = len(rows) * (self.max_ellipses if self.max_ellipses is not None else 1)
        if some(text, ELLIPSES, limit) and sum(row.rstrip().endswith(ELLIPSES) for row in rows) > limit:
            return "lines that break off"
        if self.min_alphabetic is not None and found.alphabetic < self.min_alphabetic * found.count:
            return "too few words with letters"
        if self.min_stop_words is not None and found.stop < self.min_stop_words:
            return "too few stop words"
        return document


def some(text: str, marks: tuple[str, ...], limit: float) -> bool:
    """Whether a text has more of the marks than `limit`: otherwise no count of its lines can be above that either."""
    return sum(map(text.count, marks)) > limit


class GopherRepetition(Step):
    """Each measure is a share of the text's characters, except those called lines and paragraphs, which count these.

    Args:
        max_lines, max_paragraphs: that occurred before.
        max_line_characters, max_paragraph_characters: in such.
        max_top: n -> in the occurrences of the most frequent run of n words.
        max_repeated: n -> in runs of n words that occurred before.
    """

    name = "gopher repetition"

    def __init__(
        self,
        max_lines: float | None = 0.3,
        max_paragraphs: float | None = 0.3,
        max_line_characters: float | None = 0.2,
        max_paragraph_characters: float | None = 0.2,
        max_top: dict[int, float] | None = None,
        max_repeated: dict[int, float] | None = None,
        only: list[str] | None = None,
    ):
        super().__init__(only)
        self.max_lines = max_lines
        self.max_paragraphs = max_paragraphs
        self.max_line_characters = max_line_characters
        self.max_paragraph_characters = max_paragraph_characters
        self.max_top = {2: 0.2, 3: 0.18, 4: 0.16} if max_top is None else max_top
        self.max_repeated = (
            {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10} if max_repeated is None else max_repeated
        )

    def apply(self, document: Document) -> Document | str:
        text = document.text
        if not text:
            return "empty"
        for what, parts, count, characters in (
            ("paragraphs", paragraphs(text.strip()), self.max_paragraphs, self.max_paragraph_characters),
            ("lines", lines(text), self.max_lines, self.max_line_characters),
        ):
            distinct = set(parts)
            if len(distinct) == len(parts):
                continue
            if count is not None and len(parts) - len(distinct) > count * len(parts):
                return f"repeated {what}"
            repeated = sum(map(len, parts)) - sum(map(len, distinct))
            if characters is not None and repeated > characters * len(text):
                return f"repeated {what} by characters"
        runs = Runs(words(text))
        for n, most in self.max_top.items():
            if runs.top(n, most * len(text)) > most * len(text):
                return f"one run of {n} words too often"
        for n, most in self.max_repeated.items():
            if runs.repeated(n, most * len(text)) > most * len(text):
                return f"repeated runs of {n} words"
        return document


def paragraphs(text: str) -> list[str]:
    return PARAGRAPH.split(text) if "\n\n\n" in text else text.split("\n\n")


def lines(text: str) -> list[str]:
    """Parted by one line break or several; empty ones only at the ends."""
    return [*[""] * text.startswith("\n"), *filter(None, text.split("\n")), *[""] * text.endswith("\n")]


class Runs:
    """Repetition among the runs of n words of a text, in characters: exact where it matters, bounded where it does not.

    Both functions may return less than the true number if that is not above `limit` either. Runs are compared by 64-bit
    hashes; the bound comes from the words that lie in a repeated run at all.
    """

    def __init__(self, found: Words):
        self.lengths = found.lengths
        self.ends = np.concatenate([[0], np.cumsum(self.lengths)])
        self.words = mixed(found.numbers + GAMMA)
        self.most: int | None = None  # occurrences of the most frequent pair of words
        self.covered: dict[int, int] = {}

    def hashes(self, n: int) -> np.ndarray:
        result = np.zeros(max(0, len(self.words) - n + 1), np.uint64)
        for start in range(n):
            result = result * np.uint64(0x9E3779B97F4A7C15) + self.words[start : start + len(result)]
        return result

    def top(self, n: int, limit: float) -> int:
        """Characters in all occurrences of the most frequent run (the first of several), spaces between words too."""
        if len(self.words) < n:
            return 0
        if self.most is None:
            self.most = int(occurrences(np.sort(self.hashes(2)))[1].max())
        longest = self.longest(n) + n - 1
        if n >= 2 and self.most * longest <= limit:
            return 0
        keys = self.hashes(n)
        distinct, counts = occurrences(np.sort(keys))
        most = int(counts.max())
        if most * longest <= limit:
            return 0
        start = 0 if most == 1 else int(among(keys, distinct[counts == most]).argmax())
        return int(self.lengths[start : start + n].sum() + n - 1) * most

    def repeated(self, n: int, limit: float) -> int:
        """Characters in runs that occurred before, none counted twice: a run found is stepped over whole."""
        for shorter, characters in self.covered.items():
            if shorter <= n and characters <= limit:
                return 0
        if n not in self.covered:
            self.covered[n] = self.cover(n, limit)
            if self.covered[n] <= limit:
                return 0
        keys, lengths = self.hashes(n).tolist(), self.lengths.tolist()
        seen, characters, position = set(), 0, 0
        while position < len(keys):
            if keys[position] in seen:
                characters += sum(lengths[position : position + n])
                position += n
            else:
                seen.add(keys[position])
                position += 1
        return characters

    def longest(self, n: int) -> int:
        """Characters of the words of the longest run."""
        return int((self.ends[n:] - self.ends[:-n]).max())

    def cover(self, n: int, limit: float) -> int:
        """No less than the characters of the words that lie in a run which occurred before, and so no less than
        `repeated` of n and more; exactly these if more than `limit`."""
        keys = self.hashes(n)
        ordered = np.sort(keys)  # much faster than to sort positions, and few runs recur
        repeated = ordered[1:][ordered[1:] == ordered[:-1]]
        if not len(repeated):
            return 0
        if (bound := len(repeated) * self.longest(n)) <= limit:
            return bound
        places = np.flatnonzero(among(keys, repeated))
        order = np.argsort(keys[places], kind="stable")
        again = places[order[1:]][keys[places[order[1:]]] == keys[places[order[:-1]]]]
        steps = np.zeros(len(self.words) + 1, np.int64)
        np.add.at(steps, again, 1)
        np.add.at(steps, again + n, -1)
        return int(self.lengths[np.cumsum(steps)[:-1] > 0].sum())


def among(keys: np.ndarray, few: np.ndarray) -> np.ndarray:
    """Which of the keys are among a few in order; np.isin would sort all of them again."""
    return few[np.searchsorted(few, keys).clip(max=len(few) - 1)] == keys


def occurrences(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct numbers of an array in order that is not empty, and how often each occurs."""
    edges = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return ordered[edges], np.diff(np.append(edges, len(ordered)))
