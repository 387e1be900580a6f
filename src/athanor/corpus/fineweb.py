"""FineWeb's own rules (Penedo et al. 2024, arXiv:2406.17557, section 3.6): lists, menus and broken lines are no prose.

They decide as datatrove's FineWebQualityFilter does. A line of Chinese is short from a third of the characters.
"""

from athanor.corpus.documents import Document
from athanor.corpus.steps import Step
from athanor.corpus.words import words

# Marks that end sentences, in all scripts (Unicode's Sentence_Terminal).
END = tuple(
    "!.?։؝؞؟۔܀܁܂߹࠷࠹࠽࠾।॥၊။።፧፨᙮᜵᜶។៕៖៙៚᠃᠉᥄᥅᪨᪩᪪᪫᭚᭛᭞᭟\u1b7d\u1b7e᰻᰼᱾᱿‼‽⁇⁈⁉⸮⸼\u2e53\u2e54。꓿꘎꘏꛳꛷꡶꡷꣎꣏꤯꧈꧉꩝꩞꩟꫰꫱꯫﹒﹖﹗！．？｡"
)
UNSPACED_END = (*END, "……", "”", "」", "』", "；")


class FineWeb(Step):
    """Args:
    min_terminal: share of the lines that end with terminal punctuation.
    max_short: share of the lines of at most `short` characters, or `short_unspaced` in Chinese.
    max_repeated: share of the characters in lines that occurred before.
    max_newlines: line breaks to a word.
    """

    name = "fineweb"

    def __init__(
        self,
        min_terminal: float = 0.12,
        max_short: float = 0.67,
        short: int = 30,
        short_unspaced: int = 10,
        max_repeated: float = 0.01,
        max_newlines: float = 0.3,
        only: list[str] | None = None,
    ):
        super().__init__(only)
        self.min_terminal = min_terminal
        self.max_short = max_short
        self.short = short
        self.short_unspaced = short_unspaced
        self.max_repeated = max_repeated
        self.max_newlines = max_newlines

    def apply(self, document: Document) -> Document | str:
        text = document.text
        lines = [line for line in text.split("\n") if line.strip()]
        if not lines:
            return "empty"
        found = words(text)
        chinese = found.unspaced
        if sum(line.endswith(UNSPACED_END if chinese else END) for line in lines) < self.min_terminal * len(lines):
            return "few lines end with punctuation"
        short = self.short_unspaced if chinese else self.short
        if sum(len(line) <= short for line in lines) > self.max_short * len(lines):
            return "mostly short lines"
        breaks = text.count("\n")
        repeated = sum(map(len, lines)) - sum(map(len, set(lines)))
        if repeated > self.max_repeated * (len(text) - breaks):
            return "repeated lines"
        if breaks > self.max_newlines * found.count:
            return "a list"
        return document
