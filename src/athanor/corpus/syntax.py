"""Sentences put another way with the same words: clauses change places, contractions open, 把 becomes 被.

Rules on the surface, for sentences whose parts can be told without a parser; all others stay as they are.

    Because A, b.            B because a.            (also although, unless, whereas, if, when, while)
    A because b.             Because b, a.           (also although, unless, whereas)
    don't, they've           do not, they have
    因为A，所以B。            之所以B，是因为A。
    虽然A，但是B。            B，虽然A。
    如果A，那么B。            B，如果A的话。
    我把书放在桌上。           书被我放在桌上。          (parts of speech by jieba)
"""

import random
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from athanor.corpus.augment import SENTENCE, Augment, checked
from athanor.corpus.documents import Document
from athanor.corpus.normalize import rare
from athanor.corpus.units import UNSPACED_UNIT

FRONTED = re.compile(r"(Because|Although|Unless|Whereas|If|When|While) ([^,.!?;:()\"“”]+), ([^,.!?;:()\"“”]+)(\.\s*)")
TRAILING = re.compile(r"([A-Z][^,.!?;:()\"“”]*?) (because|although|unless|whereas) ([^,.!?;:()\"“”]+)(\.\s*)")
OF_THE_CLAUSE = re.compile(r"\b(?:not|never|only|just|mainly|partly|simply|is|was|be|been|n['’]t|then|so)\b", re.I)
LOWERED = re.compile(
    r"(?:The|A|An|He|She|It|We|You|They|This|That|These|Those|My|Your|His|Her|Its|Our|Their|There|Some|Many|Most|All|No|"
    r"Every|Each|In|On|At)\b"
)
KEPT = re.compile(r"I\b")
CONTRACTED = re.compile(
    r"\b(?:(ca)n['’]t|(wo)n['’]t|(\w+)n['’]t|(\w+)['’](re|ve|ll|m))\b(?! (?:I|you|he|she|it|we|they)\b)"
)
OPENED = {"re": "are", "ve": "have", "ll": "will", "m": "am"}
AUXILIARIES = frozenset(
    "do does did is are was were have has had could should would must might need".split()  # noqa: SIM905
)
CLAUSE = "[^，。！？；：、“”\n]+"
BECAUSE = re.compile(f"因为({CLAUSE})，所以({CLAUSE})(。\\s*)")
ALTHOUGH = re.compile(f"虽然({CLAUSE})，但是?({CLAUSE})(。\\s*)")
IF = re.compile(f"(?:如果|假如)({CLAUSE}?)(?:的话)?，(?:那么|那)({CLAUSE})(。\\s*)")
TAKEN = re.compile(f"({CLAUSE}?)把({CLAUSE})(。\\s*)")

Rule = Callable[[str], str | None]  # the sentence put another way, with its end; None where it cannot be


class Rearrange(Augment):
    """Args:
    rate: probability of each sentence that can be put another way.
    """

    name, method = "rearranged sentences", "syntax"

    def __init__(
        self, seed: int, rate: float = 0.5, copies: int = 1, share: float = 1.0, only: list[str] | None = None
    ):
        super().__init__(seed, copies, share, only)
        self.rate = checked(self.name, rate, "word")

    def changed(self, document: Document, rng: random.Random) -> str:
        sentences = []
        for sentence in SENTENCE.findall(document.text):
            found = [other for rule in RULES if (other := rule(sentence)) not in (None, sentence)]
            take = bool(found) and rng.random() < self.rate
            sentences.append(rng.choice(found) if take else sentence)
        return "".join(filter(None, sentences))


def fronted(sentence: str) -> str | None:
    if not (found := FRONTED.fullmatch(sentence)) or OF_THE_CLAUSE.search(found[3]):
        return None
    word, clause, main, end = found.groups()
    return f"{main[0].upper()}{main[1:]} {word.lower()} {clause}{end}"


def trailing(sentence: str) -> str | None:
    found = TRAILING.fullmatch(sentence)
    if not found or OF_THE_CLAUSE.search(found[1]) or not (LOWERED.match(found[1]) or KEPT.match(found[1])):
        return None
    main, word, clause, end = found.groups()
    main = main if KEPT.match(main) else main[0].lower() + main[1:]
    return f"{word.capitalize()} {clause}, {main}{end}"


def opened(sentence: str) -> str | None:
    def whole(found: re.Match[str]) -> str:
        can, will, auxiliary, subject, short = found.groups()
        if can:
            return f"{can}nnot"
        if will:
            return f"{will[0]}ill not"
        if auxiliary:
            return f"{auxiliary} not" if auxiliary.lower() in AUXILIARIES else found[0]
        return f"{subject} {OPENED[short]}"

    changed = CONTRACTED.sub(whole, sentence)
    return None if changed == sentence else changed


def because(sentence: str) -> str | None:
    found = BECAUSE.fullmatch(sentence)
    return f"之所以{found[2]}，是因为{found[1]}{found[3]}" if found else None


def although(sentence: str) -> str | None:
    found = ALTHOUGH.fullmatch(sentence)
    return f"{found[2]}，虽然{found[1]}{found[3]}" if found and found[2][0] not in "也还却仍" else None


def conditional(sentence: str) -> str | None:
    found = IF.fullmatch(sentence)
    return f"{found[2]}，如果{found[1]}的话{found[3]}" if found and found[2][0] not in "就便也" else None


def taken(sentence: str) -> str | None:
    """Subject 把 object verb -> object 被 subject verb, where the subject is nouns or pronouns and nothing else."""
    found = TAKEN.fullmatch(sentence)
    if not found or not found[1] or "被" in sentence or "把" in found[2]:
        return None
    subject = [flag for _, flag in tagged(found[1])]
    if not all(flag[0] in "nr" for flag in subject):
        return None
    words = tagged(found[2])
    verb = next((place for place, (_, flag) in enumerate(words) if flag == "v"), 0)
    if not verb or verb == len(words) - 1 or not all(flag[0] in "nrmqabu" for _, flag in words[:verb]):
        return None
    thing, action = "".join(word for word, _ in words[:verb]), "".join(word for word, _ in words[verb:])
    return f"{thing}被{found[1]}{action}{found[3]}"


def tagged(text: str) -> list[tuple[str, str]]:
    """Words and their parts of speech, by jieba."""
    return [(pair.word, pair.flag) for pair in tagger().cut(text, HMM=False)] if UNSPACED_UNIT.search(text) else []


@cache
def tagger() -> Any:
    from athanor.corpus.augment import segmenter

    return rare("jieba.posseg", "augment").POSTokenizer(segmenter())


RULES: tuple[Rule, ...] = (fronted, trailing, opened, because, although, conditional, taken)
