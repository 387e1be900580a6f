"""Work on a search: a worker asks for trials and starts a process for each; one command runs several workers.

A worker needs nobody: it finds out in the journal what is to be done. A trial's process that dies does not take its
worker with it; a worker that dies leaves its trial to the next who asks, and a process that outlives it is waited for.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from athanor import signals
from athanor.errors import UserError
from athanor.progress import Progress, Task
from athanor.runs import store
from athanor.runs.run import Run
from athanor.sweeps.local import DIED, POLL_SECONDS, STOP_SECONDS, Board, environment_of
from athanor.sweeps.members import distributed, make, make_member
from athanor.sweeps.search import Search
from athanor.sweeps.trials import PRUNED_AT, Trials, described

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

LOOK_SECONDS = 2.0  # between looks at the journal and the runs


def work(search: Search, *, retries: int, say: Callable[[str], None] = print) -> int:
    """Take trials until none is left to take; returns how many this worker has ended.

    Raises:
        UserError: a trial's runs have no such metric, or this process is one of several.
        SystemExit: a signal asked for an end, and the trial has saved itself.
    """
    if distributed():
        raise UserError(
            "a search's worker is one process that starts its trials itself; give it one task (cluster.devices=1)"
        )
    trials = Trials(search)
    ended = 0
    while not signals.noted():
        with ExitStack() as held:
            trial = trials.claim(held, retries)
            if trial is None:
                return ended
            say(f"trial {trial.number}: {described(trial.params)}")
            with (log := log_of(search, trial.number)).open("ab") as file:
                code = _process(search, trial.number, file, partial(trials.unbegin, trial))
            if code == 0:
                trials.settle(trial)
                ended += trials.one(trial.number).state.is_finished()
            elif code == 2:
                trials.tell(trial, note=_last_line(log))
                ended += 1
            say(f"trial {trial.number}: {_said(trials.one(trial.number), code)}")
    raise SystemExit(signals.exit_code(signals.noted()))


def make_trial(search: Search, number: int, progress: Progress) -> list[Run]:
    """A trial's trainings, in this process; those it has made, [] where it was pruned."""
    trials = Trials(search)
    trial = trials.one(number)
    made: list[Run] = []
    for member in search.members(number, trial.params):
        if PRUNED_AT in trials.one(number).user_attrs:
            return []
        watchers: list[Any] = []
        if search.pruner["name"] != "none" and member.seed == search.seeds[0] and not store.is_finished(member.target):
            from athanor.callbacks.pruning import Pruning

            watchers = [Pruning(search.metric.name, lambda step, value: judge(trials, trial, step, value))]
        try:
            if run := make_member(member, progress, watchers):
                made.append(run)
        except (KeyboardInterrupt, SystemExit):
            if any(watcher.pruned for watcher in watchers):
                return []
            raise
    return made


def judge(trials: Trials, trial: FrozenTrial, step: int, value: float) -> bool:
    """Write down what a validation measured; whether the pruner would end the trial here."""
    shown = trials.library.trial.Trial(trials.study, trial._trial_id)
    if step not in trials.one(trial.number).intermediate_values:  # else it resumes and has been here before
        shown.report(value, step)
    last = step >= trials.search.first.config["max_steps"]
    if poor := not last and shown.should_prune():
        trials.storage.set_trial_user_attr(trial._trial_id, PRUNED_AT, step)
    return poor


def make_inputs(search: Search, progress: Progress) -> list[Run]:
    """What every trial reads; finished ones are passed over."""
    wanting = store.unfinished_inputs(search.first)
    for experiment in wanting:
        experiment.validate()
    progress.plan([experiment.name for experiment in wanting])
    return [make(experiment, progress) for experiment in wanting]


# One command, several workers


@dataclass
class Worker:
    """A process that takes trials, in one of the slots."""

    process: subprocess.Popen[bytes]
    slot: int


@dataclass(frozen=True)
class Ending:
    """How a search stands after the command."""

    before: int  # trials that had ended before
    counts: dict[str, int]
    failed: list[str]  # what to say of each failed trial
    left: str  # why trials are left


def search_here(search: Search, *, workers: int = 1, retries: int = 1, progress: Progress | None = None) -> Ending:
    """Run workers on this machine until no trial is left.

    Raises:
        UserError: the config is wrong, an input cannot be made, or no worker could go on.
    """
    if workers < 1 or retries < 0:
        raise UserError(f"--workers {workers} must be at least 1 and --retries {retries} at least 0")
    search.validate()
    progress = progress or Progress(quiet=True)
    trials = Trials(search, create=True)
    trials.renew()
    counts = trials.counts()
    before = counts["complete"] + counts["pruned"]
    if trials.unfinished():
        (search.directory / "log").mkdir(exist_ok=True)
        if store.unfinished_inputs(search.first):
            _inputs(search, retries)
        _run(search, trials, min(workers, trials.unfinished()), retries, progress, before)
    failed = [
        f"{trial.number}, {described(trial.params)}; {trial.user_attrs.get('note', '')}"
        for trial in trials.all()
        if trial.state.name == "FAIL"
    ]
    return Ending(before, trials.counts(), failed, trials.over_budget())


