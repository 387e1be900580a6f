"""Trains one experiment: build -> fit -> save, the same for every algorithm.

The experiment is composed and checked before this module is imported; here nothing is looked up in a config but the
parts it names.
"""

import contextlib
import logging
import multiprocessing
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from torch import nn

from athanor import models, strategies
from athanor.acceleration import accelerate, keep_freed_memory
from athanor.algorithms.base import Algorithm
from athanor.callbacks.averaging import AveragedIterates, ExponentialAverage
from athanor.callbacks.checkpoints import Checkpoints, Reader, newest
from athanor.callbacks.diagnosis import Diagnosis
from athanor.callbacks.guard import Guard, RolledBack
from athanor.callbacks.preemption import Preemption
from athanor.callbacks.run_files import RunLogger, forget_after
from athanor.callbacks.samples import Samples
from athanor.callbacks.stopping import EarlyStopping
from athanor.callbacks.throughput import Throughput
from athanor.callbacks.watchdog import Watchdog
from athanor.config import Experiment, build
from athanor.data.base import BatchPlan, Data
from athanor.errors import UserError
from athanor.float8 import beyond, use_float8
from athanor.placement import placement
from athanor.runs.context import RunContext
from athanor.runs.store import open_run
from athanor.shares import DamagedError
from athanor.troubles import explained


def fit(experiment: Experiment, run: RunContext) -> dict[str, float]:
    """Trains to `max_steps`, resuming from the newest sound checkpoint, and leaves model and tokenizer in the run.

    Returns:
        The last value of every logged metric.

    Raises:
        UserError: whatever a user can mend, before the first step: data, sizes, devices, checkpoints.
    """
    check(experiment.config)
    hush()
    detours: tuple[tuple[int, int], ...] = ()
    while True:
        try:
            return attempt(experiment, run, detours)
        except RolledBack as spike:
            detours = spike.detours
        except DamagedError as damage:
            logging.getLogger(__name__).warning("%s", damage)


def attempt(experiment: Experiment, run: RunContext, detours: tuple[tuple[int, int], ...]) -> dict[str, float]:
    """Trains from the newest sound checkpoint to the end.

    Args:
        detours: past data, of `BatchPlan`.

    Raises:
        UserError: as `fit`.
        RolledBack: the training is to go on from the newest checkpoint, by other detours.
    """
    config = experiment.config
    cluster = config["cluster"]
    if cluster["threads"]:
        torch.set_num_threads(cluster["threads"])
    try:
        trainer = make_trainer(experiment, run)
    except MisconfigurationException as error:
        raise UserError(f"Lightning refuses the cluster or the strategy: {' '.join(str(error).split())}") from error
    plan = BatchPlan(
        seed=config["seed"], max_steps=config["max_steps"], global_batch_size=config["global_batch_size"],
        world_size=strategies.replicas(trainer), rank=strategies.replica(trainer),
        micro_batch_size=cluster["micro_batch_size"], num_workers=cluster["num_workers"], detours=detours,
    )  # fmt: skip
    plan.check()
    trainer.accumulate_grad_batches = plan.accumulation
    trainer.val_check_interval = config["validate_every_n_steps"] * plan.accumulation

    algorithm, data = assemble(config)
    data.check(algorithm.model)
    data.attach(plan, algorithm.model.context)  # type: ignore[arg-type]
    algorithm.seed, algorithm.log_every = config["seed"], config["logger"]["every_n_steps"]
    strategies.check(trainer.strategy, trainer.world_size, trainer.callbacks, algorithm)  # type: ignore[attr-defined]
    tokens = config["global_batch_size"] * data.typical_length * config["max_steps"]
    flops = tokens * algorithm.model.flops_per_token(data.typical_length)  # type: ignore[operator]
    device = trainer.strategy.root_device.type
    if device == "cpu":
        keep_freed_memory()
    if config["precision"] == "fp8-mixed":
        use_float8(algorithm.model, trainer.strategy.root_device)
    cache = Path(config["paths"]["runs"]) / ".cache" / "compiled"
    accelerate(algorithm, strategies.compiled(trainer, cluster), device, flops, cache)

    resumed = newest(run.directory / "checkpoints", contents=trainer.world_size == 1)
    step = int(resumed.stem.removeprefix("step-")) if resumed else 0
    if trainer.is_global_zero:
        for name in ("metrics.jsonl", "samples.jsonl"):
            forget_after(run.directory / name, step)
    started = time.perf_counter()
    try:
        trainer.fit(algorithm, datamodule=data, ckpt_path=resumed, weights_only=True if resumed else None)
    except BaseException as error:
        end_workers(trainer)
        if isinstance(error, RuntimeError | MemoryError | OSError | EOFError):
            raise explained(error, trainer, config) from error
        raise
    if trainer.global_step < config["max_steps"] and not stopped_early(trainer):
        raise KeyboardInterrupt  # Lightning swallows the signal and returns
    algorithm.report({"train/seconds": time.perf_counter() - started})
    finish(trainer, algorithm, data, run)
    return {name: float(value) for name, value in trainer.callback_metrics.items()} | algorithm.last_report


def end_workers(trainer: Trainer) -> None:
    """Ends the data-loading processes: of an error within a validation, Lightning takes down another loop's. They
    ignore SIGTERM, by which Python would end them when it ends, and it would wait for ever.
    """
    with contextlib.suppress(RuntimeError):  # one of them is dead
        trainer.fit_loop.teardown()
    for worker in multiprocessing.active_children():
        worker.kill()


