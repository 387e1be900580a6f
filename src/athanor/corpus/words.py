"""The words of a text as the published quality rules count them: punctuation marks are words of their own.

English is divided nearly as spaCy's rules divide it (see docs/corpus.md). Each character of Chinese and other scripts
without spaces is one word. Texts are divided as arrays of characters, and words are 64-bit numbers: most parts between
two spaces are a word, or a word and a mark, and no string is made of these. Other parts are divided only once: they
recur.
"""

import re
import sys
from collections.abc import Iterator
from functools import cache, lru_cache

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
UNSPACED_STOP = tuple("的一是了在不和有這这也就為为之以于於而其与與我他你那")
SHORT_WHOLE = ("cannot", "Cannot")  # the short forms of letters alone
ALPHABETIC = re.compile(r"[^\W\d_]")
MOST = 1 << 18  # parts to remember
LONG = 40  # characters of a part that will hardly recur
CHUNK = 1 << 15  # characters that are divided at a time
BASE = 0x9E3779B97F4A7C15  # odd, so that its powers have inverses modulo 2^64
INVERSE = pow(BASE, -1, 1 << 64)
# Kinds of characters. MARK: taken off a word one by one, in front and behind. CAPITAL is every letter but a to z.
SPACE, CAPITAL, LOWER, DIGIT, MARK, POINT, DASH, UNSPACED_LETTER, UNSPACED_OTHER, OTHER = range(10)
TAKEN_OFF = ",;:!?()[]*`\"'“”‘’«»，；：！？。、（）《》「」"
DASHES = "-–—"  # which divide letters
BEYOND = (
    1 << 16
)  # where the kind is looked up no more; from 0x20000 to 0x3ffff there are ideographs, all taken for letters


def number(word: str) -> int:
    """64 bits by which words are told apart: the sum of (character + 1) * BASE^place."""
    result = 0
    for character in reversed(word):
        result = (result * BASE + ord(character) + 1) & 0xFFFFFFFFFFFFFFFF
    return result


def numbers(words: Iterator[str] | tuple[str, ...]) -> np.ndarray:
    """In order of size."""
    return np.array(sorted(map(number, words)), np.uint64)


STOP, UNSPACED_STOP_NUMBERS = list(numbers(ENGLISH_STOP)), frozenset(numbers(UNSPACED_STOP).tolist())
SHORT_WHOLE_NUMBERS = list(numbers(SHORT_WHOLE))
ABBREVIATION_NUMBERS = numbers(name[:-1] for name in ABBREVIATIONS)


@cache
def kinds() -> np.ndarray:
    """uint8 [BEYOND + 1]"""
    table = np.full(BEYOND + 1, OTHER, np.uint8)
    for place, character in enumerate(map(chr, range(BEYOND))):
        if character.isalpha():
            table[place] = LOWER if "a" <= character <= "z" else CAPITAL
        elif character.isspace():
            table[place] = SPACE
    for found in UNSPACED_UNIT.finditer("".join(map(chr, range(BEYOND)))):
        table[found.start()] = UNSPACED_LETTER if ALPHABETIC.match(found[0]) else UNSPACED_OTHER
    for kind, characters in ((DIGIT, "0123456789"), (MARK, TAKEN_OFF), (POINT, "."), (DASH, DASHES)):
        table[[ord(character) for character in characters]] = kind
    return table


@cache
def powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of BASE and of INVERSE modulo 2^64, from 0 on."""
    up, down = np.full(count, BASE, np.uint64), np.full(count, INVERSE, np.uint64)
    up[0] = down[0] = 1
    return np.cumprod(up, dtype=np.uint64), np.cumprod(down, dtype=np.uint64)


class Facts(dict):
    """Words -> their number, and 4 * characters + 2 for marks + 1 for words with a letter; two uint64 as bytes."""

    def __missing__(self, word: str) -> bytes:
        mark = not word[0].isalnum() and MARKS.issuperset(word)
        facts = 4 * len(word) + 2 * mark + (word.isalpha() or ALPHABETIC.search(word) is not None)
        entry = number(word).to_bytes(8, sys.byteorder) + facts.to_bytes(8, sys.byteorder)
        if len(word) < LONG:
            self[word] = entry
        return entry


class Parts(dict):
    """What stands between spaces and is no mere word -> the facts of its words, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.facts = Facts()

    def __missing__(self, part: str) -> bytes:
        entry = b"".join(map(self.facts.__getitem__, divided(part)))
        if len(part) < LONG:
            self[part] = entry
        return entry