def _run(search: Search, trials: Trials, workers: int, retries: int, progress: Progress, before: int) -> None:
    board = SearchBoard(progress, trials, before)
    log = search.directory / "log"
    running = [_worker(search, slot, workers, retries, log) for slot in range(workers)]
    spare = search.trials * (retries + 1)  # workers that may be started in the place of dead ones
    try:
        while running:
            board.look()
            for worker in list(running):
                if (code := worker.process.poll()) is None:
                    continue
                running.remove(worker)
                if code == 2:
                    raise UserError(_last_line(log / f"worker-{worker.slot + 1}.txt"))
                if code in DIED and spare and trials.unfinished():
                    spare -= 1
                    running.append(_worker(search, worker.slot, workers, retries, log))
            time.sleep(POLL_SECONDS)
    finally:
        _stop([worker.process for worker in running])
        board.close()


def _worker(search: Search, slot: int, workers: int, retries: int, log: Path) -> Worker:
    with (log / f"worker-{slot + 1}.txt").open("ab") as file:
        words = _words(search, f"worker={slot + 1}", "--retries", str(retries))
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment_of(slot, workers)
        )
    return Worker(process, slot)


def _inputs(search: Search, retries: int) -> None:
    log = search.directory / "log" / "inputs.txt"
    with log.open("ab") as file:
        words = _words(search, "--inputs", "--retries", str(retries))
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        try:
            code = process.wait()
        finally:
            _stop([process])
    if code:
        raise UserError(f"the inputs of search {search.name} cannot be made: {_last_line(log)}")


def _words(search: Search, *words: str) -> list[str]:
    own = [sys.executable, "-m", "athanor", "sweep", f"search={search.name}", *words]
    return [*own, *search.given, "display.progress=plain"]


def log_of(search: Search, number: int) -> Path:
    """What a trial's processes said."""
    folder = search.directory / "log"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{number}.txt"


def _process(search: Search, number: int, file: Any, told: Callable[[], None]) -> int:
    """A trial's process, to its end; a signal that this one notes is passed on. Its exit code.

    Args:
        told: called once it has been told to stop.
    """
    process = subprocess.Popen(
        _words(search, f"trial={number}"), stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=dict(os.environ)
    )
    passed = False
    try:
        while (code := process.poll()) is None:
            if signals.noted() and not passed:
                passed = True
                told()
                process.send_signal(signals.noted())
            time.sleep(POLL_SECONDS / 5)
        return code
    finally:
        if process.poll() is None:  # Ctrl-C, or an error of this process
            told()
            _stop([process])


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Tell them to stop, and wait until they have saved what they can."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("athanor: ") if lines else "it said nothing"


def _said(trial: FrozenTrial, code: int) -> str:
    if trial.state.name == "COMPLETE":
        return f"{trial.value:.6g}"
    if trial.state.name == "RUNNING":
        return f"ended with {code}; it is begun again" if code not in signals.INTERRUPTED else "interrupted"
    at = trial.user_attrs.get(PRUNED_AT)
    return f"pruned at step {at}" if at is not None else trial.user_attrs.get("note", trial.state.name.lower())


class SearchBoard:
    """A search on a `Progress`: one row for all trials, and one for each that runs."""

    def __init__(self, progress: Progress, trials: Trials, before: int) -> None:
        self.trials = trials
        self.board = Board(progress, trials.search.name, trials.counts()["all"], before)
        self.shown: dict[int, tuple[Task, Any]] = {}
        self.looked = -LOOK_SECONDS

    def look(self) -> None:
        """Read the journal and the runs, at most once in two seconds."""
        if time.monotonic() - self.looked < LOOK_SECONDS:
            return
        self.looked = time.monotonic()
        counts = self.trials.counts()
        done = counts["complete"] + counts["pruned"]
        running = {trial.number: trial for trial in self.trials.all() if trial.state.name == "RUNNING"}
        for number in self.shown.keys() - running.keys():
            self.board.end(self.shown.pop(number)[0], "finished", done)
        for number in sorted(running.keys() - self.shown.keys()):
            if len(running[number].params) == len(self.trials.search.space):
                member = next(self.trials.search.members(number, running[number].params))
                self.shown[number] = (self.board.begin(member), member)
        for task, member in self.shown.values():
            self.board.look(task, member)

    def close(self) -> None:
        self.looked = -LOOK_SECONDS
        self.look()
        for task, _ in self.shown.values():
            self.board.end(task, "interrupted", int(self.board.all.done))
        counts = self.trials.counts()
        self.board.all.done = counts["complete"] + counts["pruned"]
        self.board.close()
