"""A real SLURM of two nodes and a tiny project whose trainings last some seconds."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from furnace_project import REPOSITORY, SHAPE, Furnace, read_json, read_lines, steps
from safetensors.torch import load_file

LOCAL_CLUSTER = REPOSITORY / "slurm" / "local-cluster"
DATA = ("tasks", "documents", "tokenizer", "shards")
STEPS = 400
TINY = [
    "experiment=pretrain/demo", "global_batch_size=8", f"max_steps={STEPS}", f"validate_every_n_steps={STEPS // 2}",
    "schedule.warmup_steps=2", "data.sequence_length=64", "data.validation_samples=8", "logger.every_n_steps=1",
    "checkpoint.every_n_steps=1000", "precision=32-true", "optimizer=adamw", "~optimizer.matrix_lr",
    "cluster=local-slurm", *(f"model.{name}={size}" for name, size in SHAPE.items()),
]  # fmt: skip
TWO_NODES = ["cluster.nodes=2", "strategy=ddp"]


def free_ports() -> str:
    """The first of some ports that nobody listens at: slurmctld's; slurmdbd's is 1 above, two nodes' 11 and 12."""
    for first in random.SystemRandom().sample(range(20_000, 32_000, 20), 600):  # below those that systems give out
        with contextlib.suppress(OSError), contextlib.ExitStack() as held:
            for port in (first, first + 1, first + 11, first + 12):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return str(first)
    pytest.fail("no free ports between 20000 and 32000")


class Cluster:
    """SLURM as `slurm/local-cluster` starts it, in a folder and at ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"ATHANOR_SLURM_DIR": str(folder), "ATHANOR_SLURM_PORT": free_ports()}
        self.conf = {"SLURM_CONF": str(folder / "slurm.conf")}

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(LOCAL_CLUSTER), *words], env={**os.environ, **self.environment}, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip

    def ask(self, *words: str) -> str:
        """What one of SLURM's commands prints."""
        environment = {**os.environ, **self.conf}
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout

    def job(self, number: str) -> dict[str, str]:
        """`scontrol show job`, as names and values."""
        words = self.ask("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, number: str, *states: str, timeout: float = 400) -> dict[str, str]:
        """The job, once it is in one of the states; any that is an end, if none is given."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        until = time.monotonic() + timeout
        while (job := self.job(number))["JobState"] not in (states or ends):
            assert time.monotonic() < until, f"job {number} is {job['JobState']} ({job['Reason']})"
            assert job["JobState"] not in ends, f"job {number} is {job['JobState']}, exit code {job['ExitCode']}"
            time.sleep(0.2)
        return job

    def processes(self, number: str, rank: int) -> list[int]:
        """Of a job's task: the training and what it has started."""
        wanted = {f"SLURM_JOB_ID={number}", f"SLURM_PROCID={rank}", f"SLURM_CONF={self.conf['SLURM_CONF']}"}
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                held = set((path / "environ").read_text(errors="replace").split("\0"))
                if wanted <= held and any(word.startswith("SLURM_STEP_ID=") for word in held):
                    found.append(int(path.name))
        return found

    def kill_node(self, name: str) -> None:
        """What a power cut does: slurmd and every process of the node's jobs are gone."""
        os.kill(int((self.folder / f"run/slurmd-{name}.pid").read_text()), signal.SIGKILL)
        mine = {f"SLURMD_NODENAME={name}", f"SLURM_CONF={self.conf['SLURM_CONF']}"}
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mine <= set((path / "environ").read_text(errors="replace").split("\0")):
                    found.append(int(path.name))
        # slurmstepd first: it would tell slurmctld of its tasks' end, which a node without power does not
        for process in (*{parent(process) for process in found}, *found):
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)


def together(body: Callable[..., None]) -> Callable[..., None]:
    """A test that begins, in a thread, with the others of its file that are marked so: they mostly wait for SLURM."""

    def test(at_once: dict[str, Future[None]]) -> None:
        at_once[body.__name__].result()

    test.__name__, test.__doc__ = body.__name__, body.__doc__
    test.body = body  # type: ignore[attr-defined]
    return test


