"""Misspelt English words put right by SymSpell (Garbe 2012), and Chinese characters typed for others of their sound.

Of English only what is sure to be a slip is touched: an unknown word in small letters, perhaps with a capital first, of
`shortest` letters or more, that has one likely correction, the most frequent known word one edit away.

With a model of this project, its score in the sentence chooses, for Chinese too, which is left alone without:

    gain = log2 p(sentence with the candidate) - log2 p(sentence as it was written)

The candidate that gains most is taken, if it gains more than `margin` bits. Of Chinese, characters are looked at that
stand alone among the tokenizer's pieces; their candidates are the homophones that the model finds likelier there than
what was written, by what comes before. One that was taken keeps its neighbours as they are: their gain was counted
without it.
"""

import re
from functools import cached_property
from importlib import resources
from typing import Any

from athanor.corpus.documents import Document
from athanor.corpus.homophones import homophones
from athanor.corpus.normalize import rare
from athanor.corpus.perplexity import Scorer
from athanor.corpus.steps import Step
from athanor.errors import UserError

WORD = re.compile(r"(?<![\w@/.'’-])[A-Za-z][a-z]+(?![\w@/'’-]|\.\w)")
CLAUSES = re.compile(r"[^。！？!?；;\n]{1,120}[。！？!?；;]*")
SENTENCE = re.compile(r"[^.!?\n]*[.!?]*")
DICTIONARY = "frequency_dictionary_en_82_765.txt"

MOST = 3  # homophones that are tried for a character


class Spelling(Step):
    """Args:
    shortest: letters of a word that is looked at.
    frequency: of a correction in SymSpell's dictionary, at least (it counts 23 billion words for "the").
    words: files with further words that are right, one a line, such as names and terms of a field.
    model: directory of a run that trained a decoder, to choose by.
    margin: bits that a correction must gain under the model.
    """

    name = "spelling"

    def __init__(
        self,
        shortest: int = 5,
        frequency: int = 1_000_000,
        words: list[str] | None = None,
        model: str | None = None,
        margin: float = 15.0,
        only: list[str] | None = None,
    ):
        super().__init__(only)
        if shortest < 3:
            raise UserError(f"Spelling: shortest {shortest} must be at least 3.")
        if margin < 0:
            raise UserError(f"Spelling: margin {margin} must not be negative; more bits change less.")
        self.shortest = shortest
        self.margin = margin
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
        if document.language.startswith("zh") and self.scorer is not None:
            text, changed = self.characters(document.text)
            if changed:
                self.counts["characters corrected"] += changed
            return document._replace(text=text)
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
        bits = self.scorer.bits_of_each([before + word + after for word in (text[start:end], *candidates)])
        gain, best = max((bits[0] - found, -number) for number, found in enumerate(bits[1:]))
        return candidates[-best] if gain > self.margin else None

    def characters(self, text: str) -> tuple[str, int]:
        """(the text corrected, how many characters were changed)"""
        assert self.scorer is not None
        kept, end, changed = list[str](), 0, 0
        for found in CLAUSES.finditer(text):
            clause = found[0]
            places = self.likelier(clause)
            if not places:
                continue
            bits = self.scorer.bits_of_each(
                [clause, *(clause[:place] + other + clause[place + 1 :] for place, other in places)]
            )
            gains = sorted(
                ((bits[0] - after, place, other) for after, (place, other) in zip(bits[1:], places)),
                key=lambda gain: (-gain[0], gain[1]),
            )
            taken: dict[int, str] = {}
            for gain, place, other in gains:
                if gain <= self.margin:
                    break
                if not {place - 1, place, place + 1} & taken.keys():
                    taken[place] = other
            if taken:
                corrected = "".join(taken.get(place, written) for place, written in enumerate(clause))
                kept += [text[end : found.start()], corrected]
                end = found.end()
                changed += len(taken)
        return "".join((*kept, text[end:])), changed

    def likelier(self, clause: str) -> list[tuple[int, str]]:
        """(place, homophone), few a character: where the model expects a piece that begins with the homophone sooner
        than one that begins with the character."""
        import torch

        assert self.scorer is not None
        alike, tokenizer, model = homophones(), self.scorer.tokenizer, self.scorer.model
        spans = tokenizer.spans(clause)[: int(model.context) - 1]
        single = [
            (row, begin) for row, (_, begin, end) in enumerate(spans) if end - begin == 1 and clause[begin] in alike
        ]
        if not single:
            return []
        tokens_BT = torch.tensor([[tokenizer.bos_id, *(index for index, _, _ in spans)]])
        with torch.inference_mode():
            logps_TV = model(tokens_BT)[0].float().log_softmax(-1)
        found: list[tuple[int, str]] = []
        for row, place in single:

            def score(character: str, row: int = row) -> float:
                ids = tokenizer.beginnings.get(character)
                return float(logps_TV[row, ids].logsumexp(0)) if ids else -float("inf")

            least = score(clause[place])
            scored = sorted((-score(other), other) for other in alike[clause[place]])[:MOST]
            found += [(place, other) for negative, other in scored if -negative > least]
        return found
