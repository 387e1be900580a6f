"""A folder of what people are asked and what they said, whatever the tool:

    project.json        {"kind", "tool", "labels"}
    items.jsonl         the items, as `athanor.annotation.items.Item`
    annotations.jsonl   {"id", "annotator", "value"} a line, once there are any
and beside them what the tool imports.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from athanor.annotation import brat, doccano, label_studio
from athanor.annotation.items import KINDS, SIDES, Annotation, Item, Kind, write_lines
from athanor.corpus.files import whole
from athanor.data.formats import read_records
from athanor.errors import UserError

Tool = Literal["label-studio", "doccano", "brat"]
TOOLS: dict[Tool, Any] = dict(zip(get_args(Tool), (label_studio, doccano, brat)))
PROJECT, ITEMS, ANNOTATIONS = "project.json", "items.jsonl", "annotations.jsonl"


class Project(NamedTuple):
    """annotations: by item, what each annotator said."""

    directory: Path
    kind: Kind
    tool: Tool
    labels: list[str]
    items: dict[str, Item]
    annotations: dict[str, dict[str, Any]]

    @property
    def annotators(self) -> list[str]:
        return sorted({who for said in self.annotations.values() for who in said})


def export(
    directory: Path,
    items: Sequence[Item],
    kind: Kind,
    tool: Tool,
    labels: Sequence[str] = (),
    opinions: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Path]:
    """Writes a new project, and returns the files for the tool.

    Args:
        labels: of classes and spans; those that the items have, if empty.
        opinions: what is shown to annotators beforehand: by item, by who said it.

    Raises:
        UserError: the folder is in use, there is nothing to label, or nothing to label it with.
    """
    if (directory / PROJECT).exists():
        raise UserError(f"{directory} has a project already; remove it or say another folder.")
    if not items:
        raise UserError("there is no item to annotate; check the files.")
    found = {item.label for item in items if kind == "classes" and item.label is not None}
    found |= {label for item in items if kind == "spans" for _, _, label in item.label or ()}
    if kind in ("classes", "spans"):
        labels = list(labels) or sorted(found)
        if not labels:
            raise UserError(f"the records have no labels; say what {kind} there are: --labels A,B,C.")
        if unknown := found - set(labels):
            raise UserError(f"records have the label {min(unknown)!r}, which --labels lacks; add it.")
    directory.mkdir(parents=True, exist_ok=True)
    written = TOOLS[tool].write(directory, kind, labels, items, opinions or {})
    write_lines(directory / ITEMS, (item._asdict() for item in items))
    account = {"kind": kind, "tool": tool, "labels": list(labels)}
    with whole(directory / PROJECT) as temporary:
        temporary.write_text(json.dumps(account, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return written


def load(directory: Path) -> Project:
    try:
        account = json.loads((directory / PROJECT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{directory} is no project of annotations; make one with `athanor annotate export`.") from None
    items = {record["id"]: Item(**record) for _, record in read_records([str(directory / ITEMS)])}
    annotations: dict[str, dict[str, Any]] = {}
    if (path := directory / ANNOTATIONS).exists():
        for _, record in read_records([str(path)]):
            annotations.setdefault(record["id"], {})[record["annotator"]] = record["value"]
    return Project(directory, account["kind"], account["tool"], account["labels"], items, annotations)


def take(project: Project, files: Iterable[Path], tool: Tool | None = None, annotator: str | None = None) -> Project:
    """Reads what came back from the tool and keeps it; what an annotator says anew about an item replaces the old.

    Args:
        tool: from which the files come; that of the export, if None.
        annotator: whose the files are, in place of the name that they say.

    Raises:
        UserError: a file does not fit the project, and nothing was kept.
    """
    said: dict[tuple[str, str], Any] = {}
    for path in files:
        if not path.exists():
            raise UserError(f"{path} does not exist; name what the tool exported.")
        for found in TOOLS[tool or project.tool].read(path, project.items):
            check(project, found, path)
            key = (found.id, annotator or found.annotator)
            if key in said and said[key] != found.value and project.kind != "answers":
                raise UserError(f"{path}: {key[1]} labelled item {found.id!r} twice, differently; keep one.")
            said[key] = found.value
    for (identity, who), value in said.items():
        project.annotations.setdefault(identity, {})[who] = value
    write_lines(
        project.directory / ANNOTATIONS,
        (
            Annotation(identity, who, value)._asdict()
            for identity in project.items
            for who, value in sorted(project.annotations.get(identity, {}).items())
        ),
    )
    return project


def check(project: Project, annotation: Annotation, path: Path) -> None:
    known = SIDES if project.kind == "pairs" else project.labels
    if project.kind == "spans":
        labels = [label for _, _, label in annotation.value]
        length = len(project.items[annotation.id].text)
        if any(not 0 <= start < end <= length for start, end, _ in annotation.value):
            raise UserError(f"{path}: a span of item {annotation.id!r} is not in its text of {length} characters.")
    else:
        labels = [] if project.kind == "answers" else [annotation.value]
    if unknown := [label for label in labels if label not in known]:
        raise UserError(f"{path}: item {annotation.id!r} has the label {unknown[0]!r}; known are {', '.join(known)}.")


assert set(KINDS) == set(label_studio.NAMES) == set(doccano.PROJECT)
