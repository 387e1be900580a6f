"""Make a recorded result again from its file alone, and say how the two compare.

What the experiment reads is made like any run, where it is not there yet. The runs themselves are made afresh under
`<runs>/.reproduce` and removed if they are the same. Verdicts, the best first: `bit-identical`, `within tolerance`
(every metric of every step within it, the weights not bit for bit), `different`, and `inputs changed`, after which
nothing is rerun.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from athanor import config
from athanor.config import Experiment
from athanor.errors import UserError
from athanor.progress import Progress, clock
from athanor.reproduction.record import measured, read
from athanor.runs import manifest as facts
from athanor.runs import store
from athanor.runs.context import rank
from athanor.runs.reproduce import VERDICTS
from athanor.runs.run import Run

TOLERANCE = 0.01  # largest |a - b| over largest |a|, of any metric that was logged
EXACT, WITHIN, DIFFERENT, CHANGED = VERDICTS
EXIT_CODES = {EXACT: 0, WITHIN: 3, DIFFERENT: 1, CHANGED: 1}


class Seed(NamedTuple):
    """One recorded run and its rerun."""

    reference: str
    verdict: str
    text: str  # the verdict, in words
    details: list[str]


class Result(NamedTuple):
    """A recorded result and what became of it."""

    name: str
    verdict: str
    seeds: list[Seed]
    environment: list[str]  # how this machine and code differ from those of the record
    problems: list[str]  # why nothing was rerun
    seconds: float

    @property
    def text(self) -> str:
        """The verdict first, then the reasons."""
        lines = [f"{self.name}: {self.verdict}", *(f"  {problem}" for problem in self.problems)]
        for seed in self.seeds:
            lines += [f"  {seed.reference}: {seed.text}", *(f"    {detail}" for detail in seed.details)]
        lines += [f"  then and now: {text}" for text in self.environment]
        return "\n".join(lines + ([f"  rerun in {clock(self.seconds)}"] if self.seeds else []))


def reproduce(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    tolerance: float = TOLERANCE,
    first: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Rerun a result file's runs and compare.

    Args:
        overrides: of execution, such as `cluster=gpus`, for the runs themselves.
        tolerance: relative, of metrics.
        first: only the first seed.

    Raises:
        UserError: it is no such file, an input's file is missing, or a config suits today's code no longer.
    """
    result = read(path)
    progress = progress or Progress(quiet=True)
    documents, environment = result["experiments"], environment_changes(result["environment"])
    wanted = result["runs"][:1] if first else result["runs"]
    experiments = [config.load_portable(run["reference"], documents, overrides) for run in wanted]
    for experiment in experiments:
        experiment.validate()
    if problems := list(dict.fromkeys(p for one in zip(wanted, experiments) for p in _changes(result, *one))):
        return Result(result["experiment"], CHANGED, [], environment, problems, 0.0)

    upstream = {above.directory: above for experiment in experiments for above in experiment.upstream()}
    missing = {entry.directory: entry for one in experiments for entry in store.unfinished_inputs(one)}
    progress.plan([entry.name for entry in (*missing.values(), *experiments)])
    causes = []
    for directory, above in upstream.items():
        if directory in missing:
            store.execute(above, progress=progress)
        expected = result["inputs"].get(config.reference(above), {}).get("outputs")
        if expected not in (None, Run(directory).outputs_digest):
            causes.append(f"{config.reference(above)}, which it reads, came out with other bytes")
    started, seeds = time.monotonic(), []
    for recorded, experiment in zip(wanted, experiments):
        run, folder = _again(experiment, progress)
        seed = compare(recorded, run, tolerance=tolerance, causes=[*causes, *environment])
        if seed.verdict == EXACT:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            seed.details.append(f"the rerun is kept in {folder}")
        seeds.append(seed)
    worst = max((seed.verdict for seed in seeds), key=VERDICTS.index)
    return Result(result["experiment"], worst, seeds, environment, [], time.monotonic() - started)


