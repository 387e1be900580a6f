"""The trials of a search, in a journal that all its workers read and write: who asks, who lives, what came of it.

Optuna proposes and remembers; its journal storage works on shared file systems, but knows nothing of death. So here:

* Whoever works on a trial holds the lock of the trial's folder. The kernel drops a lock with the process that holds it,
  so a trial that says running and is locked by nobody has lost its worker. No heartbeat, no time to wait.
* Such a trial is taken up again under its own number, not repeated under another: its run goes on from its checkpoint.
  It may be begun `retries` times more, then it has failed.
* Asking is done by one process at a time, so that there are exactly as many trials as the search wants.
* A process killed while it writes leaves half a line; the next writer cuts it off. (Optuna's own lock waits 30 seconds
  for the dead, and half a line makes its journal unreadable for good.)
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from athanor.errors import UserError
from athanor.runs import store
from athanor.runs.lock import LockedError, is_locked, locked
from athanor.runs.run import Run
from athanor.sweeps.search import Choice, Range, Search, Value

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

JOURNAL = "journal.jsonl"
BEGUN, NOTE, PRUNED_AT, SECONDS, AGAIN = "begun", "note", "pruned_at", "seconds", "again"  # attributes of a trial


def optuna() -> Any:
    """The library.

    Raises:
        UserError: it is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise UserError(f"a search needs an extra ({error.name} is missing): pip install 'athanor[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a file's lock, waiting for it as long as it takes. Not to be nested on one path in one process."""
    with path.open("a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


class JournalLock:
    """What Optuna's file backend takes as its `lock_obj`: a lock that the dead do not hold."""

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self.held = ExitStack()

    def acquire(self) -> bool:
        self.held.enter_context(exclusive(self.journal.with_suffix(".lock")))
        with self.journal.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - (1 << 20)))
            if not (tail := file.read()).endswith(b"\n") and tail:
                file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        self.held.close()


