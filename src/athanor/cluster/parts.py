"""A corpus as jobs: its parts as one array, and after it the job that puts them together.

An element of the array is `athanor prepare experiment=NAME --parts /N`. Parts that are there are left alone: the same
command after a failure makes only what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from athanor import config
from athanor.cluster import submission
from athanor.cluster.submission import Submission, compose, settings_of
from athanor.corpus.executors import Slurm, executor_of, work_of
from athanor.corpus.prepare import PrepareDocuments


def prepare(name: str, overrides: Sequence[str]) -> dict[str, Submission]:
    """The jobs of an experiment that makes data: one, unless its executor is SLURM's and it has parts to be made.

    Raises:
        UserError: as `athanor.cluster.submission.prepare`.
    """
    whole = submission.prepare("prepare", name, overrides)
    if whole is None:
        return {}
    experiment = whole.experiment
    executor = executor_of(experiment)
    if not isinstance(executor, Slurm):
        return {name: whole}
    job = config.build(experiment.config["job"])
    missing = work_of(experiment, job, executor).missing() if isinstance(job, PrepareDocuments) else []
    if len(missing) < 2:
        return {name: whole}
    count = min(executor.elements, len(work_of(experiment, job, executor).parts))
    title = f"{name}: parts"
    element = {"title": "parts", "name": name, "fingerprint": experiment.fingerprint, "directory": None}
    array = compose(
        experiment, (f"experiment={name}", *overrides, "--parts", f"/{count}"), "prepare", settings_of(experiment),
        overrides, title=title, gpus=False, array=f"1-{count}" + (f"%{executor.at_once}" if executor.at_once else ""),
        record={"name": title, "directory": None, "elements": {str(k): element for k in range(1, count + 1)}},
    )  # fmt: skip
    return {"parts": array, name: replace(whole, after=("parts",))}
