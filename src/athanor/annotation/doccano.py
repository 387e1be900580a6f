"""Doccano: JSON Lines of the projects text classification, sequence labelling and sequence to sequence.

Doccano exports a file for each annotator, whose name the file has, and keeps the column `item` of what it imported.
A pair is put as a classification of one text that shows the prompt and both answers.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from athanor.annotation.items import SIDES, Annotation, Item, Kind, as_text, checked_spans, write_lines
from athanor.corpus.files import whole
from athanor.data.formats import read_records
from athanor.errors import UserError

PROJECT: dict[Kind, str] = {
    "answers": "sequence to sequence", "pairs": "text classification", "classes": "text classification",
    "spans": "sequence labeling",
}  # fmt: skip


def shown(item: Item) -> str:
    if item.kind in ("classes", "spans"):
        return item.text
    if item.kind == "answers":
        return as_text(item.prompt)
    left, right = item.answers
    return f"{as_text(item.prompt)}\n\n=== left ===\n{left}\n\n=== right ===\n{right}"


def write(directory: Path, kind: Kind, labels: Sequence[str], items: Sequence[Item], opinions: Mapping) -> list[Path]:
    """opinions: by item, what is shown beforehand, by who said it; of several Doccano can show the first."""
    tasks, types = directory / "tasks.jsonl", directory / "labels.json"

    def rows() -> Iterator[dict[str, Any]]:
        for item in items:
            value = next(iter(opinions.get(item.id, {}).values()), None)
            label = [] if value is None else value if kind == "spans" else [value]
            yield {"item": item.id, "text": shown(item), "label": label}

    write_lines(tasks, rows())
    if kind == "answers":
        return [tasks]
    with whole(types) as temporary:
        entries = [{"text": label} for label in (SIDES if kind == "pairs" else labels)]
        temporary.write_text(json.dumps(entries, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return [tasks, types]


def read(path: Path, items: Mapping[str, Item]) -> Iterator[Annotation]:
    """The annotations of one annotator's file. A text without a label was not annotated, unless spans are asked for,
    of which it may have none; let Doccano export only what was confirmed.
    """
    by_text: dict[str, list[str]] = {}
    for item in items.values():
        by_text.setdefault(shown(item), []).append(item.id)
    for where, record in read_records([str(path)]):
        identity = record.get("item")
        if identity is None and len(same := by_text.get(str(record.get("text", record.get("data"))), [])) == 1:
            identity = same[0]
        if (found := items.get(str(identity))) is None:
            raise UserError(f"{where} is of no item of this project; import what was exported from it.")
        labels = record.get("label", record.get("labels"))
        if not isinstance(labels, list):
            raise UserError(f"{where} has no list `label`; export the project as JSONL.")
        if found.kind == "spans":
            yield Annotation(found.id, path.stem, checked_spans(labels, found.text, where))
        elif labels:
            if len(labels) > 1 and found.kind != "answers":
                raise UserError(f"{where} has several labels, {', '.join(map(str, labels))}; an item has one.")
            yield Annotation(found.id, path.stem, str(labels[-1]))
