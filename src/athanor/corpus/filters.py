"""Which texts are worth training on: long enough, mostly words, not repeating themselves.

The rules are Gopher's (Rae et al. 2021, arXiv:2112.11446, table A1), restated in units (see units.py) and characters so
that they ask the same of Chinese as of English. Only the mean word length, which Chinese does not have, is left out
where most units are characters.
"""

import re

from athanor.corpus.documents import Document
from athanor.corpus.steps import Step
from athanor.corpus.units import UNSPACED_UNIT, ngrams, units
from athanor.errors import UserError

# Runs of ASCII marks of markup and code, bullets and ellipses, arrows to dingbats, emoji: a ruled line counts once.
SYMBOLS = re.compile("[#*_|\\\\{}<>=~^`$+…•·\u2190-\u2bff\ufffd\U0001f000-\U0001faff]+")


class Length(Step):
    """Args:
    minimum, maximum: units (words, or characters of scripts without spaces), both inclusive; a maximum of None is none.
    """

    name = "length"

    def __init__(self, minimum: int = 20, maximum: int | None = None, only: list[str] | None = None):
        super().__init__(only)
        if maximum is not None and maximum < minimum:
            raise UserError(f"Length: maximum {maximum} is below minimum {minimum}; exchange them.")
        self.minimum = minimum
        self.maximum = maximum

    def apply(self, document: Document) -> Document | str:
        length = len(units(document.text))
        if length < self.minimum:
            return f"shorter than {self.minimum} units"
        if self.maximum is not None and length > self.maximum:
            return f"longer than {self.maximum} units"
        return document


class Quality(Step):
    """Each rule drops with a reason of its own; None switches a rule off.

    Args:
        min_letters: letters (of any script) among the characters that are not space.
        max_symbols: runs of symbols per unit. Prose in either language stays below 0.06, technical pages reach 0.5.
        max_repeated_lines: share of the characters that stand in lines which occurred before in the text.
        max_repeated_ngrams: share of the runs of `ngram` units that occurred before in the text.
        min_word_length, max_word_length: of the mean, in characters, over the words divided by spaces; for texts that
            mostly have such words.
    """

    name = "quality"

    def __init__(
        self,
        min_letters: float | None = 0.6,
        max_symbols: float | None = 0.3,
        max_repeated_lines: float | None = 0.3,
        max_repeated_ngrams: float | None = 0.2,
        ngram: int = 10,
        min_word_length: float | None = 3.0,
        max_word_length: float | None = 10.0,
        only: list[str] | None = None,
    ):
        super().__init__(only)
        self.min_letters = min_letters
        self.max_symbols = max_symbols
        self.max_repeated_lines = max_repeated_lines
        self.max_repeated_ngrams = max_repeated_ngrams
        self.ngram = ngram
        self.min_word_length = min_word_length
        self.max_word_length = max_word_length

    def apply(self, document: Document) -> Document | str:
        text = document.text
        parts = units(text)
        if not parts:
            return "no words"
        if self.min_letters is not None and letters(text) < self.min_letters:
            return "too few letters"
        if self.max_symbols is not None and len(SYMBOLS.findall(text)) > self.max_symbols * len(parts):
            return "too many symbols"
        if self.max_repeated_lines is not None and repeated_lines(text) > self.max_repeated_lines:
            return "repeated lines"
        if self.max_repeated_ngrams is not None and repeated_ngrams(parts, self.ngram) > self.max_repeated_ngrams:
            return "repeated n-grams"
        words = [part for part in parts if not UNSPACED_UNIT.match(part)]
        if 2 * len(words) > len(parts):
            mean = sum(map(len, words)) / len(words)
            if self.min_word_length is not None and mean < self.min_word_length:
                return "short words"
            if self.max_word_length is not None and mean > self.max_word_length:
                return "long words"
        return document


def letters(text: str) -> float:
    """Share of letters among the characters that are not space; 0 for blank text."""
    visible = "".join(text.split())
    return sum(map(str.isalpha, visible)) / len(visible) if visible else 0.0


def repeated_lines(text: str) -> float:
    """Share of the characters that stand in a line equal to an earlier one, blank lines aside."""
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    total = sum(map(len, lines))
    return 1 - sum(map(len, set(lines))) / total if total else 0.0


def repeated_ngrams(parts: list[str], n: int) -> float:
    """Share of the n-grams of units that are equal to an earlier one."""
    runs = ngrams(parts, n)
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
