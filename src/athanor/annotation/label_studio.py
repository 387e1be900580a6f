"""Label Studio: tasks and the labelling interface out, its JSON export back.

Formats: https://labelstud.io/guide/task_format and https://labelstud.io/guide/export. What somebody said before goes
along as a prediction, which Label Studio offers to the annotator; without it people label blindly.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from athanor.annotation.items import SIDES, Annotation, Item, Kind
from athanor.corpus.files import whole
from athanor.errors import UserError

PROMPT = '<Paragraphs name="prompt" value="$prompt" nameKey="role" textKey="content" layout="dialogue"/>'
ANSWER = (
    '<View style="flex: 1; min-width: 0"><Header value="{0}"/><Text name="{0}" value="${0}" valueType="text"/></View>'
)
INTERFACE: dict[Kind, str] = {
    "answers": PROMPT
    + '<TextArea name="answer" toName="prompt" rows="8" maxSubmissions="1" editable="true" required="true"/>',
    "pairs": PROMPT
    + f'<View style="display: flex; gap: 1em">{ANSWER.format("left")}{ANSWER.format("right")}</View>'
    + '<Choices name="better" toName="prompt" choice="single-radio" required="true">{labels}</Choices>',
    "classes": '<Text name="text" value="$text" valueType="text"/>'
    '<Choices name="label" toName="text" choice="single-radio" required="true">{labels}</Choices>',
    "spans": '<Labels name="label" toName="text">{labels}</Labels><Text name="text" value="$text" valueType="text"/>',
}
NAMES: dict[Kind, tuple[str, str, str]] = {  # from_name, to_name, type of a result
    "answers": ("answer", "prompt", "textarea"),
    "pairs": ("better", "prompt", "choices"),
    "classes": ("label", "text", "choices"),
    "spans": ("label", "text", "labels"),
}


def interface(kind: Kind, labels: Sequence[str]) -> str:
    """The labelling interface of a project, XML."""
    tag = "Label" if kind == "spans" else "Choice"
    options = "".join(f"<{tag} value={quoteattr(label)}/>" for label in (SIDES if kind == "pairs" else labels))
    return f"<View>{INTERFACE[kind].replace('{labels}', options)}</View>\n"


def task(item: Item, opinions: Mapping[str, Any]) -> dict[str, Any]:
    """opinions: what is shown as predictions, by who said it."""
    data: dict[str, Any] = {"item": item.id}
    if item.kind in ("classes", "spans"):
        data["text"] = item.text
    else:
        data["prompt"] = [dict(message) for message in item.prompt]
    if item.kind == "pairs":
        data["left"], data["right"] = item.answers
    predictions = [{"model_version": who, "result": results(item, value)} for who, value in opinions.items()]
    return {"data": data, **({"predictions": predictions} if predictions else {})}


def results(item: Item, value: Any) -> list[dict[str, Any]]:
    """A value as Label Studio writes it."""
    source, target, kind = NAMES[item.kind]
    if item.kind == "spans":
        values = [{"start": s, "end": e, "text": item.text[s:e], "labels": [label]} for s, e, label in value]
    else:
        values = [{"text" if item.kind == "answers" else "choices": [value]}]
    return [
        {"id": f"r{number}", "from_name": source, "to_name": target, "type": kind, "value": one}
        for number, one in enumerate(values)
    ]


def write(directory: Path, kind: Kind, labels: Sequence[str], items: Sequence[Item], opinions: Mapping) -> list[Path]:
    """opinions: by item, what is shown beforehand, by who said it."""
    paths = [directory / "interface.xml", directory / "tasks.json"]
    tasks = [task(item, opinions.get(item.id, {})) for item in items]
    for path, text in zip(paths, (interface(kind, labels), json.dumps(tasks, ensure_ascii=False, indent=1) + "\n")):
        with whole(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return paths


def read(path: Path, items: Mapping[str, Item]) -> Iterator[Annotation]:
    """The annotations of an export of the type JSON. Those marked as ground truth are by "gold"; those that were
    cancelled are none.
    """
    try:
        tasks = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(tasks, list)
        assert all("data" in found and "annotations" in found for found in tasks)
    except (ValueError, AssertionError, TypeError):
        raise UserError(f"{path} is no export of Label Studio of the type JSON (not JSON-MIN); export it so.") from None
    for found in tasks:
        item = items.get(str(found["data"].get("item")))
        if item is None:
            raise UserError(f"{path}: task {found.get('id')} is of no item of this project; import what was exported.")
        for annotation in found["annotations"]:
            if annotation.get("was_cancelled"):
                continue
            by = annotation.get("completed_by")
            by = (by.get("email") or by.get("id")) if isinstance(by, dict) else by
            value = value_of(item, annotation["result"], f"{path}, task {found.get('id')}")
            if value is not None:
                yield Annotation(item.id, "gold" if annotation.get("ground_truth") else f"{by}", value)


def value_of(item: Item, found: Sequence[Mapping[str, Any]], where: str) -> Any:
    """None where the annotator left it open."""
    kind = NAMES[item.kind][2]
    values = [result["value"] for result in found if result.get("type") in (kind, "pairwise")]
    if item.kind == "spans":
        return sorted([*offsets(item.text, value, where), label] for value in values for label in value["labels"])
    if not values:
        return None
    value = values[-1].get("text", values[-1].get("choices", values[-1].get("selected")))
    if isinstance(value, list) and len(value) > 1 and item.kind != "answers":
        raise UserError(f"{where} has several choices, {', '.join(value)}; an item has one.")
    return (value[-1] if value else None) if isinstance(value, list) else value


def offsets(text: str, value: Mapping[str, Any], where: str) -> list[int]:
    """[start, end] in characters. Where a text has characters beyond U+FFFF, a browser may have counted these twice."""
    start, end, quoted = value["start"], value["end"], value.get("text")
    if quoted is None or text[start:end] == quoted:
        return [start, end]
    units = text.encode("utf-16-le")
    try:
        before, inside = units[: 2 * start].decode("utf-16-le"), units[2 * start : 2 * end].decode("utf-16-le")
    except UnicodeDecodeError:
        before = inside = ""
    if inside == quoted:
        return [len(before), len(before) + len(inside)]
    raise UserError(f"{where}: characters {start} to {end} are not {quoted!r}; its text was changed after the export.")
