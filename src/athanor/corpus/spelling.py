"""Misspelt English words put right by SymSpell (Garbe 2012): the most frequent known word one edit away.

Only what is sure to be a slip is touched: an unknown word in small letters, perhaps with a capital first, of `shortest`
letters or more, that has one likely correction. With a model of this project, the candidate that it finds least
surprising in its sentence is taken, and only if it is less surprising than what was written. Chinese is not corrected.
"""

import re
from functools import cached_property
from importlib import resources
from typing import Any

from athanor.corpus.documents import Document
from athanor.corpus.normalize import rare
from athanor.corpus.perplexity import Scorer
from athanor.corpus.steps import Step
from athanor.errors import UserError

WORD = re.compile(r"(?<![\w@/.'’-])[A-Za-z][a-z]+(?![\w@/'’-]|\.\w)")
SENTENCE = re.compile(r"[^.!?\n]*[.!?]*")
DICTIONARY = "frequency_dictionary_en_82_765.txt"


class Spelling(Step):
    """Args:
    shortest: letters of a word that is looked at.
    frequency: of a correction in SymSpell's dictionary, at least (it counts 23 billion words for "the").
    words: files with further words that are right, one a line, such as names and terms of a field.
    model: directory of a run that trained a decoder, to choose by.
    """

    name = "spelling"

    def __init__(
        self,
        shortest: int = 5,
        frequency: int = 1_000_000,
        words: list[str] | None = None,
        model: str | None = None,
        only: list[str] | None = None,
    ):
        super().__init__(only)
        if shortest < 3:
            raise UserError(f"Spelling: shortest {shortest} must be at least 3.")
        self.shortest = shortest
        self.frequency = frequency
        self.files = list(words or [])
        self.scorer = None if model is None else Scorer(model)
        self.corrections: dict[str, list[str]] = {}

    @cached_property
    def dictionary(self) -> Any:
        from athanor.corpus.lists import entries

        symspellpy = rare("symspellpy")
        dictionary = symspellpy.SymSpell(max_dictionary_edit_distance=1)
        with resources.as_file(resources.files(symspellpy) / DICTIONARY) as path:
            dictionary.load_dictionary(str(path), 0, 1)
        for word in entries(self.files):
            dictionary.create_dictionary_entry(word.lower(), 1)
        return dictionary

    def apply(self, document: Document) -> Document | str:
        if document.language != "en":
            return document
        text = document.text
        changed = 0
        for found in reversed(list(WORD.finditer(text))):
            candidates = self.candidates(found[0].lower())
            if not candidates:
                continue
            if found[0][0].isupper():
                candidates = [word.capitalize() for word in candidates]
            chosen = self.chosen(text, found.start(), found.end(), candidates)
            if chosen:
                text = text[: found.start()] + chosen + text[found.end() :]
                changed += 1
        if changed:
            self.counts["words corrected"] += changed
        return document._replace(text=text)

    def candidates(self, word: str) -> list[str]:
        """Corrections of an unknown word, the most frequent first; none for a known one."""
        if len(word) < self.shortest or word in self.dictionary.words:
            return []
        if word not in self.corrections:
            found = self.dictionary.lookup(word, rare("symspellpy").Verbosity.CLOSEST, max_edit_distance=1)
            likely = [item.term for item in found if item.count >= self.frequency and item.term[0] == word[0]]
            self.corrections[word] = likely
        return self.corrections[word]

    def chosen(self, text: str, start: int, end: int, candidates: list[str]) -> str | None:
        if self.scorer is None:
            return candidates[0] if len(candidates) == 1 else None
        before = re.split(r"(?<=[.!?])\s|\n", text[max(0, start - 200) : start])[-1]
        after = (SENTENCE.match(text, end) or [""])[0][:200]
        written = text[start:end]
        bits = {word: self.scorer.bits(before + word + after)[0] for word in (written, *candidates)}
        best = min(bits, key=lambda word: bits[word])
        return None if best == written else best
