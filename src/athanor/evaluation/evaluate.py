"""The job that measures one model: loads it once, runs tasks on it, and writes results.json.

    {"model": {"name", "fingerprint"},
     "metrics": [{"name", "slice": {"language": "en", ...}, "value", "low", "high", "n", "unit", "better"}],
     "per_item": {name: {"ids", "values", "slices", "weights"?}},
     "samples": [{"id", "prompt", "response", "answer", "correct", "language", "family", "level"}]}

Intervals are at 95% (`athanor.evaluation.statistics`); by the values of items, models are compared pairwise.
"""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from athanor.errors import UserError
from athanor.evaluation.measurement import Outcome
from athanor.evaluation.subject import Subject

if TYPE_CHECKING:
    from athanor.runs.context import RunContext

MOST_TELLING = ("exact_match", "preference_accuracy", "bits_per_byte")
Task = Callable[[Subject], Outcome]


class Evaluation:
    """Measures a trained model.

    Args:
        model: directory of its training run.
        tasks: by name or in a list; see the other modules of this package. Two tasks must not measure the same metric.
    """

    def __init__(self, model: str, tasks: dict[str, Any] | list[Any]):
        self.model = model
        self.tasks: dict[str, Task] = (
            tasks if isinstance(tasks, dict) else {type(task).__name__: task for task in tasks}
        )
        if not self.tasks:
            raise UserError(
                "job.tasks is empty; name at least one task, such as /task@job.tasks.exact_match: exact_match"
            )

    def run(self, run: "RunContext") -> dict[str, float]:
        cluster = run.experiment.config.get("cluster", {})
        if cluster.get("threads"):
            torch.set_num_threads(cluster["threads"])
        device = device_of(cluster.get("accelerator", "auto"))
        subject = Subject(self.model, device, lambda done, total: run.progress.update(done, total))
        records: list[dict[str, Any]] = []
        per_item: dict[str, dict] = {}
        samples: list[dict] = []
        for name, task in self.tasks.items():
            run.progress.stage(f"{name.replace('_', ' ')} of {subject.name}")
            outcome = task(subject)
            samples += outcome.samples
            for measurement in outcome.measurements:
                if measurement.name in per_item:
                    raise UserError(
                        f"two tasks measure {measurement.name}; put one of them into an evaluation of its own"
                    )
                records += measurement.records()
                per_item[measurement.name] = measurement.per_item()
        results = {
            "model": {"name": subject.name, "fingerprint": subject.fingerprint},
            "metrics": records,
            "per_item": per_item,
            "samples": samples,
        }
        with run.temporary("results.json") as path:
            path.write_text(json.dumps(results, ensure_ascii=False) + "\n", encoding="utf-8")
        plain = {record["name"]: record["value"] for record in records if not record["slice"]}
        by_language = {
            f"{record['name']}/{record['slice']['language']}": record["value"]
            for record in records
            if set(record["slice"]) == {"language"}
        }
        first = {name: plain[name] for name in MOST_TELLING if name in plain}
        return first | plain | by_language


def device_of(accelerator: str) -> str:
    """The torch device of a cluster's `accelerator`."""
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(
            f"cluster.accelerator={accelerator} but no GPU can be used here; set cluster.accelerator=cpu or auto"
        )
    return "cuda" if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() else "cpu"
