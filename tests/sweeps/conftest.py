"""A project with a small experiment to ablate, in a process of its own each time as users run it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from search_bench import look_for
from sweep_bench import ablate


@pytest.fixture
def bench(project, monkeypatch: pytest.MonkeyPatch):
    """`guess/tiny`, whose loss is known; `ablations/size` with two factors and two seeds: six members."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ["PYTHONPATH"], str(Path(__file__).parent)]))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    (project.folder / "trouble").mkdir()
    project.experiment(
        "guess/tiny",
        """
        # Guess.
        defaults: [/prepare, _self_]
        allowed_targets: [sweep_jobs]
        seed: 1
        job: {_target_: sweep_jobs.Guess, seed: "${seed}", size: 1.0}
        """,
    )
    project.experiment(
        "slow/tiny", "defaults: [/prepare, _self_]\nallowed_targets: [sweep_jobs]\njob: {_target_: sweep_jobs.Slow}"
    )
    project.experiment(
        "guess/reads",
        """
        defaults: [/prepare, _self_]
        allowed_targets: [sweep_jobs]
        inputs: {documents: slow/tiny}
        seed: 1
        job: {_target_: sweep_jobs.Guess, seed: "${seed}", size: 1.0, documents: "${inputs.documents}"}
        """,
    )
    project.experiment(
        "score/tiny",
        """
        defaults: [/evaluate, _self_]
        allowed_targets: [sweep_jobs]
        inputs: {model: guess/tiny}
        job: {_target_: sweep_jobs.Score, model: "${inputs.model}"}
        """,
    )
    return ablate(project)


@pytest.fixture
def valley(bench):
    """`valley/tiny`, whose loss is known, and `search/valley` over two of its keys: four trials."""
    bench.experiment(
        "valley/tiny",
        """
        # A valley.
        defaults: [/prepare, _self_]
        allowed_targets: [search_jobs]
        seed: 1
        job: {_target_: search_jobs.Valley, seed: "${seed}", x: 0.5, kind: flat, layers: 1}
        """,
    )
    return look_for(bench)
