"""A project with an ablation whose members are light, so that a whole array of them lasts less than one training."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import yaml
from furnace_project import REPOSITORY, Furnace, Outcome
from slurm_project import Cluster

EXPERIMENTS = {
    "data/tiny": "defaults: [/prepare, _self_]\nallowed_targets: [array_jobs]\njob: {_target_: array_jobs.Data}",
    "walk/tiny": """defaults: [/prepare, _self_]
allowed_targets: [array_jobs]
inputs: {data: data/tiny}
seed: 1
job: {_target_: array_jobs.Walk, seed: "${seed}", size: 1.0, data: "${inputs.data}"}""",
}


class Bench(Furnace):
    """`ablations/size`: members numbered seed by seed, `sizes` of them for each seed."""

    def __init__(self, folder: Path, cluster: Cluster, sizes: int = 3, seeds: int = 2) -> None:
        super().__init__(folder)
        self.cluster, self.sizes, self.seeds = cluster, sizes, seeds
        (folder / "slurm").symlink_to(REPOSITORY / "slurm")
        for name in ("steps", "raise"):
            (folder / name).mkdir()
        for name, text in EXPERIMENTS.items():
            self.write(name, text)
        design = {
            "base": "walk/tiny",
            "factors": {"job.size": [float(size + 1) for size in range(sizes)]},
            "seeds": [seed + 1 for seed in range(seeds)],
            "metric": {"name": "loss", "better": "lower"},
        }
        self.write("ablations/size", f"# Which size.\n{yaml.safe_dump(design, sort_keys=False)}")

    def write(self, name: str, text: str) -> None:
        path = self.folder / f"experiments/{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{text}\n")

    @property
    def environment(self) -> dict[str, str]:
        own = {name: value for name, value in super().environment.items() if not name.startswith("SLURM_")}
        paths = os.pathsep.join([str(REPOSITORY / "src"), str(Path(__file__).parent)])
        return {**own, **self.cluster.conf, "PYTHONPATH": paths}

    def submit(self, *words: str, **environment: str) -> Outcome:
        cluster = [] if any(word.startswith("cluster=") for word in words) else ["cluster=local-slurm"]
        return self.run("submit", "sweep", "ablation=size", *cluster, *words, **environment)

    def member(self, number: int) -> str:
        """Of that number, `<size>-<seed>`."""
        return f"{(number - 1) % self.sizes + 1}-{(number - 1) // self.sizes + 1}"

    def step(self, number: int) -> int:
        path = self.folder / "steps" / self.member(number)
        return int(path.read_text() or 0) if path.exists() else 0

    @property
    def executions(self) -> list[list[str]]:
        path = self.folder / "executions"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def statuses(self, *words: str) -> dict[int, str]:
        out = self.run("sweep", "ablation=size", *words, "--list", "--json").out
        return {line["member"]: line["status"] for line in map(json.loads, out.splitlines())}

    def listed(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run("jobs", "--all", "--json").out.splitlines()]

    def kill(self, element: str) -> None:
        """SIGKILL to every process of an element's task."""
        for process in self.cluster.processes(self.cluster.job(element)["JobId"], rank=0):
            os.kill(process, signal.SIGKILL)
