"""The words of a text as the published quality rules count them: punctuation marks are words of their own.

English is divided nearly as spaCy's rules divide it (see docs/corpus.md). Each character of Chinese and other scripts
without spaces is one word. Texts are counted as arrays of word numbers, and what stands between two spaces is divided
only once: words recur.
"""

import re
import sys
from array import array
from functools import lru_cache

import numpy as np

from athanor.corpus.units import UNSPACED, UNSPACED_UNIT

MARKS = frozenset(
    "!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»•·"
    + "".join(map(chr, (*range(9), *range(11, 32), *range(127, 160))))
)
ABBREVIATION = (  # whose full stop ends no sentence
    r"(?:Mr|Mrs|Ms|Dr|Jr|Sr|St|Co|Corp|Inc|Ltd|Gen|Gov|Prof|Rep|Rev|Sen|Mt|Messrs|Bros|vs|Adm|Jan|"
    r"Feb|Mar|Apr|Jun|Jul|Aug|Sep|Sept|Oct|Nov|Dec|Calif|Colo|Conn|Fla|Mass|Mich|Minn|Miss|Okla|Ore|Pa|Tenn|Va|Wash|Wis)\."
)
ABBREVIATIONS = frozenset(f"{name}." for name in ABBREVIATION[3:-3].split("|"))
ABBREVIATED = re.compile(rf"{ABBREVIATION}|(?:[A-Za-z]\.)+|[\w.]+@[\w.-]+|\):|and/or|\.+")
SHORT_FORM = re.compile(
    r"([A-Za-z]+?)(n['’]t)|(I|[Yy]ou|[Hh]e|[Ss]he|[Ii]t|[Ww]e|[Tt]hey|[Tt]h(?:at|ere)|[Ww]h(?:o|at|en|ere|y)|[Hh]ow)"
    r"(['’](?:re|ve|ll|d|m))|([Cc]an)(not)"
)
SHORT_END = frozenset("temld")
ADDRESS = re.compile(r"(?:\w+://|www\.)\S*[\w/]|(?:[\w-]+\.)+(?:com|org|net|edu|gov|io|uk|de|cn)(?:/\S*[\w/])?")
QUOTES = "'\"”“`‘´’‚„»«「」『』（）〔〕【】《》〈〉⟦⟧"
POINTS = "…,:;!?¿؟¡()\\[\\]{}<>_#*&。？！，、；：～·।،۔؛٪"
ICONS = "\u2190-\u2bff©®°|\U0001f000-\U0001faff"
PREFIX = re.compile(rf"\.\.+|\+(?![0-9])|[§%=—–{POINTS}{QUOTES}{ICONS}$£€¥¢₹]")
SUFFIX = re.compile(
    rf"(?:['’][sS]|\.\.+|[—–{POINTS}{QUOTES}{ICONS}]|(?<=[0-9])\+|(?<=[0-9a-zß-öø-ÿ%²+\-{POINTS}{QUOTES}])\.|(?<=[A-Z][A-Z])\."
    r"|(?<=[0-9])(?:[$£€¥¢₹]|[kcm]?m[²³]?|[km]?g|[kc]?l|mph|kmh?|km/h|[KMGT]B|[kmgt]b|ft|in|%))$"
)
INFIX = re.compile(
    rf"\.\.+|…|[{ICONS}]|(?<=[0-9])[+\-*^](?=[0-9-])|(?<=[a-z{QUOTES}])\.(?=[A-Z{QUOTES}])|(?<=[^\W\d_]),(?=[^\W\d_])"
    r"|(?<=[^\W_])(?:---?|[-–—~])(?=[^\W\d_])|(?<=[^\W_])[:<>=/](?=[^\W\d_])"
)
MIXED = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")


def divide(text: str) -> list[str]:
    """The words of a text, marks among them."""
    words: list[str] = []
    for part in text.split():
        for piece in MIXED.findall(part) if UNSPACED_UNIT.search(part) else (part,):
            words += divided(piece)
    return words


def divided(part: str) -> list[str]:
    """Of a part without spaces: marks off its two ends, one after another, then what divides it within.

    Whether a pattern can match at all is seen by a character or two; most parts are a word and perhaps a mark.
    """
    head: list[str] = []
    tail: list[str] = []
    while part and not part.isalpha() and not whole(part):
        last = part[-1]
        if not part[0].isalnum() and (found := PREFIX.match(part)):
            head.append(found[0])
            part = part[found.end() :]
        elif (
            not last.isdecimal()
            and (not last.isalpha() or not part[-4:].isalpha())
            and (found := SUFFIX.search(part[-6:]))
        ):
            tail.append(found[0])
            part = part[: len(part) - len(found[0])]
        else:
            position = 0
            for found in INFIX.finditer(part):
                head += [part[position : found.start()], found[0]] if found.start() > position else [found[0]]
                position = found.end()
            part = part[position:]
            break
    if not part:
        pass
    elif (part.endswith(("not", "t", "re", "ve", "ll", "d", "m"))) and (found := SHORT_FORM.fullmatch(part)):
        head += filter(None, found.groups())
    else:
        head.append(part)
    return head + tail[::-1] if tail else head