def compare(recorded: dict[str, Any], run: Run, *, tolerance: float, causes: Sequence[str] = ()) -> Seed:
    """A recorded run with a finished one.

    Args:
        recorded: what `measured` said of the one.
        causes: what may explain a difference, the likeliest first.
    """
    now = measured(run)
    steps, steps_now = dict(recorded["steps"]), dict(now["steps"])
    apart = [step for step in sorted({*steps, *steps_now}) if steps.get(step) != steps_now.get(step)]
    tensor = _first_tensor(recorded["tensors"], now["tensors"])
    weights = set(recorded["tensors"])
    outputs = [
        name
        for name in sorted({*recorded["outputs"], *now["outputs"]})
        if name not in weights and recorded["outputs"].get(name) != now["outputs"].get(name)
    ]
    finals = [name for name in recorded["metrics"] if _gap(recorded["metrics"][name], now["metrics"].get(name))]
    because = f", likely because {causes[0]}" if causes else ""
    if not (apart or tensor or outputs or finals):
        count = sum(map(len, recorded["tensors"].values()))
        told = [f"logged steps {len(steps)}"] * bool(steps) + [f"tensors {count}"] * bool(count)
        return Seed(recorded["reference"], EXACT, ", ".join([EXACT, *told, f"files {len(recorded['outputs'])}"]), [])

    details = [f"other bytes: {name}" for name in outputs]
    details += [f"{name} was {recorded['metrics'][name]!r} and is {now['metrics'].get(name)!r}" for name in finals[:3]]
    first = f"first differing tensor {tensor}" if tensor else "all tensors the same"
    parts = ([first] if recorded["tensors"] else []) or [f"first differing file {name}" for name in outputs[:1]]
    worst, where = _worst(recorded, now)
    if not (apart or finals) and tensor:
        text = (
            f"different: every step is the same, yet {first}{because or ', likely because the weights or their hashes'}"
        )
        text += "" if because else " were changed after the training"
        return Seed(recorded["reference"], DIFFERENT, text, details)
    if worst <= tolerance and (apart or finals):
        hardware = [cause for cause in causes if cause.startswith(("cpu ", "gpus ", "cores ", "threads "))]
        why = f" (hardware differs: {'; '.join(hardware)})" if hardware else ""
        details.insert(0, ", ".join([f"from step {apart[0]}" if apart else "only in the final metrics", *parts]))
        return Seed(recorded["reference"], WITHIN, f"same within {worst:.1e} ({where}){why}", details)
    if apart or finals:
        step = f"from step {apart[0]}" if apart else "in the final metrics only"
        because = because or ", likely because the computation is not deterministic, or the file was changed"
        far = f"{where} is furthest apart, by {worst:.1e}" if where else ""
        return Seed(
            recorded["reference"],
            DIFFERENT,
            f"different {step}: {', '.join(parts)}{because}",
            [*([far] if far else []), *details],
        )
    because = because or ", likely because the job is not deterministic, or the file was changed"
    return Seed(recorded["reference"], DIFFERENT, f"different: {', '.join(parts)}{because}", details)


def environment_changes(recorded: dict[str, Any]) -> list[str]:
    """How this machine and code differ from a record's, the likeliest cause of a difference first."""
    packages, hardware, code = facts.packages(), facts.hardware(), facts.code()
    found = []
    for name in sorted(recorded["packages"].keys() | packages.keys(), key=lambda name: (name != "torch", name)):
        old, new = recorded["packages"].get(name), packages.get(name)
        if old != new and (name == "torch" or None not in (old, new)):
            found.append(f"{name} {old or 'absent'} -> {new or 'absent'}")
    for key in ("gpus", "cpu", "threads", "cores", "python", "platform"):
        if key in recorded["hardware"] and (old := recorded["hardware"][key]) != (new := hardware.get(key)):
            found.append(f"{key} {old or 'none'} -> {new or 'none'}")
    was = recorded["code"]
    if was["commit"] != code["commit"]:
        found.append(f"commit {(was['commit'] or 'none')[:12]} -> {(code['commit'] or 'none')[:12]}")
    if was["diff_sha256"] != code["diff_sha256"]:
        found.append(
            f"uncommitted changes {(was['diff_sha256'] or 'none')[:12]} -> {(code['diff_sha256'] or 'none')[:12]}"
        )
    return found


