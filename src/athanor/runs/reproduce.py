"""Run it again from the same inputs and compare every output with what is there.

The config is the manifest's, not that of today's experiment file. The new run is made under `<runs>/.reproduce` and
removed if it is the same. Verdicts: `bit-identical`, `within tolerance`, `different`, and `inputs changed`, after which
nothing is rerun unless asked for.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from athanor.errors import UserError
from athanor.progress import Progress, clock
from athanor.runs import lineage, store
from athanor.runs import manifest as facts
from athanor.runs.files import write_json
from athanor.runs.run import Run

TOLERANCE = 1e-4  # largest |a - b| over largest |a|, of a tensor or a number
VERDICTS = ("bit-identical", "within tolerance", "different", "inputs changed")


class Comparison(NamedTuple):
    """Of one output: the verdict, and what it rests on."""

    name: str
    verdict: str
    detail: str


def reproduce(run: Run, *, anyway: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Rerun a finished run and compare; the result is also written to its reproduce.json.

    Args:
        anyway: rerun from the stored inputs though something further up has changed.

    Returns:
        {"run", "verdict", "text", "outputs": [{"name", "verdict", "detail"}], "changed_inputs", "environment",
        "seconds", "when"}.

    Raises:
        UserError: the run is unfinished, or a run that it reads is gone or damaged.
    """
    if run.status != "finished":
        raise UserError(f"{run.id} is {run.status}; finish it first with `{run.command}`")
    store.require_nothing_erased(run)
    changed = [text for text in lineage.problems(lineage.trace(run)) if not text.startswith(f"{run.id}: ")]
    result: dict[str, Any] = {"run": run.id, "verdict": "inputs changed", "text": "", "outputs": []}
    result |= {"changed_inputs": changed, "environment": _environment(run.manifest), "seconds": 0.0}
    if not changed or anyway:
        rerun = again(run, run.root / ".reproduce" / run.name / run.fingerprint)
        shutil.rmtree(rerun.directory, ignore_errors=True)
        started = time.monotonic()
        made = store.execute(rerun, progress=progress, title=f"reproduce {run.name}")
        result["seconds"] = round(time.monotonic() - started, 3)
        compared = list(compare(run, made))
        worst = max((VERDICTS.index(comparison.verdict) for comparison in compared), default=0)
        result["outputs"] = [comparison._asdict() for comparison in compared]
        if not changed:
            result["verdict"] = VERDICTS[worst]
        if worst == 0:
            shutil.rmtree(rerun.directory, ignore_errors=True)
        else:
            result["rerun"] = str(rerun.directory)
    result["text"] = describe(result)
    result["when"] = time.time()
    write_json(run.directory / "reproduce.json", result)
    return result


def describe(result: dict[str, Any]) -> str:
    """The result as a reader wants it: the verdict first, then the reasons."""
    lines = [f"{result['run']}: {result['verdict']}"]
    for text in result["changed_inputs"]:
        lines.append(f"  changed since: {text}")
    if result["changed_inputs"] and not result["outputs"]:
        lines.append("  not rerun: its raw documents or inputs are no longer those that it was made from")
        lines.append("  (--anyway reruns it from the stored inputs)")
    lines += [f"  {o['name']}: {o['verdict']}{', ' if o['detail'] else ''}{o['detail']}" for o in result["outputs"]]
    if result["environment"] and result["verdict"] != "bit-identical":
        lines += [f"  then and now: {text}" for text in result["environment"]]
    if result["seconds"]:
        lines.append(
            f"  rerun in {clock(result['seconds'])}" + (f", kept in {result['rerun']}" if "rerun" in result else "")
        )
    return "\n".join(lines)


def compare(old: Run, new: Run) -> Iterator[Comparison]:
    """Every output of two runs, by name."""
    before, after = old.manifest["outputs"], new.manifest["outputs"]
    damaged = " ".join(old.damage())
    for name in sorted(before.keys() | after.keys()):
        path = old.directory / name
        if name not in after:
            yield Comparison(name, "different", "the rerun did not write it")
        elif name not in before:
            yield Comparison(name, "different", "only the rerun wrote it")
        elif name in damaged:
            same = before[name]["sha256"] == after[name]["sha256"]
            detail = "by its hash: the file itself is gone or was changed"
            yield Comparison(name, "bit-identical" if same else "different", detail)
        elif path.suffix == ".safetensors":
            yield Comparison(name, *_tensors(path, new.directory / name))
        elif before[name]["sha256"] == after[name]["sha256"]:
            yield Comparison(name, "bit-identical", "")
        else:
            yield Comparison(name, *_values(path, new.directory / name))


