"""C4's rules (Raffel et al. 2020, arXiv:1910.10683, section 2.2): lines go, and documents of which too little is left.

They decide as datatrove's C4QualityFilter does. For Chinese the same questions are asked in Chinese: full stops and
closing quotes of its own, lines of so many characters, the words for cookies and privacy.
"""

import re

from athanor.corpus.documents import Document
from athanor.corpus.steps import Step
from athanor.corpus.units import UNSPACED_UNIT
from athanor.corpus.words import ABBREVIATION

CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
END = (".", "?", "!", '"', "'")
UNSPACED_END = (*END, "。", "？", "！", "…", "”", "’", "」", "』", "；")
POLICY = (
    "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies",
    "隐私政策", "隱私政策", "隐私权政策", "隱私權政策", "使用条款", "使用條款", "服务条款", "服務條款",
    "版权所有", "版權所有", "使用cookie", "使用 cookie",
)  # fmt: skip
POLICY_WORDS = ("policy", "cookies", "terms of use")  # one of which is in each English phrase
BEGINNING = 1000  # characters
CHINESE = "a character of a script without spaces"
# A mark that ends a word and is followed by another, as spaCy's sentencizer sees it.
BOUNDARY = re.compile(
    r"""(?:(?<![.!?])[.!?]{2,}|(?<=[\w%)\]"'”’])(?<![\s(][A-Z])\.|[!?。！？])["'”’)\]」』]*"""
    r"""(?:\s+|(?<=[。！？」』])|(?<=[a-z][.!?])(?=[A-Z]))(?=\S)"""
)
ABBREVIATED = re.compile(rf"\b{ABBREVIATION}|\b(?:[A-Za-z]\.){{2,}}")


def sentences(line: str, enough: int | None = None) -> int:
    """Their number; where `enough` are in the beginning of a long line, the number of these."""
    if enough is not None and len(line) > BEGINNING and (count := sentences(line[:BEGINNING])) >= enough:
        return count
    return 1 + len(BOUNDARY.findall(ABBREVIATED.sub("x", line)))


class C4(Step):
    """None, or false, switches a rule off.

    Args:
        terminal_punctuation: a line must end with a full stop or the like.
        min_words: words between spaces that a line must have; `min_characters` of Chinese in one without.
        max_word_length: a line with a longer word goes. Chinese has none.
        min_sentences: of the lines that are left.
        citations: take Wikipedia's marks away, such as [1] and [edit].
        javascript, policy: take lines away that speak of these.
        lorem_ipsum, curly_brackets: drop documents that have such a line.
    """

    name = "C4"

    def __init__(
        self,
        terminal_punctuation: bool = True,
        min_words: int | None = 3,
        min_characters: int | None = 5,
        max_word_length: int | None = 1000,
        min_sentences: int | None = 5,
        citations: bool = True,
        javascript: bool = True,
        policy: bool = True,
        lorem_ipsum: bool = True,
        curly_brackets: bool = True,
        only: list[str] | None = None,
    ):
        super().__init__(only)
        self.terminal_punctuation = terminal_punctuation
        self.min_words = min_words
        self.min_characters = min_characters
        self.max_word_length = max_word_length
        self.min_sentences = min_sentences
        self.citations = citations
        self.javascript = javascript
        self.policy = policy
        self.lorem_ipsum = lorem_ipsum
        self.curly_brackets = curly_brackets

    def apply(self, document: Document) -> Document | str:
        kept: list[str] = []
        count = 0
        asked = self.asked(document.text)
        plain = (self.max_word_length or 0) if not asked and self.terminal_punctuation else -1
        cited = self.citations and "[" in document.text
        for line in document.text.splitlines():
            whole = line.strip()
            line = CITATION.sub("", whole) if cited and "[" in whole else whole
            if len(line) <= plain and not line.endswith(END):  # most lines that go, at once
                self.counts["lines without terminal punctuation"] += 1
                continue
            reason = self.why_not(line, whole, asked)
            if reason.startswith("a line"):
                return reason
            if reason:
                self.counts[reason] += 1
                continue
            if self.min_sentences is not None and count < self.min_sentences:
                count += sentences(line, self.min_sentences - count)
            kept.append(line)
        if self.min_sentences is not None and count < self.min_sentences:
            return f"fewer than {self.min_sentences} sentences"
        text = "\n".join(kept).strip()
        return document._replace(text=text) if text else "no line left"

    def asked(self, text: str) -> frozenset[str]:
        """What some line of a text has, of all that lines are asked for; the other questions can be left out."""
        lower = text.lower()
        found = {name for name in ("lorem ipsum", "javascript", "{") if name in lower}
        if self.policy and any(word in lower for word in POLICY_WORDS):
            found.update(phrase for phrase in POLICY if phrase in lower)
        if not text.isascii() and UNSPACED_UNIT.search(text):
            found.add(CHINESE)
            found.update(phrase for phrase in POLICY if self.policy and phrase in lower)
        asks = {"lorem ipsum": self.lorem_ipsum, "javascript": self.javascript, "{": self.curly_brackets}
        return frozenset(name for name in found if asks.get(name, True))

    def why_not(self, line: str, whole: str, asked: frozenset[str]) -> str:
        """Why a line goes, or beginning with "a line" why its document does; "" if it stays. `whole` has citations."""
        chinese = CHINESE in asked and UNSPACED_UNIT.search(line) is not None
        longest = self.max_word_length
        if (
            longest is not None
            and len(whole) > longest
            and not chinese
            and any(len(part) > longest for part in whole.split())
        ):
            return "lines with a long word"
        if self.terminal_punctuation and (not line.endswith(UNSPACED_END if chinese else END) or line.endswith("...")):
            return "lines without terminal punctuation"
        if self.min_words is not None and len(whole.split(None, self.min_words)) < self.min_words:
            if not chinese:
                return "lines of few words"
            if self.min_characters is not None and len(UNSPACED_UNIT.findall(line)) < self.min_characters:
                return "lines of few words"
        if not asked or asked == {CHINESE}:
            return ""
        lower = line.lower()
        if "lorem ipsum" in asked and "lorem ipsum" in lower:
            return "a line of lorem ipsum"
        if "javascript" in asked and "javascript" in lower:
            return "lines that speak of javascript"
        if "{" in asked and "{" in line:
            return "a line with a curly bracket"
        if any(phrase in lower for phrase in POLICY if phrase in asked):
            return "lines that speak of policies"
        return ""
