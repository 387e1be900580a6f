"""Sends to Weights & Biases what trainings have kept for it where they had no internet or no key."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from athanor import catalog, keys
from athanor.errors import UserError
from athanor.runs.run import Run, open_run, run_folders

FOLDER = "wandb"  # in a run's


def kept(references: Sequence[str] = (), root: Path | None = None) -> tuple[list[Path], list[Run]]:
    """Folders of W&B that it has not got yet, the oldest first, and runs that are passed over since they go on.

    Args:
        references: only of these runs; default all.
    """
    root = root or catalog.runs_root()
    runs = [open_run(text, root) for text in references] or [
        Run(folder) for folder in run_folders(root) if (folder / FOLDER).is_dir()
    ]
    going = [run for run in runs if run.status == "running"]
    folders = [
        path.parent
        for run in runs
        if run not in going
        for path in run.directory.glob(f"{FOLDER}/offline-run-*/run-*.wandb")
        if not path.with_name(f"{path.name}.synced").exists()
    ]
    return sorted(folders, key=lambda folder: folder.name), going


def send(folders: Sequence[Path], *, verbose: bool = False) -> list[Path]:
    """Send them with W&B's own `wandb sync`, which joins the attempts at a run; returns those that it has not taken.

    Raises:
        UserError: W&B knows no key, or cannot be reached.
    """
    if not keys.wandb():
        raise UserError("W&B needs a key to send runs: set WANDB_API_KEY, or log in with `wandb login`")
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    words = [sys.executable, "-m", "wandb", "sync", *(["--verbose"] if verbose else []), *map(str, folders)]
    done = subprocess.run(words, env=environment, check=False)
    left = [folder for folder in folders if not list(folder.glob("*.synced"))]
    if done.returncode and len(left) == len(folders):
        raise UserError(f"wandb sync ended with exit code {done.returncode} and has sent nothing")
    return left