def whole(part: str) -> bool:
    """Whether a part with more than letters is one word, or a short form of two."""
    if part[-1] == "." or "@" in part or part in ("):", "and/or"):
        if ABBREVIATED.fullmatch(part):
            return True
    elif part[-1] in SHORT_END and SHORT_FORM.fullmatch(part):
        return True
    return ("." in part or "://" in part) and ADDRESS.fullmatch(part) is not None


ENGLISH_STOP = ("the", "be", "to", "of", "and", "that", "have", "with")
STOP = {
    word: place
    for place, word in enumerate([*ENGLISH_STOP, *"的一是了在不和有这這也就为為之以于於而其与與我他你那"], 1)
}
ENGLISH_STOP_END, LAST_STOP = len(ENGLISH_STOP) + 1, len(STOP)
ALPHABETIC = re.compile(r"[^\W\d_]")
FIRST_UNSPACED = "\u0e00"
MOST = 1 << 19  # words, and parts between spaces, to remember
LONG = 40  # characters of a part that will hardly recur


class Vocabulary(dict):
    """Words -> their numbers, from 0 as they come, and what is known of each word.

    facts: int32 [6, words and some room]: characters; the same, but 0 for marks; 1 for marks; 1 for words with a
    letter; 1 for characters of scripts without spaces; 1 + the position in STOP, or 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.facts = np.zeros((6, 1 << 12), np.int32)
        self.new: list[str] = []

    def __missing__(self, word: str) -> int:
        self.new.append(word)
        self[word] = number = len(self)
        return number

    @staticmethod
    def facts_of(word: str) -> tuple[int, ...]:
        if word.isascii() and word.isalpha():
            return len(word), len(word), 0, 1, 0, STOP.get(word, 0)
        marks = not word[0].isalnum() and MARKS.issuperset(word)
        letters = ALPHABETIC.search(word) is not None
        unspaced = word[0] >= FIRST_UNSPACED and UNSPACED_UNIT.match(word) is not None
        return len(word), 0 if marks else len(word), marks, letters, unspaced, STOP.get(word, 0)

    def settle(self) -> np.ndarray:
        """The facts, the newest words' too."""
        if self.new:
            rows = list(map(self.facts_of, self.new))
            while len(self) > self.facts.shape[1]:
                self.facts = np.concatenate([self.facts, np.zeros_like(self.facts)], axis=1)
            self.facts[:, len(self) - len(rows) : len(self)] = np.array(rows, np.int32).T
            self.new = []
        return self.facts


class Parts(dict):
    """What stands between two spaces -> the numbers of its words, as the bytes of an int32 array.

    Most are a word, or a word and a mark, and need no dividing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.vocabulary = Vocabulary()

    def __missing__(self, part: str) -> bytes:
        vocabulary, word = self.vocabulary, part[:-1]
        if not part.isascii() or part.startswith(("cannot", "Cannot")):
            numbers = array("i", map(vocabulary.__getitem__, divide(part))).tobytes()
        elif part.isalpha():
            numbers = vocabulary[part].to_bytes(4, sys.byteorder)
        elif word.isalpha() and (
            part[-1] in ",;:!?)"
            or (part[-1] == "." and len(word) > 1 and word[-1].islower() and part not in ABBREVIATIONS)
        ):
            numbers = vocabulary[word].to_bytes(4, sys.byteorder) + vocabulary[part[-1]].to_bytes(4, sys.byteorder)
        else:
            numbers = array("i", map(vocabulary.__getitem__, divide(part))).tobytes()
        if len(part) < LONG:
            self[part] = numbers
        return numbers


class Words:
    """The words of a text.

    numbers: int32 [T], equal where words are; of one text only.
    lengths: characters of each, [T].
    count, marks: all, and those that are marks.
    characters: in the words that are no marks.
    alphabetic: words with a letter.
    unspaced: whether most words that are no marks are characters of Chinese and the like.
    stop: how many different stop words of its script it has.
    """

    def __init__(self, text: str, parts: Parts):
        self.numbers = np.frombuffer(b"".join(map(parts.__getitem__, text.split())), np.int32)
        facts = parts.vocabulary.settle().take(self.numbers, axis=1)
        self.lengths = facts[0]
        self.count = len(self.numbers)
        _, self.characters, self.marks, self.alphabetic, unspaced, _ = facts.sum(1).tolist()
        self.unspaced = 2 * unspaced > self.count - self.marks
        stop = np.bincount(facts[5], minlength=LAST_STOP + 1) > 0
        first, last = (ENGLISH_STOP_END, LAST_STOP + 1) if self.unspaced else (1, ENGLISH_STOP_END)
        self.stop = int(np.count_nonzero(stop[first:last]))


remembered = Parts()


@lru_cache(4)  # for the next filter
def words(text: str) -> Words:
    global remembered
    if max(len(remembered), len(remembered.vocabulary)) > MOST:
        remembered = Parts()
    return Words(text, remembered)
