"""Greedy answers to held-out questions, right where they equal the expected answer."""

from typing import Any

from athanor.data.chat import render_prompts
from athanor.data.formats import read_records, to_prompt
from athanor.errors import UserError
from athanor.evaluation.measurement import Measurement, Outcome, described
from athanor.evaluation.subject import Subject


class ExactMatch:
    """Share of answers equal to the record's `answer`, both stripped of white space at the ends.

    Args:
        files: JSON Lines with a prompt (any format of `athanor.data.formats`) and `answer`; `id`, `language`, `family`
            and `level` are used where given.
        max_new_tokens: an answer longer than this is cut off, and so wrong.
        questions: at most so many, evenly spread over the files; None for all.
        samples: answers to keep in the results, for each language and family.
    """

    def __init__(self, files: list[str], max_new_tokens: int = 32, questions: int | None = None, samples: int = 2):
        self.files, self.max_new_tokens, self.questions, self.samples = files, max_new_tokens, questions, samples

    def __call__(self, subject: Subject) -> Outcome:
        subject.require_language_model("exact match", ("decoder", "encoder-decoder"))
        records = spread(list(read_records(self.files)), self.questions)
        for where, record in records:
            if not isinstance(record.get("answer"), (str, int, float)):
                raise UserError(f"{where} has no `answer` to compare with; exact match needs one in every record")
        messages = [to_prompt(record, where) for where, record in records]
        prompts = render_prompts(messages, subject.tokenizer)
        keep = subject.fitting([len(p) for p in prompts], [where for where, _ in records], self.max_new_tokens)
        records, messages, prompts = [records[i] for i in keep], [messages[i] for i in keep], [prompts[i] for i in keep]
        answers = subject.answers(prompts, max_new_tokens=self.max_new_tokens)
        said = [subject.tokenizer.decode(answer) for answer in answers]
        right = [
            # an answer that fills its room was cut off: what follows is unknown
            float(len(answer) < self.max_new_tokens and text.strip() == str(record["answer"]).strip())
            for answer, text, (_, record) in zip(answers, said, records)
        ]
        items = described(records)
        samples, taken = [], dict[tuple, int]()
        for item, asked, text, (_, record), value in zip(items, messages, said, records, right):
            cell = (item.get("language"), item.get("family"))
            taken[cell] = taken.get(cell, 0) + 1
            if taken[cell] <= self.samples:
                samples.append(
                    {key: value for key, value in item.items() if key != "texts"}
                    | {
                        "prompt": _shown(asked),
                        "response": text,
                        "answer": str(record["answer"]),
                        "correct": value == 1,
                    }
                )
        return Outcome([Measurement("exact_match", items, right, "fraction", "higher")], samples)


def spread(records: list, most: int | None) -> list:
    """At most `most` of the records, evenly spread."""
    if not records:
        raise UserError("the files of this evaluation hold no records; correct their names")
    if most is not None and most < 1:
        raise UserError(f"an evaluation on {most} records says nothing; ask for at least 1, or null for all")
    count = len(records) if most is None else min(most, len(records))
    return [records[i * len(records) // count] for i in range(count)]


def _shown(messages: list[Any]) -> str:
    """A prompt as a person reads it: the question alone, or all turns."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