def again(run: Run, directory: Path) -> Any:
    """The experiment as its manifest has it, with its inputs where they are now, to be run in a directory."""
    from athanor.config import Experiment, Input

    config = json.loads(json.dumps(run.manifest["config"]))
    inputs: dict[str, Input] = {}
    moved: list[tuple[Any, Any]] = []
    for name, entry in run.manifest["inputs"].items():
        if entry["kind"] == "run":
            above = lineage.locate(entry, run)
            inputs[name] = Input(name, "run", entry["fingerprint"], [above.directory], entry["name"])
            moved.append((entry["directory"], str(above.directory)))
        else:
            paths = [Path(file["path"]) for file in entry["files"]]
            inputs[name] = Input(name, "files", entry["fingerprint"], paths, entry["source"])
    config = _replaced(config, moved)
    config["paths"] = {**config["paths"], "runs": str(run.root)}
    if "logger" in config:
        config["logger"] |= {"wandb": False, "tensorboard": False}
    return Experiment(
        name=run.name,
        kind=run.manifest["kind"],
        config=config,
        science=run.manifest["science"],
        inputs=inputs,
        fingerprint=run.fingerprint,
        directory=directory,
        overrides=tuple(run.manifest["overrides"]),
        variables=frozenset(config),
    )


def _replaced(value: Any, moved: list[tuple[str, str]]) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(item, moved) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, moved) for item in value]
    for old, new in moved:
        if isinstance(value, str) and (value == old or value.startswith(f"{old}/")):
            return new + value[len(old) :]
    return value


def _tensors(old: Path, new: Path) -> tuple[str, str]:
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(old, framework="pt") as a, safe_open(new, framework="pt") as b:
            names, others = list(a.keys()), set(b.keys())
            if missing := sorted(set(names) ^ others):
                return "different", f"only one of the two has the tensor {missing[0]}"
            worst, where, first = 0.0, "", ""
            for name in names:
                x, y = a.get_tensor(name), b.get_tensor(name)
                if x.shape != y.shape or x.dtype != y.dtype:
                    return "different", f"{name} was {list(x.shape)} {x.dtype} and is {list(y.shape)} {y.dtype}"
                if torch.equal(x, y):
                    continue
                first = first or name
                scale = x.double().abs().max().item()
                apart = (x.double() - y.double()).abs().max().item() / (scale or 1.0)
                if not apart <= worst:  # a NaN counts as the worst
                    worst, where = apart if math.isfinite(apart) else math.inf, name
    except SafetensorError as error:
        return "different", f"cannot be read ({error})"
    if not first:
        return "bit-identical", f"all {len(names)} tensors torch.equal"
    if worst <= TOLERANCE:
        return "within tolerance", f"same within {worst:.1e} of the largest weight ({where})"
    return "different", f"first differing tensor {first}; furthest apart {where}, by {worst:.1e} of its largest weight"


def _values(old: Path, new: Path) -> tuple[str, str]:
    """Two files with other bytes: JSON by its numbers, text by its lines, the rest by its bytes."""
    try:
        texts = [path.read_text(encoding="utf-8") for path in (old, new)]
    except UnicodeDecodeError:
        a, b = old.read_bytes(), new.read_bytes()
        at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
        return "different", f"first differing byte {at:,}"
    try:
        documents = [
            [json.loads(line) for line in text.splitlines()] if old.suffix == ".jsonl" else json.loads(text)
            for text in texts
        ]
    except ValueError:
        lines = [text.splitlines() for text in texts]
        at = next((i for i, (x, y) in enumerate(zip(*lines)) if x != y), min(map(len, lines)))
        return "different", f"first differing line {at + 1:,}"
    worst = 0.0
    for path, x, y in _leaves(documents[0], documents[1], ""):
        numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (x, y))
        if not numbers or not math.isclose(x, y, rel_tol=TOLERANCE, abs_tol=1e-12):
            return "different", f"{path or 'its shape'} was {_short(x)} and is {_short(y)}"
        worst = max(worst, abs(x - y) / max(abs(x), abs(y)))
    return ("within tolerance", f"same within {worst:.1e}") if worst else ("bit-identical", "the same values")


def _leaves(a: Any, b: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """The places in which two JSON values differ."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for key in a:
            yield from _leaves(a[key], b[key], f"{path}.{key}" if path else key)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b)):
            yield from _leaves(x, y, f"{path}[{i}]")
    elif a != b:
        yield path, a, b


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _environment(manifest: dict[str, Any]) -> list[str]:
    """How this machine and code differ from those of the run."""
    code, found = facts.code(), []
    for key, name in (("commit", "commit"), ("diff_sha256", "uncommitted changes")):
        if code[key] != manifest["code"][key]:
            found.append(f"{name} {(manifest['code'][key] or 'none')[:12]} -> {(code[key] or 'none')[:12]}")
    packages = facts.packages()
    for name in sorted(manifest["packages"].keys() | packages.keys()):
        old, new = manifest["packages"].get(name), packages.get(name)
        if old != new:
            found.append(f"{name} {old or 'absent'} -> {new or 'absent'}")
    for key, new in facts.hardware().items():
        if key in manifest["hardware"] and (old := manifest["hardware"][key]) != new:
            found.append(f"{key} {old} -> {new}")
    return found