class Words:
    """The words of a text.

    numbers: uint64 [T], equal where words are.
    lengths: characters of each, [T].
    count, marks: all, and those that are marks.
    characters: in the words that are no marks.
    alphabetic: words with a letter.
    unspaced: whether most words that are no marks are characters of Chinese and the like.
    stop: how many different stop words of its script it has.
    """

    def __init__(self, text: str, parts: Parts):
        chunks = list(divided_chunks(text, parts))
        self.numbers = np.concatenate([found for found, _, _ in chunks]) if chunks else np.zeros(0, np.uint64)
        told = np.concatenate([found for _, found, _ in chunks]) if chunks else np.zeros(0, np.int64)
        self.lengths = told >> 2
        self.count = len(told)
        marks = (told & 2) > 0
        self.marks = int(np.count_nonzero(marks))
        self.characters = int(self.lengths.sum() - self.lengths[marks].sum())
        self.alphabetic = int(np.count_nonzero(told & 1))
        self.unspaced = 2 * sum(unspaced for _, _, unspaced in chunks) > self.count - self.marks
        if self.unspaced:
            self.stop = len(UNSPACED_STOP_NUMBERS.intersection(self.numbers.tolist()))
        else:
            self.stop = sum(bool((self.numbers == word).any()) for word in STOP)


def divided_chunks(text: str, parts: Parts) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """(numbers, facts, how many are characters of scripts without spaces) of the words of a text, piece by piece."""
    begin, size = 0, CHUNK
    while begin < len(text):
        chunk = text[begin : begin + size]
        codes, kind = characters(chunk)
        if begin + size < len(text):  # to the last place where words are parted for sure
            apart = np.flatnonzero((kind == SPACE) | (kind == UNSPACED_LETTER) | (kind == UNSPACED_OTHER))
            if not len(apart):
                size *= 2
                continue
            end = int(apart[-1]) + 1
            chunk, codes, kind = chunk[:end], codes[:end], kind[:end]
        yield divided_chunk(chunk, codes, kind, parts)
        begin, size = begin + len(chunk), CHUNK


def characters(text: str) -> tuple[np.ndarray, np.ndarray]:
    """(code points, kinds)"""
    if text.isascii():
        data = text.encode()
        return np.frombuffer(data, np.uint8), np.frombuffer(data.translate(kinds()[:256].tobytes()), np.uint8)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    if codes.max() < BEYOND:
        return codes, kinds().take(codes)
    kind = kinds().take(np.minimum(codes, BEYOND))
    kind[(codes >= 0x20000) & (codes < 0x40000)] = UNSPACED_LETTER
    return codes, kind