class Trials:
    """All trials of a search. `create` may make the journal; else one that is not there is refused."""

    def __init__(self, search: Search, *, create: bool = False) -> None:
        self.search = search
        self.library = optuna()
        path = search.directory / JOURNAL
        if not path.exists():
            if not create:
                raise UserError(f"search {search.name} has no trials yet; begin with `{search.command}`")
            search.directory.mkdir(parents=True, exist_ok=True)
        journal = self.library.storages.journal
        lock = JournalLock(path)
        with exclusive(search.directory / "ask.lock"):
            self.storage = self.library.storages.JournalStorage(journal.JournalFileBackend(str(path), lock_obj=lock))
            if not self.storage.get_all_studies() and create:
                self._create()

    @property
    def study(self) -> Study:
        """With its pruner; the sampler is that of `ask`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.library.load_study(
                study_name=self.search.name, storage=self.storage, sampler=self.library.samplers.RandomSampler(),
                pruner=self._pruner(),
            )  # fmt: skip

    def all(self) -> list[FrozenTrial]:
        """Those that count, by number: a failed one that was begun anew gives way to its successor."""
        trials = self.study.get_trials(deepcopy=False)
        replaced = {trial.user_attrs[AGAIN] for trial in trials if AGAIN in trial.user_attrs}
        return [trial for trial in trials if trial.number not in replaced]

    def renew(self) -> None:
        """Queue the failed trials again: the same points under new numbers. More points of a grid too, if it grew."""
        states = self.library.trial.TrialState
        with exclusive(self.search.directory / "ask.lock"):
            study, trials = self.study, self.all()
            if self.search.sampler["name"] == "grid":
                for point in self.search.grid()[len(trials) : self.search.trials]:
                    study.enqueue_trial(point)
            for trial in trials:
                if trial.state == states.FAIL:
                    study.enqueue_trial(trial.params, user_attrs={AGAIN: trial.number})

    def counts(self) -> dict[str, int]:
        """Of those that count: complete, pruned, failed, running, waiting (asked for or not), and all."""
        found = dict.fromkeys(("complete", "pruned", "fail", "running", "waiting"), 0)
        for trial in (trials := self.all()):
            found[trial.state.name.lower()] += 1
        found["waiting"] += max(0, self.search.trials - len(trials))
        return {**found, "all": max(self.search.trials, len(trials))}

    def unfinished(self) -> int:
        """Trials without an end, those that are being worked on included."""
        counts = self.counts()
        return counts["running"] + (0 if self.over_budget() else counts["waiting"])

    def over_budget(self) -> str:
        """Why no further trial may begin; "" while one may."""
        hours = self.search.budget.get("hours", math.inf)
        spent = sum(trial.user_attrs.get(SECONDS, 0.0) for trial in self.all()) / 3600
        return f"{spent:.2g} of {hours:g} hours are spent" if spent >= hours else ""

    def claim(self, held: ExitStack, retries: int) -> FrozenTrial | None:
        """A trial to work on, its lock held: one whose worker is gone, else the next; None if nothing is left to take.

        Args:
            held: what keeps the lock; to close it is to let go of the trial.
            retries: how often a trial that was begun may be begun again.
        """
        states = self.library.trial.TrialState
        with exclusive(self.search.directory / "ask.lock"):
            trials = self.all()
            for trial in trials:
                if trial.state != states.RUNNING:
                    continue
                try:
                    held.enter_context(locked(self.folder(trial.number)))
                except LockedError:
                    continue
                if (begun := trial.user_attrs.get(BEGUN, 0)) > retries:
                    self.tell(trial, note=f"failed, or its process died, {begun} times")
                    held.close()
                    continue
                return self._begin(trial)
            waiting = any(trial.state == states.WAITING for trial in trials)
            if not (waiting or len(trials) < self.search.trials) or self.over_budget():
                return None
            number = len(self.study.get_trials(deepcopy=False))
            study = self.study
            study.sampler = self._sampler(number)
            asked = study.ask(self._distributions)
            held.enter_context(locked(self.folder(asked.number)))
            return self._begin(self.one(asked.number))

    def _begin(self, trial: FrozenTrial) -> FrozenTrial:
        """Its point, completed where its worker died while it was being proposed, and one more beginning."""
        if missing := set(self._distributions) - set(trial.params):
            study = self.study
            study.sampler = self._sampler(trial.number)
            again = self.library.trial.Trial(study, trial._trial_id)
            for key in sorted(missing):
                again._suggest(key, self._distributions[key])
        self.storage.set_trial_user_attr(trial._trial_id, BEGUN, trial.user_attrs.get(BEGUN, 0) + 1)
        return self.one(trial.number)

    def unbegin(self, trial: FrozenTrial) -> None:
        """It was told to stop and has saved itself: that does not count as a failure."""
        self.storage.set_trial_user_attr(trial._trial_id, BEGUN, max(0, trial.user_attrs.get(BEGUN, 1) - 1))

    def one(self, number: int) -> FrozenTrial:
        """
        Raises:
            UserError: there is no such trial.
        """
        trials = self.study.get_trials(deepcopy=False)
        if not 0 <= number < len(trials):
            raise UserError(
                f"search {self.search.name} has {len(trials)} trials, numbered from 0, and none is {number}"
            )
        return trials[number]

    def settle(self, trial: FrozenTrial) -> None:
        """Tell what came of a trial whose process has ended well.

        Raises:
            UserError: its runs do not have the search's metric.
        """
        trial = self.one(trial.number)
        if PRUNED_AT in trial.user_attrs:
            self.tell(trial, pruned=True)
            return
        runs = [Run(member.target.directory) for member in self.members(trial) if store.is_finished(member.target)]
        if len(runs) < len(self.search.seeds):
            return  # it stays running, and is begun again
        name = self.search.metric.name
        if missing := [run for run in runs if name not in run.metrics]:
            from athanor import catalog

            hint = catalog.suggest(name, missing[0].metrics, every=40)
            self.tell(trial, note=f"{missing[0].id} has no metric {name!r}{hint}")
            raise UserError(f"{missing[0].id} has no metric {name!r}{hint}")
        values = [run.metrics[name] for run in runs]
        if all(map(math.isfinite, values)):
            self.tell(trial, value=sum(values) / len(values))
        else:  # samplers learn from a trial that was pruned that it is bad, and nothing from one that failed
            self.tell(trial, pruned=True, note=f"diverged: {name} is {values[0]}")

    def tell(self, trial: FrozenTrial, *, value: float | None = None, pruned: bool = False, note: str = "") -> None:
        """End a trial: complete with a value, pruned, or failed."""
        states = self.library.trial.TrialState
        seconds = sum(run.manifest["seconds"] for member in self.members(trial) for run in member.runs())
        self.storage.set_trial_user_attr(trial._trial_id, SECONDS, round(seconds, 3))
        if note:
            self.storage.set_trial_user_attr(trial._trial_id, NOTE, note)
        study = self.study
        study.sampler = self._sampler(trial.number)
        state = states.COMPLETE if value is not None else states.PRUNED if pruned else states.FAIL
        study.tell(trial.number, value, state=state)

    def members(self, trial: FrozenTrial) -> list[Any]:
        return list(self.search.members(trial.number, trial.params)) if trial.params else []

    def folder(self, number: int) -> Path:
        """Whose lock says that somebody works on the trial."""
        return self.search.directory / "trials" / str(number)

    def lost(self, trial: FrozenTrial) -> bool:
        """Whether it says running and nobody works on it."""
        return trial.state.name == "RUNNING" and not is_locked(self.folder(trial.number))

    def best(self) -> FrozenTrial | None:
        """The complete trial of the best value, the first of several."""
        done = [trial for trial in self.all() if trial.state.name == "COMPLETE"]
        sign = 1 if self.search.metric.better == "lower" else -1
        return min(done, key=lambda trial: (sign * trial.value, trial.number), default=None)  # type: ignore[operator]

    def importance(self) -> dict[str, float]:
        """Share of each key in what makes the best tenth of the trials so (PED-ANOVA, Watanabe et al. 2023,
        arXiv:2304.10255), the largest first; {} with fewer than four complete trials or a single key.
        """
        if len(self.search.space) < 2 or self.counts()["complete"] < 4:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dict(self.library.importance.get_param_importances(self.study))

    @cached_property
    def _distributions(self) -> dict[str, Any]:
        return {key: self._distribution(part) for key, part in self.search.space.items()}

    def _distribution(self, part: Range | Choice) -> Any:
        kinds = self.library.distributions
        if isinstance(part, Choice):
            return kinds.CategoricalDistribution(list(part.labels))
        if part.whole:
            return kinds.IntDistribution(int(part.low), int(part.high), log=part.log, step=int(part.step or 1))
        return kinds.FloatDistribution(part.low, part.high, log=part.log, step=part.step)

    def _sampler(self, number: int) -> Any:
        """For one trial: its own random numbers, whoever asks. What others have found it reads in the journal."""
        chosen, samplers = self.search.sampler, self.library.samplers
        seed = zlib.crc32(f"{chosen.get('seed', 0)} {number}".encode())
        startup = {"n_startup_trials": chosen["startup"]} if "startup" in chosen else {}
        name = chosen["name"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                if name == "tpe":
                    return samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, **startup)
                if name == "gp":
                    return samplers.GPSampler(seed=seed, warn_independent_sampling=False, **startup)
                if name == "cmaes":
                    import cmaes  # noqa: F401

                    return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False, **startup)
            except ImportError as error:
                raise UserError(
                    f"sampler {name} needs an extra ({error.name} is missing): pip install 'athanor[search]'"
                ) from None
        return samplers.RandomSampler(seed=seed)

    def _pruner(self) -> Any:
        chosen, pruners = self.search.pruner, self.library.pruners
        if chosen["name"] == "median":
            return pruners.MedianPruner(
                n_startup_trials=chosen.get("startup", 5), n_warmup_steps=chosen.get("warmup", 0)
            )
        if chosen["name"] == "hyperband":
            wanted = self.search.first.config
            first, last = wanted["validate_every_n_steps"], wanted["max_steps"]
            return pruners.HyperbandPruner(min_resource=min(first, last), max_resource=last)
        return pruners.NopPruner()

    def _create(self) -> None:
        direction = "minimize" if self.search.metric.better == "lower" else "maximize"
        study = self.library.create_study(study_name=self.search.name, storage=self.storage, direction=direction)
        study.set_user_attr(
            "search", json.loads(json.dumps({"base": self.search.base, "command": self.search.command}))
        )
        if self.search.sampler["name"] == "grid":
            for point in self.search.grid()[: self.search.trials]:
                study.enqueue_trial(point)


def described(point: dict[str, Value]) -> str:
    """A point in a line."""
    return ", ".join(f"{key}={value if isinstance(value, str) else f'{value:.4g}'}" for key, value in point.items())
