"""Weights & Biases as the backend of a sweep: its server says what comes next, agents make it here.

Its definition is made from the same file. What an agent is given is trained as ordinary runs, in a process of their
own; what W&B gets is a run with the point, the metric by steps and at the end, and the names of the runs here.

It is a poorer search than our own: `bayes` stands for tpe, gp and cmaes, nothing is pruned, and a point whose agent
died is not taken up again under its number (its training is, should the same point come again).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from athanor import catalog, keys
from athanor.errors import UserError
from athanor.runs import store
from athanor.runs.context import METRICS
from athanor.runs.files import write_json
from athanor.runs.run import Run
from athanor.sweeps.ablation import Ablation, Member
from athanor.sweeps.local import POLL_SECONDS, STOP_SECONDS
from athanor.sweeps.search import Choice, Range, Search
from athanor.sweeps.trials import exclusive

if TYPE_CHECKING:
    import wandb

MADE = "wandb.json"  # beside the report: the sweep that W&B knows this one by
OURS = ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_RUN_GROUP")  # not for trainings


def definition(sweep: Search | Ablation) -> dict[str, Any]:
    """What `wandb.sweep` takes, and `wandb sweep` as YAML."""
    if isinstance(sweep, Ablation):
        count, method = len(sweep), "grid"
        parameters: dict[str, Any] = {"member": {"values": list(range(1, count + 1))}}
    else:
        count, name = sweep.trials, sweep.sampler["name"]
        method = name if name in ("grid", "random") else "bayes"
        parameters = {key: _parameter(part, grid=method == "grid") for key, part in sweep.space.items()}
    goal = "minimize" if sweep.metric.better == "lower" else "maximize"
    return {
        "name": _name(sweep),
        "description": sweep.description,
        "method": method,
        "metric": {"name": sweep.metric.name, "goal": goal},
        "parameters": parameters,
        "run_cap": count,
    }


def _name(sweep: Search | Ablation) -> str:
    return f"{'ablations' if isinstance(sweep, Ablation) else 'search'}/{sweep.name}"


def _parameter(part: Range | Choice, *, grid: bool) -> dict[str, Any]:
    if isinstance(part, Choice) or grid or part.step:  # W&B's steps are counted from 0 and not from the lower bound
        return {"values": part.grid()}
    low, high = part.ends()
    kinds = {
        (False, False): "uniform",
        (False, True): "log_uniform_values",
        (True, False): "int_uniform",
        (True, True): "q_log_uniform_values",  # rounded to multiples of q, which is 1 by default
    }
    return {"distribution": kinds[part.whole, part.log], "min": low, "max": high}


def require_server() -> None:
    """
    Raises:
        UserError: W&B is switched off, knows no key, or is not installed.
    """
    if (mode := os.environ.get("WANDB_MODE")) in ("offline", "disabled", "dryrun"):
        raise UserError(f"backend=wandb asks W&B's server for each trial, and WANDB_MODE={mode} forbids that; unset it")
    if not keys.wandb():
        raise UserError(
            "backend=wandb asks W&B's server for each trial: set WANDB_API_KEY or log in with `wandb login`, or leave "
            "backend=wandb out, which needs no server"
        )
    try:
        import wandb  # noqa: F401
    except ModuleNotFoundError:
        raise UserError("backend=wandb needs an extra: pip install 'athanor[wandb]'") from None


def agent(sweep: Search | Ablation) -> int:
    """Be one of the sweep's agents until W&B has nothing more; how many trials it had. The first one makes the sweep.

    Raises:
        UserError: see `require_server`; or W&B refuses, or is not to be reached.
    """
    require_server()
    import wandb

    project = (sweep.first.config.get("logger") or {}).get("project", "athanor")
    taken: list[str] = []
    try:
        known = _known(sweep, project)
        wandb.agent(
            known["id"], partial(trial, sweep, taken), entity=known["entity"], project=known["project"],
            count=known["definition"]["run_cap"],
        )  # fmt: skip
    except wandb.errors.Error as error:
        raise UserError(f"W&B: {str(error).splitlines()[0]}; without backend=wandb a sweep needs no server") from error
    return len(taken)


def _known(sweep: Search | Ablation, project: str) -> dict[str, Any]:
    """The id, entity and project of this sweep on W&B, made there if it is new or was defined otherwise."""
    import wandb

    sweep.directory.mkdir(parents=True, exist_ok=True)
    path, wanted = sweep.directory / MADE, definition(sweep)
    with exclusive(path.with_suffix(".lock")):
        if path.is_file() and (known := json.loads(path.read_text()))["definition"] == wanted:
            return known
        made = wandb.sweep(wanted, project=project)
        known = {"id": made, "entity": os.environ.get("WANDB_ENTITY"), "project": project, "definition": wanted}
        write_json(path, known)
        return known


def trial(sweep: Search | Ablation, taken: list[str] | None = None) -> None:
    """What an agent calls: train the point that W&B has put into the config, and tell what came of it.

    Raises:
        RuntimeError: a training has not finished, or has no such metric; the trial then counts as failed on W&B.
    """
    import wandb

    with wandb.init(group=_name(sweep), job_type="sweep") as run:
        if taken is not None:
            taken.append(run.id)
        point = {key: value for key, value in dict(run.config).items() if not key.startswith("_")}
        log = sweep.directory / "log" / f"wandb-{run.id}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        name, values = sweep.metric.name, list[float]()
        made: list[str] = []
        for member, words in _trainings(sweep, point):
            if isinstance(sweep, Ablation):
                run.config.update({**member.levels, "seed": member.seed})
            if not store.is_finished(member.target):
                _train(words, log)
            if not store.is_finished(member.target):
                raise RuntimeError(f"{member.target.name}/{member.target.fingerprint} has not finished; see {log}")
            done = Run(member.target.directory)
            if name not in done.metrics:
                raise RuntimeError(f"{done.id} has no metric {name!r}{catalog.suggest(name, done.metrics, every=40)}")
            if not made:
                _log_curve(run, member, name)
            values.append(done.metrics[name])
            made.append(done.id)
        run.summary.update({name: sum(values) / len(values), "runs": made})


def _trainings(sweep: Search | Ablation, point: Mapping[str, Any]):
    """The members that a point stands for, and the words that make each."""
    own = [sys.executable, "-m", "athanor"]
    if isinstance(sweep, Ablation):
        words = ["sweep", f"ablation={sweep.name}", f"member={point['member']}", *sweep.given]
        yield sweep.member(int(point["member"])), [*own, *words, "display.progress=plain"]
        return
    whole = {key for key, part in sweep.space.items() if isinstance(part, Range) and part.whole}
    typed = {key: round(value) if key in whole else value for key, value in point.items() if key in sweep.space}
    for member in sweep.members(0, typed):
        words = [member.experiment.kind, f"experiment={member.experiment.name}", *member.experiment.overrides]
        yield member, [*own, *words, "--with-inputs", "display.progress=plain"]


def _train(words: list[str], log: Path) -> None:
    """To its end; W&B ends a trial by an exception in this thread, which is passed on."""
    environment = {key: value for key, value in os.environ.items() if key not in OURS}
    with log.open("ab") as file:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment)
    try:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _log_curve(run: wandb.Run, member: Member, name: str) -> None:
    """The metric by the training's steps, where it logs it."""
    path = member.experiment.directory / METRICS
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        event = json.loads(line)
        if name in event and event.get("step") is not None:
            run.log({name: event[name]}, step=event["step"])
