"""The model of a run that is not finished, out of its newest checkpoint, in the form of one that is.

Checkpoints hold tensors by their names and shapes in an unsharded training, whatever the strategy
(`athanor.strategies`), so no process of the training is needed.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from athanor import models, shares
from athanor.callbacks.averaging import ExponentialAverage
from athanor.callbacks.checkpoints import newest
from athanor.config import build
from athanor.errors import UserError
from athanor.runs.store import open_run


def consolidate(path: str, directory: Path | None = None) -> Path:
    """Writes model.safetensors, model.json and tokenizer.model; returns their folder.

    The weights are those that the run would keep if it ended at the checkpoint; but the newest ones where it keeps the
    best, and where the optimizer is schedule-free, which averages only where it validates.

    Args:
        path: of a training run, or its id.
        directory: default a folder beside the checkpoint and named after it, or that of a run which is finished.

    Raises:
        UserError: the run trains nothing, has no checkpoint, or none that is sound.
    """
    run = open_run(path)
    if run.manifest["kind"] != "train":
        raise UserError(f"{path} is a {run.manifest['kind']} run and holds no model; name a training run")
    if run.status == "finished":
        folder = directory or run.directory
        for name in (models.WEIGHTS, models.ARCHITECTURE, "tokenizer.model"):
            kept = run.path(name)
            if folder != run.directory:
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(kept, folder / name)
        return folder
    found = newest(run.directory / "checkpoints")
    if found is None:
        raise UserError(f"{path} has saved no checkpoint yet; go on with `{run.command}`")
    config: dict[str, Any] = yaml.safe_load((run.directory / "config.yaml").read_text("utf-8"))
    if found.is_dir():
        state = shares.load(found, only="state_dict")["state_dict"]
    else:
        state = torch.load(found, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    averages = [c for c in map(build, (config.get("callbacks") or {}).values()) if isinstance(c, ExponentialAverage)]
    prefix = f"{averages[0].name}." if averages and averages[0].save else "model."
    model: torch.nn.Module = build(config["model"])
    model.load_state_dict({name.removeprefix(prefix): w for name, w in state.items() if name.startswith(prefix)})
    folder = directory or found.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    models.save(model, folder)
    shutil.copy(open_run(build(config["data"]).tokenizer_run).path("tokenizer.model"), folder / "tokenizer.model")
    return folder
