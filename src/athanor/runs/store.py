"""Make a run, once: skip it if it is finished, resume it if it was interrupted, and write down all that went into it.

A run's folder holds config.yaml, manifest.json, metrics.jsonl, log.txt, a training run's checkpoints, and its outputs.
Status running is written before the job starts and finished after its outputs are hashed, each in one atomic step, so a
process that dies at any moment leaves either a finished run or one that the same command takes up again.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from athanor import lean, signals, slurm
from athanor.errors import UserError
from athanor.progress import Progress
from athanor.runs import manifest as facts
from athanor.runs.context import METRICS, RunContext, rank, write_table
from athanor.runs.files import PARTIAL, Hashes, remove, write_atomic, write_json
from athanor.runs.lock import NAME as LOCK
from athanor.runs.lock import locked
from athanor.runs.run import MANIFEST, Run, list_runs, open_run

if TYPE_CHECKING:
    from athanor.config import Experiment, Input

__all__ = ["Run", "RunFailedError", "execute", "is_finished", "list_runs", "open_run", "unfinished_inputs"]

FORMAT = 1
LOG = "log.txt"
RECORDS = {MANIFEST, "config.yaml", LOG, METRICS, "metrics.csv", "code.diff", LOCK, slurm.CLAIM}
RECORDS |= {"reproduce.json", "diagnosis.json", "card.html", "card.md"}  # what is said of the outputs
FOLDERS = {"checkpoints", "wandb", "tensorboard", "watch"}  # kept, but no outputs


class RunFailedError(Exception):
    """A job raised what it should not have; the text says where the traceback is."""


def execute(
    experiment: Experiment,
    *,
    force: bool = False,
    progress: Progress | None = None,
    title: str | None = None,
    callbacks: Sequence[Any] = (),
) -> Run:
    """The finished run of an experiment, made or resumed if need be.

    Args:
        force: make it anew even if it is finished or half done.
        title: the name of its task on `progress`.
        callbacks: of Lightning, that watch a training.

    Raises:
        UserError: the config is wrong, an input is not finished, another process is at it, a finished run is damaged,
            or the job refuses what it was given; then nothing stays, but of a training that had begun.
        RunFailedError: any other exception of the job; its traceback is in the run's log.txt.
        KeyboardInterrupt, SystemExit: the run says interrupted.
    """
    progress = progress or Progress(quiet=True)
    if rank() > 0:  # rank 0 does the bookkeeping, and alone what is not training
        if experiment.kind == "train" and (force or not is_finished(experiment)):
            with _muted():
                _job(experiment, RunContext(experiment.directory, experiment, callbacks=callbacks))
        return Run(experiment.directory)
    if is_finished(experiment) and not force:
        progress.start(title or experiment.name)
        progress.finish("skipped")
        return _intact(experiment)
    if (experiment.directory / MANIFEST).is_file():
        require_nothing_erased(Run(experiment.directory))
    experiment.validate()
    if missing := unfinished_inputs(experiment):
        lines = [f"{made.name} ({made.fingerprint}): {made.command}" for made in missing]
        raise UserError(
            "\n  - ".join(
                (f"{experiment.name} needs runs that are not finished; make them first, or add --with-inputs:", *lines)
            )
        )
    for name, entry in experiment.inputs.items():
        if entry.kind == "run" and (run := Run(entry.paths[0])).manifest["status"] != "finished":
            raise UserError(f"inputs.{name}: {run.id} is {run.status}; finish it with `{run.command}`")
    slurm.claim(experiment.directory)
    with locked(experiment.directory, slurm.patience(experiment.directory)):
        slurm.claim(experiment.directory, holding=True)
        if is_finished(experiment) and not force:  # another process has just done it
            return _intact(experiment)
        progress.start(title or experiment.name)
        try:
            with signals.noting(experiment.kind == "train"):
                run = _attempt(experiment, progress, force, callbacks)
        except BaseException as error:
            progress.finish("interrupted" if _signal(error) else "failed")
            raise
        finally:
            slurm.release(experiment.directory)
        progress.finish()
        return run


def require_nothing_erased(run: Run) -> None:
    """Raise UserError where documents were erased from the run itself, which making it again would bring back."""
    if count := sum(entry["documents"] for entry in run.manifest.get("erased", []) if entry["in_place"]):
        raise UserError(
            f"{count} documents were erased from {run.id} on request, and making it again would bring them back; name "
            "the list as an input and add the step athanor.corpus.privacy.Removed, or remove the run's folder"
        )


def is_finished(experiment: Experiment) -> bool:
    """Whether the experiment's run is there and finished."""
    path = experiment.directory / MANIFEST
    return path.is_file() and Run(experiment.directory).manifest["status"] == "finished"


