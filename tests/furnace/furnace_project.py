"""One tiny project for all tests of this folder, made by one real `athanor pipeline`: every stage of the demo, in
seconds.

The experiments are the demo's own; `pipelines/tiny` only overrides sizes. Tests train in runs roots of their own, from
the inputs of that pipeline, and leave its runs alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRESS = re.compile(r"\S+( · \S+)?  .+|\S+ finished after [\d:]+( s)?")  # the lines of `athanor.progress`
TRAINED = ("pretrain", "sft", "reward", "dpo", "ppo")

TASKS = (
    "documents=160 sft_train=240 pairs_train=160 prompts_train=160 +sft_development=24 pairs_development=24 "
    "development=24 pairs_heldout=24 heldout=24"
)
SMALL = ["global_batch_size=8", "schedule.warmup_steps=2", "checkpoint.every_n_steps=4"]
SHAPE = {"vocabulary_size": 600, "width": 32, "layers": 2, "heads": 2, "kv_heads": 1, "context": 128}
MEASURED = [
    "job.tasks.perplexity.documents=4", "+job.tasks.exact_match.questions=12", "+job.tasks.preference.pairs=12",
    "+job.tasks.reward.questions=8", "job.tasks.exact_match.max_new_tokens=8", "job.tasks.reward.max_new_tokens=8",
]  # fmt: skip


def steps() -> dict[str, Any]:
    """The demo's steps, made small."""
    tuned = [*SMALL, "max_steps=16", "validate_every_n_steps=8", "+data.validation_samples=8"]
    overrides = {
        "tasks": [f"+job.{word[1:]}" if word[0] == "+" else f"job.{word}" for word in TASKS.split()],
        "questions": ["inputs.stdlib.files=raw/*.py"],
        "documents": ["inputs.stdlib.files=raw/*.py", "job.sources.0.max_bytes=60000"],
        "tokenizer": ["job.vocabulary_size=600"],
        "shards": ["job.validation_fraction=0.1"],
        "pretrain": [
            *SMALL, "max_steps=24", "validate_every_n_steps=12", "data.sequence_length=64", "data.validation_samples=8",
            *(f"model.{name}={size}" for name, size in SHAPE.items()),
        ],
        "sft": tuned,
        "reward": tuned,
        "dpo": tuned,
        "ppo": [*tuned, "algorithm.max_new_tokens=8", "data.rollout_size=16"],
        "evaluate_reward": ["+job.tasks.preference.pairs=12"],
    }  # fmt: skip
    demo = yaml.safe_load((REPOSITORY / "experiments/pipelines/demo.yaml").read_text())["steps"]
    for name, step in demo.items():
        step["overrides"] = [*step.get("overrides", ()), *overrides.get(name, MEASURED)]
    return demo


class Outcome(NamedTuple):
    """How a process ended, and what it said."""

    code: int
    out: str
    err: str
    seconds: float


class Furnace:
    """The project, its command line in real processes, and what its pipeline left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        (folder / "configs").symlink_to(REPOSITORY / "configs")
        shutil.copytree(REPOSITORY / "experiments", folder / "experiments")
        raw = Path(sysconfig.get_paths()["stdlib"])
        (folder / "raw").mkdir()
        for name in ("bisect", "heapq", "statistics", "textwrap", "shlex", "fnmatch"):
            shutil.copy(raw / f"{name}.py", folder / "raw")
        tiny = {"steps": steps(), "report": "The whole furnace, tiny"}
        (folder / "experiments/pipelines/tiny.yaml").write_text(
            f"# All stages, tiny.\n{yaml.safe_dump(tiny, sort_keys=False)}"
        )

    # --- processes ------------------------------------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("ATHANOR_", "WANDB_", "HF_"))}
        return own | {
            "ATHANOR_HOME": str(self.folder),
            "PYTHONPATH": str(REPOSITORY / "src"),
            "OMP_NUM_THREADS": "1",
            "WANDB_MODE": "offline",
        }

    def start(self, *words: str, python: tuple[str, ...] = (), **environment: str) -> subprocess.Popen[str]:
        """`athanor words` in a process group of its own."""
        return subprocess.Popen(
            [sys.executable, *python, "-m", "athanor", *words],
            cwd=self.folder,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str, timeout: float = 240, **keywords: Any) -> Outcome:
        """`athanor words`, to its end."""
        started = time.monotonic()
        process = self.start(*words, **keywords)
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            end(process)
        return Outcome(process.returncode, out, err, time.monotonic() - started)

    # --- what the pipeline left -----------------------------------------------------------------------------------

    def directory(self, step: str, pipeline: str = "pipelines/tiny") -> Path:
        """The run of a step."""
        described = json.loads((self.runs / pipeline / "pipeline.json").read_text())
        return (self.runs / pipeline / described["steps"][step]).resolve()

    def command(self, step: str, runs: Path | str, *overrides: str) -> list[str]:
        """The words that make a step's run in another runs root, from the same inputs; the last override wins."""
        manifest = read_json(self.directory(step) / "manifest.json")
        own = [word for word in manifest["overrides"] if not word.startswith("inputs.")]
        given = [f"inputs.{name}={entry['directory']}" for name, entry in manifest["inputs"].items()]
        later = {word.lstrip("+").partition("=")[0] for word in overrides}
        kept = [word for word in (*own, *given) if word.lstrip("+").partition("=")[0] not in later]
        return [manifest["kind"], f"experiment={manifest['name']}", f"paths.runs={runs}", *kept, *overrides]


def end(process: subprocess.Popen[str]) -> None:
    """Nothing of its group is left, and its pipes are read to the end."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def only(runs: Path) -> Path:
    """The folder of the one run below a runs root."""
    (path,) = runs.glob("*/*/*/manifest.json")
    return path.parent


def read_lines(path: Path, *, whole: bool = True) -> list[dict[str, Any]]:
    """A JSON Lines file; if it need not be whole, the lines that end."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if whole or line.endswith("\n")]
