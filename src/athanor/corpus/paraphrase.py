"""Instructions in other words around them: templates, for fine-tuning that does not hang on one wording.

A paraphrase has the answer of its origin, `origin`, and `split_key`, by which `athanor.data` puts it on the side of its
origin whatever its own words are.
"""

import json
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from athanor.corpus.units import UNSPACED_UNIT, units
from athanor.errors import UserError

if TYPE_CHECKING:
    from athanor.runs.context import RunContext

FILENAME = "records.jsonl"
PLACE = "{instruction}"
TEMPLATES = {
    "en": [
        "Here is a task for you.\n\n{instruction}",
        "I need help with the following: {instruction}",
        "Please answer as well as you can.\n{instruction}",
        "{instruction}\n\nTake care to answer all of it.",
        "Question:\n{instruction}\n\nAnswer:",
    ],
    "zh": [
        "请完成下面的任务。\n\n{instruction}",
        "我想请教一下：{instruction}",
        "请尽你所能回答。\n{instruction}",
        "{instruction}\n\n请完整地作答。",
        "问题：\n{instruction}\n\n回答：",
    ],
}


class ParaphraseInstructions:
    """Writes records.jsonl: each record of the files as messages, followed by its paraphrases.

    Args:
        files: JSON Lines, in any format of instructions that `athanor.data.formats` reads.
        copies: paraphrases of each, at most one by a template.
        templates: by language (en, zh), texts with {instruction} in them; ours if None. The first turn of the user is
            put in, by the language of most of its words.
    """

    def __init__(self, files: list[str], seed: int, copies: int = 1, templates: dict[str, list[str]] | None = None):
        self.files, self.seed, self.copies = files, seed, copies
        self.templates = templates or TEMPLATES
        if unknown := set(self.templates) - {"en", "zh"}:
            raise UserError(f"ParaphraseInstructions: templates are for en and zh, not {min(unknown)}.")
        for template in (text for texts in self.templates.values() for text in texts):
            if template.count(PLACE) != 1:
                raise UserError(f"ParaphraseInstructions: {template!r} must have {PLACE} once.")
        if copies < 1:
            raise UserError(f"ParaphraseInstructions: copies {copies} must be at least 1.")

    def run(self, run: "RunContext") -> dict[str, float]:
        from athanor.data.formats import read_records, to_messages

        origins = made = 0
        with run.temporary(FILENAME) as path, path.open("w", encoding="utf-8", newline="\n") as file:
            for where, record in read_records(self.files):
                identity = str(record.get("id", where))
                messages = to_messages(record, where)
                rows = [{"id": identity, "messages": messages}, *self.paraphrases(identity, messages)]
                for row in rows:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                origins, made = origins + 1, made + len(rows) - 1
        run.progress.update(1, 1)
        return {"origins": float(origins), "paraphrases": float(made)}

    def paraphrases(self, identity: str, messages: list[Any]) -> Iterator[dict[str, Any]]:
        place = next((n for n, message in enumerate(messages) if message["role"] == "user"), None)
        if place is None:
            return
        text = messages[place]["content"]
        templates = self.templates.get(language(text), [])
        key = split_key(messages[:-1])
        chosen = random.Random(f"{self.seed}\0{identity}").sample(templates, min(self.copies, len(templates)))
        for number, template in enumerate(chosen, 1):
            turn = {**messages[place], "content": template.replace(PLACE, text)}
            turns = [*messages[:place], turn, *messages[place + 1 :]]
            yield {
                "id": f"{identity}#paraphrase-{number}", "messages": turns, "origin": identity,
                "augmented": "paraphrase", "split_key": key,
            }  # fmt: skip


def split_key(prompt: list[Any]) -> str:
    """By which `athanor.data.base.RecordData` splits records: their prompt."""
    return json.dumps(prompt, ensure_ascii=False)


def language(text: str) -> str:
    parts = units(text)
    return "zh" if 2 * sum(map(bool, map(UNSPACED_UNIT.match, parts))) > len(parts) else "en"
