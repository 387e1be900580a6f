"""A training on Weights & Biases: one W&B run for it however often it is requeued, what it read and what it made as
artifacts, so that W&B draws the same lineage as `athanor lineage`, and what the model said as tables.

Without a key everything stays in the run's `wandb` folder, artifacts included, until `athanor wandb-sync`.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from athanor import keys, signals
from athanor.callbacks.guard import RolledBack
from athanor.config import Experiment
from athanor.runs import manifest as facts
from athanor.runs.files import sha256
from athanor.runs.lineage import locate
from athanor.runs.run import Run

FOLDER = "wandb"
TYPES = {"prepare": "dataset", "train": "model", "evaluate": "evaluation"}
MODEL = re.compile(r"model[.\-].+|tokenizer\.model")  # of what a training leaves, what the next one reads
GIVEN = os.environ.get("WANDB_DATA_DIR")  # where artifacts wait; by default in each run's own folder


def make(experiment: Experiment, directory: Path) -> WandbLogger:
    """The logger. Its run has the fingerprint as its id, so that a requeued training goes on with the same one."""
    config, wanted = experiment.config, experiment.config["logger"]
    stage, _, name = experiment.name.partition("/")
    os.environ["WANDB_DATA_DIR"] = GIVEN or str(directory / FOLDER / "data")
    code = facts.code()
    code.pop("diff")
    return WandbLogger(
        project=wanted["project"],
        name=f"{experiment.name}/{experiment.fingerprint[:8]}",
        id=experiment.fingerprint,
        resume="allow",
        group=os.environ.get("WANDB_RUN_GROUP") or name or stage,
        job_type=stage,
        tags=list(config["tags"]),
        notes=experiment.command,
        config={
            "science": experiment.science,
            "fingerprint": experiment.fingerprint,
            "resolved": config,
            "code": code,
            "overrides": list(experiment.overrides),
        },
        offline=not keys.wandb() and os.environ.get("WANDB_MODE") != "online",
        save_dir=directory,
    )


class Tracking(Callback):
    """Listed after what writes samples. Only rank 0 has a W&B run.

    Args:
        upload: the files of the model too, and not only their hashes.
    """

    def __init__(self, logger: WandbLogger, directory: Path, *, upload: bool = False):
        self.logger, self.directory, self.upload = logger, directory, upload

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        run = Run(self.directory)
        for entry in run.manifest["inputs"].values():
            self.use(of_run(locate(entry, run)) if entry["kind"] == "run" else of_files(entry))
        if (diff := self.directory / "code.diff").is_file():
            shutil.copy(diff, self.logger.experiment.dir)  # W&B keeps what lies there

    def use(self, made: Any) -> None:
        """Say that the run has read it. Offline, W&B refuses to look one up; this one is whole and needs none."""
        if self.logger.experiment.offline:
            self.logger.experiment._log_artifact(made, type=made.type, is_user_created=True, use_after_commit=True)
        else:
            self.logger.experiment.use_artifact(made)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = self.directory / "samples.jsonl"
        if not trainer.is_global_zero or not path.is_file():
            return
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        rows = [[r["prompt"], r["response"]] for r in records if r["step"] == trainer.global_step]
        if rows:
            self.logger.log_table("samples", columns=["prompt", "response"], data=rows, step=trainer.global_step)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the run, so that the next attempt, perhaps of this process, goes on with it."""
        if not trainer.is_global_zero:
            return
        stopped = isinstance(exception, (KeyboardInterrupt, SystemExit))
        if stopped:
            self.logger.experiment.mark_preempting()
        code = 0 if isinstance(exception, RolledBack) else signals.REQUEUE if stopped else 1
        self.logger.experiment.finish(exit_code=code)

    def on_model_saved(self) -> None:
        """Log the model that the training has left, and close the run. On rank 0."""
        run = Run(self.directory)
        outputs = {
            path.name: {"sha256": sha256(path), "bytes": path.stat().st_size}
            for path in sorted(self.directory.iterdir())
            if MODEL.fullmatch(path.name)
        }
        experiment = self.logger.experiment
        experiment.log_artifact(of_outputs(run, outputs), aliases=["final"])
        if self.upload:  # of its own, so that the first is the same whether or not the files were wanted
            files = _artifact(f"{run.name}-{run.fingerprint}-files", "model-files", run.command, outputs)
            for name in outputs:
                files.add_file(str(self.directory / name), name=name, policy="immutable")
            experiment.log_artifact(files, aliases=["final"])
        experiment.finish()


def of_run(run: Run) -> Any:
    """What a finished run has made: of the same name and content as when the run itself said so."""
    return of_outputs(run, run.manifest["outputs"])


def of_outputs(run: Run, outputs: dict[str, dict[str, Any]]) -> Any:
    kind = run.manifest["kind"]
    kept = {name: outputs[name] for name in outputs if kind != "train" or MODEL.fullmatch(name)}
    made = _artifact(f"{run.name}-{run.fingerprint}", TYPES.get(kind, kind), run.command, kept)
    made.metadata = {"run": run.id, "inputs": {name: e["fingerprint"] for name, e in run.manifest["inputs"].items()}}
    return made


def of_files(entry: dict[str, Any]) -> Any:
    """Raw files that a run has read, by their names and hashes."""
    listed = {Path(file["path"]).name: {k: file[k] for k in ("sha256", "bytes")} for file in entry["files"]}
    return _artifact(f"files-{entry['fingerprint']}", "dataset", str(entry.get("source", "")), listed)


def _artifact(name: str, kind: str, description: str, content: dict[str, Any]) -> Any:
    """An artifact that holds the names, hashes and sizes of files: enough to know them by, and nothing to upload."""
    import wandb

    made = wandb.Artifact(re.sub(r"[^\w.-]", "-", name, flags=re.ASCII), type=kind, description=description)
    with made.new_file("outputs.json", encoding="utf-8") as file:
        json.dump(content, file, indent=1, sort_keys=True)
    return made