def _changes(result: dict[str, Any], recorded: dict[str, Any], experiment: Experiment) -> Iterator[str]:
    """Why an experiment is no longer the recorded one: its raw data, its config, or the version of a class."""
    if experiment.fingerprint == recorded["fingerprint"] == recorded["reference"].rpartition("@")[2]:
        return
    found = False
    wanted = {reference.rpartition("@")[0]: entry["files"] for reference, entry in result["inputs"].items()}
    wanted[experiment.name] = result.get("files", {})
    for entry in (*experiment.upstream(), experiment):
        for one in entry.inputs.values():
            expected = wanted.get(entry.name, {}).get(one.source)
            if one.kind == "files" and expected != one.fingerprint:
                found = True
                text = f"the files {one.source} that {entry.name} reads are others: {expected} -> {one.fingerprint}"
                yield text + (_library(result["environment"]) if one.source == "python-stdlib" else "")
    if not found:
        yield (
            f"its config has the fingerprint {experiment.fingerprint} and not {recorded['fingerprint']}: the file was "
            "changed, or a class that it names has another version in today's code"
        )


def _library(environment: dict[str, Any]) -> str:
    """What to do where the sources of this Python are not those of the record."""
    recorded = environment["hardware"].get("python", "another version")
    return (
        f"; they are the library of the Python that runs this, recorded with {recorded}: run it with the same build of "
        "that, or record a result of your own"
    )


def _again(experiment: Experiment, progress: Progress) -> tuple[Run, Path]:
    """The run made anew, where no run is looked for, with no logger but its own files."""
    root = Path(experiment.config["paths"]["runs"])
    folder = root / ".reproduce" / experiment.name / experiment.fingerprint
    if rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
    wanted = dict(experiment.config)
    if "logger" in wanted:
        wanted["logger"] = {**wanted["logger"], "wandb": False, "tensorboard": False}
    again = dataclasses.replace(experiment, config=wanted, directory=folder)
    run = store.execute(again, progress=progress)
    if rank() > 0:  # rank 0 compares
        raise SystemExit(0)
    return run, folder


def _first_tensor(old: dict[str, dict[str, str]], new: dict[str, dict[str, str]]) -> str:
    """In the order of the files; "" if all are the same."""
    for file in {**old, **new}:
        before, after = old.get(file, {}), new.get(file, {})
        for name in {**before, **after}:
            if before.get(name) != after.get(name):
                return name
    return ""


def _worst(recorded: dict[str, Any], now: dict[str, Any]) -> tuple[float, str]:
    """The largest relative difference of a metric's kept values, over the largest of the metric, and where it is."""
    worst, where = 0.0, ""
    series = {name: dict(map(tuple, points)) for name, points in recorded["values"].items()}
    for name, before in series.items():
        after = dict(map(tuple, now["values"].get(name, [])))
        scale = max((abs(v) for v in before.values() if math.isfinite(v)), default=0.0) or 1.0
        for step, value in before.items():
            if (gap := _gap(value, after.get(step)) / scale) > worst:
                worst, where = gap, f"{name} at step {step}"
    for name, value in recorded["metrics"].items():
        if (gap := _gap(value, now["metrics"].get(name)) / (abs(value) or 1.0)) > worst:
            worst, where = gap, f"the final {name}"
    return worst, where


def _gap(a: float, b: float | None) -> float:
    """How far apart two values are; infinite where only one is there or finite."""
    if b is None:
        return math.inf
    if math.isfinite(a) and math.isfinite(b):
        return abs(a - b)
    return 0.0 if a == b or (math.isnan(a) and math.isnan(b)) else math.inf


def find(text: str) -> Path:
    """A result file by its path, or by its experiment's name.

    Raises:
        UserError: there is none.
    """
    from athanor import catalog
    from athanor.reproduction.record import SUFFIX

    folder = catalog.source() / "experiments"
    for path in (Path(text), catalog.project() / text, folder / text, folder / f"{text}{SUFFIX}"):
        if path.is_file():
            return path
    known = [path.relative_to(folder).as_posix().removesuffix(SUFFIX) for path in folder.rglob(f"*{SUFFIX}")]
    raise UserError(f"there is no result {text!r}{catalog.suggest(text.removesuffix(SUFFIX), known)}")
