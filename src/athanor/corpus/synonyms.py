"""Words replaced by synonyms, from tables given by path.

A table is a text file with a set of synonyms a line, parted by tabs, commas or spaces; Cilin's codes (同义词词林:
Aa01A01= 人 士 人物) and # comments are passed over, and of Cilin only the sets marked as equal are taken. Or it
is a file of WordNet's database (data.noun, data.verb, ...), as Debian's package wordnet-base or NLTK's corpus has it.
"""

import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from athanor.corpus.augment import Augment, checked, pieces
from athanor.corpus.documents import Document
from athanor.corpus.files import Input, decode
from athanor.errors import UserError

CILIN = re.compile(r"[A-Z][a-z]\d\d[A-Z]\d*([=#@]?)\s+")
SPLIT = re.compile(r"\s*[,，、;；]\s*|\s+")


class Synonyms(Augment):
    """Only words that stand in few sets are replaced: the others have several meanings, and which one is meant is not
    known. A word's form is not bent: what stands in the table as it is in the text is replaced.

    Args:
        tables: files of synonyms.
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
            if word and (others := self.table.get(piece.lower())) and rng.random() < self.rate:
                piece = cased(piece, rng.choice(others))
            changed.append(piece)
        return "".join(changed)


def cased(written: str, word: str) -> str:
    if written.isupper() and len(written) > 1:
        return word.upper()
    return word[0].upper() + word[1:] if written[0].isupper() else word


def table(files: Iterable[str], senses: int) -> dict[str, list[str]]:
    """Words in small letters -> their synonyms, in order; of words in at most so many sets."""
    sets = [found for path in files for found in synsets(path)]
    by_word: dict[str, list[list[str]]] = {}
    for found in sets:
        for word in found:
            by_word.setdefault(word.lower(), []).append(found)
    if not any(len(found) > 1 for found in sets):
        raise UserError(f"Synonyms: no line of {', '.join(files)} has two words; write a set of synonyms a line.")
    return {
        word: others
        for word, own in by_word.items()
        if len(own) <= senses and (others := sorted({o for found in own for o in found if o.lower() != word}))
    }


def synsets(path: str | Path) -> Iterator[list[str]]:
    """The sets of a file, each word once, in order."""
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
