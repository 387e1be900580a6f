"""An experiment's measured result as a file beside it, from which alone it can be made again and compared.

`experiments/NAME.result.json` holds the config of the experiment and of all that it reads from (`config.portable`), and
of every seed the final metrics, a digest of what each step logged, and the hashes of the outputs, of weights tensor by
tensor. Besides, what it was made with: versions, hardware, code. It holds no path of a machine and no host's name.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from athanor import catalog, config
from athanor.errors import UserError
from athanor.runs import store
from athanor.runs.context import METRICS
from athanor.runs.files import write_json
from athanor.runs.run import Run
from athanor.sweeps.statistics import mean_interval

FORMAT = 1
SUFFIX = ".result.json"
POINTS = 100  # of a metric's values that are kept, to say how far apart two runs are
CLOCKED = re.compile(r"(^|/)(tokens_per_second|data_wait|mfu|seconds|time)$")  # metrics that tell of time


def record(name: str, overrides: Sequence[str] = (), seeds: Sequence[int] = ()) -> Path:
    """Write the result of an experiment's finished runs; returns the file.

    Args:
        seeds: one run each; none: the run of the experiment as it is.

    Raises:
        UserError: a run is not finished or damaged, or the experiment cannot be told without a path of this machine.
    """
    chosen = [(*overrides, f"seed={seed}") for seed in seeds] or [tuple(overrides)]
    experiments = [config.load(name, more) for more in chosen]
    for experiment in experiments:
        experiment.validate()
    if missing := [experiment for experiment in experiments if not store.is_finished(experiment)]:
        lines = [experiment.command for experiment in missing]
        raise UserError("\n  - ".join((f"{name} is not measured yet; make its runs first:", *lines)))
    runs = [Run(experiment.directory) for experiment in experiments]
    if harmed := [f"{run.id}: {harm}" for run in runs for harm in run.damage()]:
        raise UserError(f"{harmed[0]}; make it again before it is recorded")
    documents: config.Documents = {}
    for experiment in experiments:
        documents |= config.portable(experiment)
    own = {config.reference(experiment) for experiment in experiments}
    upstream = {config.reference(above): above for experiment in experiments for above in experiment.upstream()}
    manifest = runs[0].manifest
    result = {
        "format": FORMAT,
        "experiment": name,
        "about": catalog.find(name).description,
        "metrics": summary([run.metrics for run in runs]),
        "seconds": round(sum(run.manifest["seconds"] for run in runs), 1),
        "environment": {
            "packages": manifest["packages"],
            "hardware": manifest["hardware"],
            "code": {key: manifest["code"].get(key) for key in ("commit", "diff_sha256")},
        },
        "runs": [
            {"reference": config.reference(experiment), "seed": experiment.config.get("seed"), **measured(run)}
            for experiment, run in zip(experiments, runs)
        ],
        "inputs": {
            key: {
                "outputs": Run(above.directory).outputs_digest if store.is_finished(above) else None,
                "files": _files(above),
            }
            for key, above in upstream.items()
            if key not in own
        },
        "files": {key: found for experiment in experiments for key, found in _files(experiment).items()},
        "experiments": documents,
    }
    path = catalog.project() / "experiments" / f"{name}{SUFFIX}"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    return path


def read(path: Path) -> dict[str, Any]:
    """A result file.

    Raises:
        UserError: it is none, or one of another format.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no result that `athanor record` wrote: {error}") from None
    keys = {"format", "experiment", "environment", "runs", "inputs", "experiments"}
    if not isinstance(result, dict) or (missing := sorted(keys - set(result))):
        what = f": it has no {missing[0]!r}" if isinstance(result, dict) else ""
        raise UserError(f"{path} is no result that `athanor record` wrote{what}")
    if result["format"] != FORMAT:
        raise UserError(
            f"{path} has format {result['format']}, and this athanor reads {FORMAT}; use the one it is from"
        )
    return result


def summary(metrics: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Of each final metric that is no time: the mean over seeds, its 95% interval (t; null for one seed), and n."""
    found = {}
    for name in metrics[0]:
        values = [float(one[name]) for one in metrics if name in one]
        if CLOCKED.search(name) or not all(map(math.isfinite, values)):
            continue
        mean = mean_interval(values)
        low, high = (bound if math.isfinite(bound) else None for bound in (mean.low, mean.high))
        found[name] = {"mean": mean.value, "low": low, "high": high, "seeds": mean.n}
    return found


def measured(run: Run) -> dict[str, Any]:
    """What of a finished run another one has to equal.

    Returns:
        {"metrics", "steps": [[step, digest]], "values": {metric: [[step, value]]}, "outputs": {file: sha256},
        "tensors": {file: {tensor: sha256}}}
    """
    events = _events(run.directory / METRICS)
    values: dict[str, list[list[float]]] = {}
    for step, logged in events.items():
        for name, value in logged.items():
            values.setdefault(name, []).append([step, value])
    return {
        "fingerprint": run.fingerprint,
        "metrics": {k: v for k, v in run.metrics.items() if not CLOCKED.search(k)},
        "steps": [[step, _digest(logged)] for step, logged in events.items()],
        "values": {name: series[:: math.ceil(len(series) / POINTS)] for name, series in values.items()},
        "outputs": {name: entry["sha256"] for name, entry in run.manifest["outputs"].items()},
        "tensors": {
            name: dict(tensors(run.directory / name))
            for name in run.manifest["outputs"]
            if name.endswith(".safetensors")
        },
    }


def tensors(path: Path) -> Iterator[tuple[str, str]]:
    """(name, SHA-256 of type, shape and bytes) of each tensor of a safetensors file, in the order of the file."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
        for name, entry in sorted(entries, key=lambda item: item[1]["data_offsets"][0]):
            begin, end = entry["data_offsets"]
            file.seek(8 + size + begin)
            digest = hashlib.sha256(json.dumps([entry["dtype"], entry["shape"]]).encode())
            digest.update(file.read(end - begin))
            yield name, digest.hexdigest()


def _events(path: Path) -> dict[int, dict[str, float]]:
    """Step -> what was logged of it, times left out; of a step logged again the last value."""
    found: dict[int, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        event = json.loads(line)
        if isinstance(step := event.pop("step", None), int):
            logged = {name: value for name, value in event.items() if name != "time" and not CLOCKED.search(name)}
            if logged:
                found.setdefault(step, {}).update(logged)
    return dict(sorted(found.items()))


def _digest(logged: Mapping[str, float]) -> str:
    return hashlib.sha256(json.dumps(sorted(logged.items())).encode()).hexdigest()[:12]


def _files(experiment: config.Experiment) -> dict[str, str]:
    """The fingerprints of the raw files that it reads, by what they are called in its config."""
    return {entry.source: entry.fingerprint for entry in experiment.inputs.values() if entry.kind == "files"}