def check(config: dict[str, Any]) -> None:
    """What the types of the config's numbers do not say.

    Raises:
        UserError: a number is too small.
    """
    cluster = config["cluster"]
    for name, value, least in (
        ("validate_every_n_steps", config["validate_every_n_steps"], 1),
        ("gradient_clip", config["gradient_clip"], 0),
        ("logger.every_n_steps", config["logger"]["every_n_steps"], 1),
        ("cluster.nodes", cluster["nodes"], 1),
        ("cluster.num_workers", cluster["num_workers"], 0),
        ("cluster.threads", cluster["threads"], 1),
    ):
        if value is not None and value < least:
            raise UserError(f"{name}={value} must be at least {least}.")


def hush() -> None:
    """What Lightning tells goes to the run's log.txt, as all logging does, and not to the terminal."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


def assemble(config: dict[str, Any]) -> tuple[Algorithm, Data]:
    """The algorithm with its model, optimizer and schedule, and the data module; nothing is trained yet."""
    return make_algorithm(config), build(config["data"])


def make_algorithm(config: dict[str, Any]) -> Algorithm:
    torch.manual_seed(config["seed"])  # initial weights
    model: nn.Module = build(config["model"])
    algorithm: Algorithm = build(
        config["algorithm"],
        model=model.train(),
        optimizer=build(config["optimizer"]),
        schedule=build(config["schedule"]),
    )
    return algorithm


def make_trainer(experiment: Experiment, run: RunContext) -> Trainer:
    config, cluster = experiment.config, experiment.config["cluster"]
    devices, nodes, environment = placement(cluster)
    strategy = strategies.make({**config, "cluster": {**cluster, "devices": devices, "nodes": nodes}})
    checkpoints = Checkpoints(run.directory / "checkpoints", **config["checkpoint"])
    chosen: list[Callback] = [build(node) for node in config.get("callbacks", {}).values()]
    guards = [callback for callback in chosen if isinstance(callback, Guard)]
    averages = [callback for callback in chosen if isinstance(callback, ExponentialAverage)]
    made, watching = loggers(experiment, run)
    trainer = Trainer(
        accelerator=cluster["accelerator"],
        devices=devices,
        num_nodes=nodes,
        strategy=strategy,
        inference_mode=not isinstance(strategy, strategies.Sharded),  # what they gather outlives a validation
        precision=beyond(config["precision"]),  # type: ignore[arg-type]
        gradient_clip_val=config["gradient_clip"],
        max_steps=config["max_steps"],
        max_epochs=-1,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=made,
        plugins=[*environment, Reader()],
        callbacks=[  # what judges a step, what sees the weights that are validated, what puts them there, what saves
            Throughput(run.progress),
            *(guards or [Guard()]),
            Samples(run.directory / "samples.jsonl"),
            *watching,
            *(callback for callback in chosen if callback not in (*guards, *averages)),
            *run.callbacks,
            *averages,
            AveragedIterates(),
            Diagnosis(run.directory),
            checkpoints,
            Preemption(checkpoints, run.directory),
            Watchdog(run.directory / "watch", cluster.get("hang_seconds")),
        ],
        default_root_dir=run.directory,
    )
    # Lightning's own handlers broadcast, save and requeue from within the signal; ours take note (`athanor.signals`).
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def stopped_early(trainer: Trainer) -> bool:
    return any(callback.stopped for callback in trainer.callbacks if isinstance(callback, EarlyStopping))  # type: ignore[attr-defined]


def loggers(experiment: Experiment, run: RunContext) -> tuple[list[Logger], list[Callback]]:
    """The run's own files always; Weights & Biases and TensorBoard by config. And the callbacks that they need."""
    wanted = experiment.config["logger"]
    chosen: list[Logger] = [RunLogger(run)]
    watching: list[Callback] = []
    if wanted["wandb"]:
        from athanor.callbacks import weights_and_biases

        chosen.append(logger := weights_and_biases.make(experiment, run.directory))
        watching.append(weights_and_biases.Tracking(logger, run.directory, upload=wanted.get("upload", False)))
    if wanted["tensorboard"]:
        try:
            from lightning.pytorch.loggers import TensorBoardLogger

            chosen.append(TensorBoardLogger(run.directory, name="tensorboard", version=""))
        except ModuleNotFoundError:
            raise UserError("logger.tensorboard needs an extra: pip install 'athanor[tensorboard]'.") from None
    return chosen, watching


def finish(trainer: Trainer, algorithm: Algorithm, data: Data, run: RunContext) -> None:
    """Leaves the model and its tokenizer in the run's directory. Once all is written down the checkpoints go."""
    trainer.strategy.barrier()
    with algorithm.whole(algorithm.model, everywhere=False) as model:
        if not trainer.is_global_zero:
            return
        models.save(model, run.directory)
    shutil.copy(open_run(data.tokenizer_run).path("tokenizer.model"), run.directory / "tokenizer.model")
    run.afterwards += [c.discard for c in trainer.callbacks if isinstance(c, Checkpoints)]  # type: ignore[attr-defined]
    for logger in algorithm.loggers:
        logger.finalize("success")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if leave := getattr(callback, "on_model_saved", None):
            leave()


def load_model(run: str, device: str = "cpu") -> tuple[nn.Module, Any]:
    """(model in eval mode, tokenizer) of a finished training run, hashes verified."""
    from athanor.corpus.tokenizer import Tokenizer

    return models.load(run).to(device), Tokenizer(str(open_run(run).path("tokenizer.model")))