def parent(process: int) -> int:
    """Of a process that is a slurmstepd's child, that slurmstepd; else the process itself."""
    with contextlib.suppress(OSError):  # it has gone meanwhile
        above = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        if Path(f"/proc/{above}/comm").read_text().startswith("slurmstepd"):
            return above
    return process


class Rehearsal(Furnace):
    """The furnace's project with its data made, and jobs that train on them."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        super().__init__(folder)
        self.cluster = cluster
        (folder / "slurm").symlink_to(REPOSITORY / "slurm")
        data = {name: step for name, step in steps().items() if name in DATA}
        (folder / "experiments/pipelines/data.yaml").write_text(
            f"# Data.\n{yaml.safe_dump({'steps': data}, sort_keys=False)}"
        )
        made = self.run("pipeline", "experiment=pipelines/data")
        assert made.code == 0, made.err
        self.inputs = [f"inputs.{step}={self.directory(step, 'pipelines/data')}" for step in ("shards", "tokenizer")]

    @property
    def environment(self) -> dict[str, str]:
        own = {name: value for name, value in super().environment.items() if not name.startswith("SLURM_")}
        return {**own, **self.cluster.conf, "ATHANOR_PYTHON": sys.executable}

    def words(self, runs: Path, *more: str) -> list[str]:
        """Of a tiny training in a runs root; the last override wins."""
        later = {word.partition("=")[0] for word in more}
        kept = [word for word in (*TINY, *self.inputs) if word.partition("=")[0] not in later]
        return [*kept, f"paths.runs={runs}", *more]

    def sbatch(self, *words: str, flags: tuple[str, ...] = (), **environment: str) -> str:
        """A job by hand; its number. Its output is <number>.txt in the project."""
        return subprocess.run(
            ["sbatch", "--parsable", f"--output={self.folder}/%j.txt", *flags, *words], cwd=self.folder,
            env={**self.environment, **environment}, capture_output=True, text=True, timeout=60, check=True,
        ).stdout.strip()  # fmt: skip

    def said(self, number: str) -> str:
        path = self.folder / f"{number}.txt"
        return path.read_text() if path.exists() else ""


def run_of(runs: Path) -> Path | None:
    """The folder of the one run, once it is there."""
    return next((path.parent for path in runs.glob("*/*/*/manifest.json")), None)


def wait_for_step(runs: Path, step: int, timeout: float = 300) -> Path:
    """The run, once it has logged that step."""

    def reached() -> bool:
        run = run_of(runs)
        return run is not None and begun(run) >= step

    wait_until(reached, timeout, f"step {step} of {runs}")
    run = run_of(runs)
    assert run is not None
    return run


def wait_until(happened: Callable[[], bool], timeout: float, what: str) -> None:
    until = time.monotonic() + timeout
    while not happened():
        assert time.monotonic() < until, f"waited {timeout:.0f} s for {what}"
        time.sleep(0.02)


def begun(run: Path) -> int:
    """The last step that metrics.jsonl has."""
    path = run / "metrics.jsonl"
    lines = read_lines(path, whole=False) if path.exists() else []
    return max((line["step"] for line in lines if "train/loss" in line), default=0)


def losses(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["train/loss"]) for line in read_lines(run / "metrics.jsonl") if "train/loss" in line]


def assert_same(run: Path, reference: Path) -> None:
    """Weights to the bit, and every step once, in order, with the same loss: none lost, none repeated."""
    assert run.name == reference.name, "the fingerprint"
    weights, expected = load_file(run / "model.safetensors"), load_file(reference / "model.safetensors")
    assert [name for name in expected if not torch.equal(weights[name], expected[name])] == []
    assert [step for step, _ in losses(run)] == list(range(1, STEPS + 1))
    assert losses(run) == losses(reference)


def attempts(run: Path) -> list[dict[str, Any]]:
    return read_json(run / "manifest.json")["attempts"]


def listed(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def quoted(words: list[str]) -> str:
    return shlex.join(words)


def need(outcome: Any) -> Any:
    if outcome.code:
        pytest.fail(outcome.err)
    return outcome