def unfinished_inputs(experiment: Experiment) -> list[Experiment]:
    """The experiments upstream whose runs are yet to be made, in the order to make them."""
    direct = [entry.experiment for entry in experiment.inputs.values() if entry.experiment]
    waiting = [entry for entry in direct if not is_finished(entry)]
    found: list[Experiment] = []
    for entry in waiting:
        found += [e for e in (*unfinished_inputs(entry), entry) if e.directory not in {f.directory for f in found}]
    return found


def _intact(experiment: Experiment) -> Run:
    """The finished run, unless its outputs are gone or its inputs are no longer those that it read."""
    run = Run(experiment.directory)
    if absent := run.absent():
        raise UserError(
            f"{run.id} is finished but its {absent[0]} is missing or cut short; "
            f"remake it with `{experiment.command} --force`"
        )
    for name, entry in experiment.inputs.items():
        read = run.manifest["inputs"].get(name, {}).get("outputs")
        if entry.kind == "run" and read and (entry.paths[0] / MANIFEST).is_file():
            now = Run(entry.paths[0])
            if now.manifest["status"] == "finished" and now.outputs_digest != read:
                raise UserError(
                    f"{run.id} was made from an earlier {now.id}, which has been remade with other outputs since; "
                    f"remake it too, with `{experiment.command} --force`"
                )
    return run


def _attempt(experiment: Experiment, progress: Progress, force: bool, callbacks: Sequence[Any]) -> Run:
    directory, began = experiment.directory, time.monotonic()
    before = Run(directory).manifest if (directory / MANIFEST).is_file() and not force else None
    attempts = list(before["attempts"]) if before else []
    if attempts and attempts[-1]["status"] == "running":
        attempts[-1] |= {"status": "interrupted", "died": True}
    step = _step(directory) if before is not None else 0
    slurm.check_restarts(attempts, step)
    _clear(directory, resume=before is not None and experiment.kind == "train")

    code = facts.code()
    if diff := code.pop("diff"):
        write_atomic(directory / "code.diff", diff)
    attempt: dict[str, Any] = {
        "status": "running",
        "started": time.time(),
        "finished": None,
        "command": facts.command(),
        "commit": code["commit"],
        "diff_sha256": code["diff_sha256"],
        "cluster": experiment.config.get("cluster"),
        "strategy": experiment.config.get("strategy"),
        "slurm": slurm.described(),
        "from_step": step,
    }
    attempts.append(attempt)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "name": experiment.name,
        "kind": experiment.kind,
        "fingerprint": experiment.fingerprint,
        "status": "running",
        "metrics": {},
        "seconds": 0.0,
        "started": attempts[0]["started"],
        "finished": None,
        "command": attempt["command"],
        "overrides": list(experiment.overrides),
        "inputs": {name: _described(entry, experiment) for name, entry in experiment.inputs.items()},
        "science": experiment.science,
        "config": experiment.config,
        "code": code,
        "packages": facts.packages(),
        "hardware": facts.hardware(),
        "attempts": attempts,
        "outputs": {},
    }

    def record(status: str) -> None:
        attempt["status"] = manifest["status"] = status
        attempt["finished"] = manifest["finished"] = time.time()
        attempt["seconds"] = round(time.monotonic() - began, 3)  # whatever becomes of the time of day
        manifest["seconds"] = round(sum(a.get("seconds", 0.0) for a in attempts), 3)
        write_json(directory / MANIFEST, manifest)

    config = yaml.safe_dump(experiment.config, sort_keys=False, allow_unicode=True)
    write_atomic(directory / "config.yaml", config)
    write_json(directory / MANIFEST, manifest)
    try:
        with _logged(directory / LOG):
            context = RunContext(directory, experiment, progress, callbacks)
            metrics = _job(experiment, context)
            manifest["metrics"] = {name: float(value) for name, value in (metrics or {}).items()}
            write_table(directory)
            manifest["outputs"] = _outputs(directory)
    except BaseException as error:
        for path in list(directory.rglob(f"*{PARTIAL}")):
            with contextlib.suppress(OSError):
                remove(path)
        trained = experiment.kind == "train" and (directory / METRICS).exists()
        if isinstance(error, UserError) and not trained and not any((directory / "checkpoints").glob("*")):
            _remove(directory)
            raise
        manifest["error"] = f"{type(error).__name__}: {error}"
        record("interrupted" if _signal(error) else "failed")
        if _signal(error) or isinstance(error, UserError):
            raise
        with (directory / LOG).open("a", encoding="utf-8") as log:
            log.write("".join(traceback.format_exception(error)))
        told = (str(error).splitlines() or [""])[0]
        raise RunFailedError(
            f"{experiment.name} failed: {type(error).__name__}: {told}; the traceback is in {directory / LOG}"
        ) from error
    record("finished")
    for action in context.afterwards:
        action()
    return Run(directory)


