"""How much of what a model is measured on was in the text it was trained on, and its score on what was not.

The text is found through the manifests: the training split of the documents behind the shards that the model, and the
models it started from, were trained on, and the records of their instructions or preferences. An item overlaps where a
run of 13 words of it (see `athanor.corpus.contamination`) is in that text; an item of fewer than 8 words cannot be
judged so and counts for neither side.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from athanor.corpus.contamination import Index, Runs, passages
from athanor.corpus.documents import FILENAME, documents_of
from athanor.corpus.shards import WriteShards
from athanor.data.formats import read_records
from athanor.evaluation.measurement import Measurement
from athanor.evaluation.statistics import bootstrap, interval
from athanor.runs.lineage import locate
from athanor.runs.run import Run


def trainings(run: Run) -> Iterator[Run]:
    """The run and the trainings that it started from."""
    yield run
    for entry in run.manifest["inputs"].values():
        if entry["kind"] == "run" and (above := locate(entry, run)).manifest["kind"] == "train":
            yield from trainings(above)


def training_files(run: Run) -> Iterator[tuple[Path, WriteShards | None]]:
    """(directory with documents, how they were split) or (file of records, None) of all that a model was trained on."""
    for training in trainings(run):
        for entry in training.manifest["inputs"].values():
            if entry["kind"] != "run":
                continue
            shards = locate(entry, training)
            job = (shards.manifest.get("config") or {}).get("job") or {}
            if not job.get("_target_", "").endswith(".WriteShards"):
                continue
            writer = WriteShards(**{key: value for key, value in job.items() if key != "_target_"})
            for given in shards.manifest["inputs"].values():
                if given["kind"] == "run" and FILENAME in (above := locate(given, shards)).manifest["outputs"]:
                    yield above.directory, writer
        data = (training.manifest.get("config") or {}).get("data") or {}
        for text in passages({key: value for key, value in data.items() if "validation" not in key}):
            if ".json" in Path(text).name and Path(text).is_file():
                yield Path(text), None


def training_texts(run: Run) -> Iterator[str]:
    seen = set()
    for path, writer in training_files(run):
        if path in seen:
            continue
        seen.add(path)
        if writer is None:
            for _, record in read_records([str(path)]):
                yield from passages(record)
        else:
            yield from (d.text for d in documents_of(path) if writer.split_of(d) == "train")


def training_bytes(run: Run) -> int:
    """Of the files, as they lie on disk; 0 where the manifests name none."""
    paths = {path / FILENAME if path.is_dir() else path for path, _ in training_files(run)}
    return sum(path.stat().st_size for path in paths)


class Contamination:
    """Which of the items with "texts" are in the training text of a model."""

    def __init__(self, run: Run, items: Sequence[dict[str, Any]], runs: Runs):
        self.runs = runs
        index = Index(runs)
        self.judged: set[tuple[str, ...]] = set()
        for key in {tuple(item["texts"]) for item in items if item.get("texts")}:
            if sum([index.add("", text) for text in key]):
                self.judged.add(key)
        found: set[str] = set()
        if self.judged:
            for text in training_texts(run):
                found.update(index.shared(text))
        self.seen = {key for key in self.judged if any(self.has(found, text) for text in key)}

    def has(self, found: set[str], text: str) -> bool:
        return not found.isdisjoint(self.runs.of(text)[1])

    def of(self, measurement: Measurement, slice: dict[str, Any]) -> dict[str, Any] | None:
        """What a record of a metric says of it: {"share", "judged", "clean": {"value", "low", "high", "n"} or None}.

        `clean` is the metric on the judged items that do not overlap, where some do. None where none can be judged, and
        for slices other than languages.
        """
        if set(slice) - {"language"}:
            return None
        own = [i for i, item in enumerate(measurement.items) if all(item.get(key) == slice[key] for key in slice)]
        keys = {i: tuple(measurement.items[i].get("texts", ())) for i in own}
        judged = [i for i in own if keys[i] in self.judged]
        if not judged:
            return None
        clean = [i for i in judged if keys[i] not in self.seen]
        found: dict[str, Any] = {"share": 1 - len(clean) / len(judged), "judged": len(judged), "clean": None}
        if clean and len(clean) < len(judged):
            estimate = interval if measurement.unit == "fraction" else bootstrap
            weights = measurement.weights
            of_clean = estimate([measurement.values[i] for i in clean], weights and [weights[i] for i in clean])
            value, low, high = (None if number != number else float(f"{number:.7g}") for number in of_clean[:3])
            found["clean"] = {"value": value, "low": low, "high": high, "n": of_clean.n}
        return found
