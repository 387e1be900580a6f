"""BRAT: a text and a standoff file for each item (https://brat.nlplab.org/standoff.html). It labels spans only.

Each annotator works on a copy of the folder, whose name is the annotator's. Offsets are characters; an annotation over
several lines is written in pieces.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from athanor.annotation.items import Annotation, Item, Kind, Spans, digest
from athanor.corpus.files import whole
from athanor.errors import UserError

FOLDER = "texts"
BOUND = re.compile(r"T\d+\t(\S+) (\d+ \d+(?:;\d+ \d+)*)\t(.*)")
LINE = re.compile(r"[^\n]+")


def stem(item: Item) -> str:
    """The name of its files, without the ending."""
    return digest(item.id)


def write(directory: Path, kind: Kind, labels: Sequence[str], items: Sequence[Item], opinions: Mapping) -> list[Path]:
    """opinions: by item, what is shown beforehand, by who said it; of several BRAT can show the first."""
    require_spans(kind)
    if wrong := [label for label in labels if not re.fullmatch(r"[\w-]+", label)]:
        raise UserError(f"BRAT's labels have letters, digits, - and _ only, unlike {wrong[0]!r}; rename it.")
    folder = directory / FOLDER
    folder.mkdir(exist_ok=True)
    files = {"annotation.conf": "\n".join(("[entities]", *labels, "[relations]", "[events]", "[attributes]", ""))}
    for item in items:
        spans: Spans = next(iter(opinions.get(item.id, {}).values()), [])
        files |= {f"{stem(item)}.txt": item.text, f"{stem(item)}.ann": standoff(item.text, spans)}
    for name, text in files.items():
        with whole(folder / name) as temporary:
            temporary.write_bytes(text.encode())
    return [folder]


def standoff(text: str, spans: Spans) -> str:
    lines = []
    for number, (start, end, label) in enumerate(spans, 1):
        pieces = [(start + piece.start(), start + piece.end()) for piece in LINE.finditer(text[start:end])]
        places = ";".join(f"{first} {last}" for first, last in pieces)
        lines.append(f"T{number}\t{label} {places}\t{' '.join(text[first:last] for first, last in pieces)}\n")
    return "".join(lines)


def read(path: Path, items: Mapping[str, Item]) -> Iterator[Annotation]:
    """The annotations of one annotator's folder; relations, events and notes are passed over."""
    if not path.is_dir():
        raise UserError(f"{path} is no folder; name the folder of each annotator, with its .txt and .ann files.")
    for item in items.values():
        require_spans(item.kind)
        text, ann = path / f"{stem(item)}.txt", path / f"{stem(item)}.ann"
        if not ann.exists():
            continue
        if text.exists() and text.read_bytes().decode() != item.text:
            raise UserError(f"{text} was changed after the export, so that its offsets mean nothing; restore it.")
        yield Annotation(item.id, path.resolve().name, parsed(item.text, ann))


def parsed(text: str, path: Path) -> Spans:
    spans = []
    for number, line in enumerate(path.read_bytes().decode().split("\n"), 1):
        if not line.startswith("T"):
            continue
        if not (found := BOUND.fullmatch(line)):
            raise UserError(f"{path}, line {number} is no text-bound annotation of BRAT; correct or remove it.")
        label, places, quoted = found.groups()
        pieces = [tuple(map(int, place.split())) for place in places.split(";")]
        if " ".join(text[start:end] for start, end in pieces) != quoted:
            raise UserError(f"{path}, line {number}: its characters are not {quoted!r}; the text was changed.")
        if any(text[a[1] : b[0]].strip() for a, b in pairwise(pieces)):
            raise UserError(f"{path}, line {number}: a span in pieces, which cannot be kept; make it one, or several.")
        spans.append([pieces[0][0], pieces[-1][1], label])
    return sorted(map(list, {tuple(span) for span in spans}))


def require_spans(kind: Kind) -> None:
    if kind != "spans":
        raise UserError(f"BRAT labels spans, not {kind}; take label-studio or doccano.")
