"""What people are asked, and what they said.

An item is one question, made of a record in any format that the project reads; an annotation is one person's answer to
it. Of each kind an item has, and a person gives:

    answers   a prompt, perhaps with an answer to improve      the answer, a text
    pairs     a prompt and two answers, left and right         "left", "right" or "tie"
    classes   a text                                           one of the labels
    spans     a text                                           [[start, end, label]], characters, end not included

Which answer of a pair is on the left is decided by hashes of the texts, so that neither the place nor the file tells
what somebody preferred before.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from athanor.corpus.files import whole
from athanor.corpus.units import UNSPACED_UNIT
from athanor.data.chat import Message
from athanor.data.formats import read_records, to_messages, to_pair, to_prompt
from athanor.errors import UserError

Kind = Literal["answers", "pairs", "classes", "spans"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SIDES = ("left", "right", "tie")
Spans = list[list[Any]]  # [start, end, label]


class Item(NamedTuple):
    """label: what the record says already, as an annotation would; None where it says nothing."""

    id: str
    kind: Kind
    text: str = ""
    prompt: list[Message] = []  # noqa: RUF012 - never changed in place
    answers: list[str] = []  # noqa: RUF012
    label: Any = None


class Annotation(NamedTuple):
    id: str  # of the item
    annotator: str
    value: Any


def digest(*parts: Any) -> str:
    text = json.dumps(parts, ensure_ascii=False)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def items_of(files: Sequence[str], kind: Kind, text_key: str = "text", label_key: str = "label") -> Iterator[Item]:
    """The items of JSON Lines files.

    Raises:
        UserError: a record is not of the kind, or two have one identity.
    """
    seen: dict[str, str] = {}
    for where, record in read_records(files):
        item = item_of(record, where, kind, text_key, label_key)
        if item.id in seen:
            raise UserError(f"{where} has the id {item.id!r} of {seen[item.id]}; remove one or give it another id.")
        seen[item.id] = where
        yield item


def item_of(record: dict[str, Any], where: str, kind: Kind, text_key: str, label_key: str) -> Item:
    if kind == "answers":
        prompt = to_prompt(record, where)
        try:
            label = to_messages(record, where)[-1]["content"]
        except UserError:
            label = None
        item = Item("", kind, prompt=prompt, answers=[label] if label else [], label=label)
    elif kind == "pairs":
        prompt, chosen, rejected = to_pair(record, where)
        if chosen == rejected:
            raise UserError(f"{where} has the same answer twice; remove it.")
        answers = sorted((chosen, rejected), key=lambda answer: digest(prompt, answer))
        item = Item("", kind, prompt=prompt, answers=answers, label=SIDES[answers.index(chosen)])
    elif kind == "classes":
        label = record.get(label_key)
        item = Item("", kind, text_of(record, where, text_key), label=None if label is None else str(label))
    elif "tokens" in record and "tags" in record:
        text, spans = joined(record["tokens"], record["tags"], where)
        item = Item("", kind, text, label=spans)
    else:
        text = text_of(record, where, text_key)
        found = record.get("spans", record.get("entities", record.get(label_key)))
        item = Item("", kind, text, label=None if found is None else checked_spans(found, text, where))
    identity = record.get("id")
    known = isinstance(identity, str | int) and not isinstance(identity, bool) and str(identity)
    return item._replace(id=str(identity) if known else digest(item.text, item.prompt, sorted(item.answers)))


def text_of(record: dict[str, Any], where: str, key: str) -> str:
    if not isinstance(text := record.get(key), str) or not text:
        raise UserError(
            f"{where} has no text in the field {key!r}; it has {', '.join(sorted(record))}: say --text-key."
        )
    return text


def checked_spans(found: Any, text: str, where: str) -> Spans:
    """[start, end, label] lists, or mappings with these keys, in order and each once."""
    spans = []
    for span in found if isinstance(found, list) else [None]:
        if isinstance(span, dict):
            label = span.get("label", span.get("type"))
            span = [span.get("start", span.get("start_offset")), span.get("end", span.get("end_offset")), label]
        if not isinstance(span, list | tuple) or len(span) != 3 or not all(isinstance(n, int) for n in span[:2]):
            raise UserError(f"{where}: {str(found)[:60]} is no list of spans [start, end, label]; correct it.")
        start, end, label = span
        if not 0 <= start < end <= len(text):
            raise UserError(f"{where}: a span from {start} to {end} is not in its text of {len(text)} characters.")
        spans.append([start, end, str(label)])
    return sorted(map(list, {tuple(span) for span in spans}))


def joined(tokens: list[str], tags: list[str], where: str) -> tuple[str, Spans]:
    """Text and spans of tokens with BIO tags; tokens of Chinese and the like are joined without spaces."""
    if len(tokens) != len(tags) or not tokens:
        raise UserError(f"{where} has {len(tokens)} tokens and {len(tags)} tags; they must be equally many.")
    space = "" if 2 * sum(bool(UNSPACED_UNIT.match(token)) for token in tokens) > len(tokens) else " "
    spans: Spans = []
    position, inside = 0, False
    for token, tag in zip(tokens, tags):
        mark, _, label = tag.partition("-")
        if mark == "I" and inside and spans[-1][2] == label:
            spans[-1][1] = position + len(token)
        elif mark in ("B", "I"):
            spans.append([position, position + len(token), label])
        inside = mark in ("B", "I")
        position += len(token) + len(space)
    return space.join(tokens), spans


def sample(items: Iterable[Item], count: int | None, seed: int) -> list[Item]:
    """So many of them, drawn by hash, in their order; a larger sample of the same seed holds a smaller one."""
    items = list(items)
    if count is None:
        return items
    drawn = {item.id for item in sorted(items, key=lambda item: digest(seed, item.id))[:count]}
    return [item for item in items if item.id in drawn]


def as_text(prompt: Sequence[Message]) -> str:
    """A prompt for tools that show plain text."""
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in prompt)


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    with whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