def divided_chunk(text: str, codes: np.ndarray, kind: np.ndarray, parts: Parts) -> tuple[np.ndarray, np.ndarray, int]:
    """Divides at every mark, and between letters and digits; the parts for which this may be wrong, one by one.

    It is right where marks stand before and behind one word only, which may have dashes between its letters or end in
    's, or is a number; and where a full stop behind it is no abbreviation's.
    """
    letter = (kind == CAPITAL) | (kind == LOWER)
    follows = np.zeros(len(kind), bool)  # within a word: a letter behind a letter, a digit behind a digit
    follows[1:] = (letter[1:] & letter[:-1]) | ((kind[1:] == DIGIT) & (kind[:-1] == DIGIT))
    spaces = kind == SPACE
    starts = np.flatnonzero(~(follows | spaces))
    if not len(starts):
        return np.zeros(0, np.uint64), np.zeros(0, np.int64), 0
    ends = np.flatnonzero(~(np.append(follows[1:], False) | spaces)) + 1
    sums = np.zeros(len(codes) + 1, np.uint64)
    up, down = powers(max(CHUNK, len(codes)))
    np.cumsum((codes + np.uint64(1)) * up[: len(codes)], out=sums[1:])

    # Of each word its kind, the last character's; and those around it, SPACE where another part begins.
    own = kind[ends - 1]
    letters = (own == CAPITAL) | (own == LOWER)
    alone = (own == UNSPACED_LETTER) | (own == UNSPACED_OTHER)
    first = np.empty(len(starts), bool)  # of a part
    first[0] = True
    first[1:] = (starts[1:] != ends[:-1]) | alone[1:] | alone[:-1]
    before, after = np.zeros((2, len(own)), np.uint8)
    np.multiply(own[:-1], ~first[1:], out=before[1:])
    np.multiply(own[1:], ~first[1:], out=after[:-1])
    lengths = ends - starts
    genitive = np.flatnonzero((own[:-1] == MARK) & (own[1:] == LOWER) & (lengths[1:] == 1) & ~first[1:])
    sign, following = codes[starts[genitive]], after[genitive + 1]
    genitive = genitive[
        ((sign == ord("'")) | (sign == ord("’")))
        & (codes[starts[genitive + 1]] == ord("s"))
        & ((before[genitive] == LOWER) | (before[genitive] == CAPITAL))
        & ((following == SPACE) | (following == MARK) | (following == POINT))
    ]
    gone = np.zeros(len(starts), bool)
    gone[genitive + 1] = True
    ends[genitive] += 1
    lengths[genitive] += 1
    found = (sums[ends] - sums[starts]) * down[starts]

    part = np.cumsum(first) - 1
    opening = np.flatnonzero(first)
    core = (letters | (own == DIGIT)) & ~gone
    cores = np.zeros(len(core) + 1, np.int32)
    np.cumsum(core, out=cores[1:])
    earlier = cores[:-1] > cores[opening][part]
    later = cores[np.append(opening[1:], len(core))][part] > cores[1:]
    solid = (before == MARK) | (before == DIGIT)
    solid[1:] |= (before[1:] == LOWER) & (lengths[:-1] > 1)
    bad = (own == OTHER) | ((own == MARK) & earlier & later) | ((own == POINT) & (later | ~earlier | ~solid))
    bad |= (own == DASH) & ~(((before == CAPITAL) | (before == LOWER)) & ((after == CAPITAL) | (after == LOWER)))
    bad |= (own == DIGIT) & ((before == CAPITAL) | (before == LOWER) | (after == CAPITAL) | (after == LOWER))
    bad |= (codes[starts] == ord(":")) & ~earlier & ~later & ~first  # an emoticon
    for word in SHORT_WHOLE_NUMBERS:
        bad |= found == word
    stops = np.flatnonzero((own == POINT) & ((before == LOWER) | (before == CAPITAL)))
    places = np.searchsorted(ABBREVIATION_NUMBERS, found[stops - 1]).clip(max=len(ABBREVIATION_NUMBERS) - 1)
    bad[stops] |= ABBREVIATION_NUMBERS[places] == found[stops - 1]

    marks = ((own == MARK) & (codes[starts] != ord("‘"))) | (own == POINT) | (own == DASH)
    facts = 4 * lengths + 2 * marks + (letters | (own == UNSPACED_LETTER))
    facts[genitive] = 4 * 2 + 1
    words, told = found, facts
    spoilt = np.zeros(len(opening), bool)
    spoilt[part[bad]] = True
    if spoilt.any():
        bad_parts = np.flatnonzero(spoilt)
        kept = ~spoilt[part] & ~gone
        heads, tails = opening[bad_parts], np.append(opening[1:], len(core))[bad_parts] - 1
        spans = zip(starts[heads].tolist(), ends[tails].tolist())
        entries = [parts[text[start:end]] for start, end in spans]
        rows = np.frombuffer(b"".join(entries), np.uint64).reshape(-1, 2)
        sizes = np.array([len(entry) >> 4 for entry in entries])
        counts = kept.astype(np.int64)
        counts[heads] = sizes
        offsets = np.cumsum(counts) - counts
        within = np.arange(len(rows)) + np.repeat(offsets[heads] - (np.cumsum(sizes) - sizes), sizes)
        words, told = np.empty(int(counts.sum()), np.uint64), np.empty(int(counts.sum()), np.int64)
        words[offsets[kept]], told[offsets[kept]] = found[kept], facts[kept]
        words[within], told[within] = rows[:, 0], rows[:, 1]
    elif len(genitive):
        words, told = found[~gone], facts[~gone]
    return words, told, int(np.count_nonzero(alone))


remembered = Parts()


@lru_cache(4)  # for the next filter
def words(text: str) -> Words:
    if len(remembered) > MOST:
        remembered.clear()
        remembered.facts.clear()
    return Words(text, remembered)