def _job(experiment: Experiment, context: RunContext) -> dict[str, float]:
    if experiment.kind == "train":
        with lean.imports(experiment.config):
            from athanor.train import fit
        return fit(experiment, context)
    from athanor.config import build

    return build(experiment.config["job"]).run(context)


def _step(directory: Path) -> int:
    """Of the newest checkpoint, 0 if there is none."""
    names = (path.stem.rpartition("-")[2] for path in (directory / "checkpoints").glob("step-*.ckpt"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def _signal(error: BaseException) -> bool:
    """Whether an exception means that the run was told to stop. Lightning turns Ctrl-C into SystemExit(1)."""
    if isinstance(error, SystemExit):
        return error.code in signals.INTERRUPTED or isinstance(error.__context__, KeyboardInterrupt)
    return isinstance(error, KeyboardInterrupt) or type(error).__name__ == "SIGTERMException"


def _described(entry: Input, experiment: Experiment) -> dict[str, Any]:
    """An input as the manifest keeps it: enough to find it again and to see whether it is still the same."""
    if entry.kind == "run":
        run = Run(entry.paths[0])
        return {
            "kind": "run",
            "fingerprint": entry.fingerprint,
            "name": run.name,
            "directory": str(entry.paths[0]),
            "outputs": run.outputs_digest,
        }
    hashes = Hashes(Path(experiment.config["paths"]["runs"]))
    files = [{"path": str(path), "sha256": hashes(path), "bytes": path.stat().st_size} for path in entry.paths]
    hashes.save()
    return {"kind": "files", "fingerprint": entry.fingerprint, "source": entry.source, "files": files}


def _outputs(directory: Path) -> dict[str, dict[str, Any]]:
    hashes = Hashes(directory)  # nothing is remembered: they were written just now
    found = {}
    for path in sorted(directory.rglob("*")):
        relative = path.relative_to(directory)
        record = relative.as_posix() in RECORDS or relative.parts[0] in FOLDERS or path.name.endswith(PARTIAL)
        if path.is_file() and not record:
            found[relative.as_posix()] = {"sha256": hashes(path), "bytes": path.stat().st_size}
    return found


def _clear(directory: Path, *, resume: bool) -> None:
    """Make room for an attempt. A training that resumes keeps all but half-written files; others start over."""
    for path in list(directory.rglob(f"*{PARTIAL}")) if resume else list(directory.iterdir()):
        if path.name in (LOCK, slurm.CLAIM) or not (path.exists() or path.is_symlink()):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _remove(directory: Path) -> None:
    """Take away a run's folder and the folders above that this leaves empty."""
    shutil.rmtree(directory)
    for folder in directory.parents[:2]:
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """No log records and no warnings: rank 0 has the same to say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Log records of level INFO and all warnings go to a file; the warnings of athanor itself to the user too."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    shown = logging.StreamHandler()
    shown.setFormatter(logging.Formatter("athanor: %(message)s"))
    shown.setLevel(logging.WARNING)
    root, own = logging.getLogger(), logging.getLogger("athanor")
    own.addHandler(shown)
    level = root.level
    root.addHandler(handler)
    logging.captureWarnings(True)
    root.setLevel(min(level, logging.INFO) if level else logging.INFO)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        own.removeHandler(shown)
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()
