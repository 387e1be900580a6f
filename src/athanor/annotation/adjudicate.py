"""One label for each item out of what several people said, and the items on which somebody has to decide."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from athanor.annotation.items import Item
from athanor.annotation.project import Project


class Decided(NamedTuple):
    """labels: by item. disputed: annotated items without a label. open: items that too few annotated."""

    labels: dict[str, Any]
    disputed: list[str]
    open: list[str]


def adjudicate(project: Project, adjudicator: str | None = None, minimum: int = 1, gold: str = "gold") -> Decided:
    """What most annotators said: of classes, pairs and answers more than half of them, of spans each span by itself.

    A span that exactly half of them marked leaves its whole text in dispute.

    Args:
        adjudicator: an annotator whose word is final.
        minimum: annotators that an item takes, unless the adjudicator decided it.
        gold: an annotator who judges labels and makes none.
    """
    decided = Decided({}, [], [])
    for identity in project.items:
        said = {who: v for who, v in project.annotations.get(identity, {}).items() if who != gold}
        if adjudicator in said:
            decided.labels[identity] = said[adjudicator]
        elif len(said) < max(minimum, 1):
            decided.open.append(identity)
        elif (found := majority(list(said.values()), project.kind == "spans")) is None:
            decided.disputed.append(identity)
        else:
            decided.labels[identity] = found
    return decided


def majority(values: list[Any], spans: bool) -> Any:
    """None where there is none."""
    if not spans:
        value, count = Counter(values).most_common(1)[0]
        return value if 2 * count > len(values) else None
    counts = Counter(tuple(span) for value in values for span in value)
    if any(2 * count == len(values) for count in counts.values()):
        return None
    return sorted(list(span) for span, count in counts.items() if 2 * count > len(values))


def records(project: Project, labels: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The labelled items as training data: messages; prompt, chosen and rejected; text and label; text and spans. A
    pair that is a tie gives none.
    """
    for identity, value in labels.items():
        if (made := record(project.items[identity], value)) is not None:
            yield {"id": identity, **made}


def record(item: Item, value: Any) -> dict[str, Any] | None:
    if item.kind == "answers":
        return {"messages": [*item.prompt, {"role": "assistant", "content": value}]}
    if item.kind == "pairs":
        left, right = item.answers
        chosen, rejected = (left, right) if value == "left" else (right, left)
        return None if value == "tie" else {"prompt": item.prompt, "chosen": chosen, "rejected": rejected}
    return {"text": item.text, "label" if item.kind == "classes" else "spans": value}
