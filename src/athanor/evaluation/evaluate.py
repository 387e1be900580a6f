"""The job that measures one model: loads it once, runs tasks on it, and writes results.json.

    {"model": {"name", "fingerprint"},
     "metrics": [{"name", "slice": {"language": "en", ...}, "value", "low", "high", "n", "unit", "better",
                  "contamination"?: {"share", "judged", "clean": {"value", "low", "high", "n"} or null}}],
     "per_item": {name: {"ids", "values", "slices", "weights"?}},
     "samples": [{"id", "prompt", "response", "answer", "correct", "language", "family", "level"}]}

Intervals are at 95% (`athanor.evaluation.statistics`); by the values of items, models are compared pairwise.
"""

import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from athanor.corpus.contamination import Runs
from athanor.errors import UserError
from athanor.evaluation.contamination import Contamination, training_bytes
from athanor.evaluation.measurement import Measurement, Outcome
from athanor.evaluation.subject import Subject
from athanor.runs.store import open_run

if TYPE_CHECKING:
    from athanor.runs.context import RunContext

MOST_BYTES = 200_000_000
MOST_TELLING = ("exact_match", "preference_accuracy", "bits_per_byte")
Task = Callable[[Subject], Outcome]


class Evaluation:
    """Measures a trained model.

    Args:
        model: directory of its training run.
        tasks: by name or in a list; see the other modules of this package. Two tasks must not measure the same metric.
        contamination: find how many items of each task are in the text that the model was trained on, and its score on
            the others. None does so where that text takes at most 200 MB on disk.
        n, characters: words, or characters of a Chinese text, in a row that an item and that text share.
    """

    def __init__(
        self,
        model: str,
        tasks: dict[str, Any] | list[Any],
        contamination: bool | None = None,
        n: int = 13,
        characters: int = 13,
    ):
        self.model = model
        self.contamination = contamination
        self.runs = Runs(n, characters, min(n, Runs().minimum), min(characters, Runs().minimum_characters))
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
        measurements: list[Measurement] = []
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
                measurements.append(measurement)
                per_item[measurement.name] = measurement.per_item()
        self.attach(measurements, records, run)
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

    def attach(self, measurements: list[Measurement], records: list[dict[str, Any]], run: "RunContext") -> None:
        """What of the measured items the model has been trained on, to the record of each score."""
        items = [item for measured in measurements for item in measured.items]
        try:
            model = open_run(self.model)
            size = training_bytes(model)
            if not size or not (size <= MOST_BYTES if self.contamination is None else self.contamination):
                return
            run.progress.stage("contamination")
            found = Contamination(model, items, self.runs)
        except UserError as error:  # text that was trained on is gone or damaged
            if self.contamination:
                raise
            logging.getLogger("athanor").warning("contamination is not measured: %s", error)
            return
        named = {measured.name: measured for measured in measurements}
        for record in records:
            if (overlap := found.of(named[record["name"]], record["slice"])) is not None:
                record["contamination"] = overlap


def device_of(accelerator: str) -> str:
    """The torch device of a cluster's `accelerator`."""
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(
            f"cluster.accelerator={accelerator} but no GPU can be used here; set cluster.accelerator=cpu or auto"
        )
    return "cuda" if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() else "cpu"
