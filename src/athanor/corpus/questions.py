"""Instruction pairs from the user's own Python: "What does shutil.move do?" and the first sentence of its docstring.

Split by module, so that validation asks about modules no training answer came from.
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from athanor.corpus.docstrings import docstrings
from athanor.corpus.sources import module_name
from athanor.errors import UserError
from athanor.split import held_out

QUESTIONS = ("What does {} do?", "Explain {}.", "What is {} for?")


class StandardLibraryQuestions:
    """The job: writes questions_train.jsonl and questions_validation.jsonl, records of `messages`.

    Args:
        files: the *.py files of `{files: python-stdlib}`.
        max_words: longer first sentences are left out.
        validation_fraction: of the modules.
    """

    def __init__(self, files: list[str], max_words: int = 16, validation_fraction: float = 0.05):
        self.files, self.max_words, self.validation_fraction = files, max_words, validation_fraction

    def run(self, run: Any) -> dict[str, float]:
        counts: Counter[str] = Counter()
        with run.temporary("questions_train.jsonl") as train, run.temporary("questions_validation.jsonl") as validation:
            with Path(train).open("w", encoding="utf-8") as a, Path(validation).open("w", encoding="utf-8") as b:
                for done, path in enumerate(sorted(self.files), 1):
                    module = module_name(path)
                    split, file = ("validation", b) if held_out(module, self.validation_fraction) else ("train", a)
                    for record in questions(path, module, self.max_words):
                        counts[split] += 1
                        file.write(json.dumps(record, ensure_ascii=False) + "\n")
                    run.progress.update(done, len(self.files))
            if not counts["train"]:
                raise UserError("None of the Python files has a documented function; give inputs.stdlib other files.")
        return {f"questions_{split}": float(count) for split, count in counts.items()}


def questions(path: str, module: str, max_words: int) -> list[dict[str, Any]]:
    """The usable pairs of a module: public names whose docstring opens with a short sentence of its own."""
    try:
        entries = list(docstrings(Path(path).read_text("utf-8"), module))
    except (SyntaxError, ValueError, RecursionError):  # test data, or another version's syntax
        return []
    records: list[dict[str, Any]] = []
    for entry in entries:
        first = re.split(r"(?<=[.!?])\s", " ".join(entry.text.split("\n\n")[0].split()))[0]
        words = first.split()
        hidden = any(part.startswith("_") for part in entry.name.split(".")[1:])
        if entry.kind == "module" or hidden or not 3 <= len(words) <= max_words or "(" in words[0]:
            continue
        question = QUESTIONS[len(records) % len(QUESTIONS)].format(entry.name)
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": first}]
        records.append({"id": entry.name, "family": "questions", "language": "en", "messages": turns})
    return records
