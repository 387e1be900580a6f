"""The keys that no constructor takes: the top level of an experiment and its execution groups, as signatures.

The checker holds a composed config against these exactly as it holds a `_target_` node against its constructor. Keys
are explained here and given their values in `configs/`, once each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

Node = Callable[..., Any]  # only a mapping with `_target_` will do


def experiment(
    *,
    kind: Literal["prepare", "train", "evaluate"],
    name: str,
    tags: list[str],
    inputs: dict[str, Any],
    allowed_targets: list[str],
    cluster: dict[str, Any],
    logger: dict[str, Any],
    paths: dict[str, Any],
    display: dict[str, Any],
) -> None:
    """What all three kinds have.

    Args:
        name, tags: for people; not part of the fingerprint.
        inputs: name -> experiment, run or `{files: glob}`; the only place where paths come in.
        allowed_targets: packages besides athanor, torch, lightning and torchmetrics that `_target_` may name.
    """


def prepare(*, job: Node, executor: dict[str, Any] = {}) -> None:  # noqa: B006
    """`job` has `run(context: RunContext) -> dict[str, float]`.

    Args:
        executor: where the parts of a corpus are cleaned, a node of `athanor.corpus.executors`.
    """


def evaluate(*, job: Node) -> None:
    """`job` has `run(context: RunContext) -> dict[str, float]`."""


def train(
    *,
    seed: int,
    max_steps: int,
    global_batch_size: int,
    precision: Literal["32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed", "fp8-mixed"],
    gradient_clip: float | None,
    validate_every_n_steps: int,
    model: Node,
    data: Node,
    algorithm: Node,
    optimizer: Node,
    schedule: Node,
    strategy: str | dict[str, Any],
    checkpoint: dict[str, Any],
    callbacks: dict[str, Node] = {},  # noqa: B006
) -> None:
    """The science of a training run, its strategy and its checkpoints.

    Args:
        max_steps: optimizer steps.
        global_batch_size: sequences in one optimizer step, over all devices and accumulated micro-batches.
        gradient_clip: largest global L2 norm of the gradient; null for none.
        strategy: a name that Lightning knows, or a `_target_` node.
        callbacks: what changes a training besides (averages, a guard, early stopping), each under a name of its own.
    """


def cluster(
    *,
    accelerator: str,
    devices: int | str | list[int],
    nodes: int,
    micro_batch_size: int | None,
    num_workers: int,
    threads: int | None,
    compile: bool | Literal["auto"],
    recompute: Literal["none", "selective", "full"] = "none",
    hang_seconds: float | None = None,
    slurm: dict[str, Any] | None = None,
) -> None:
    """The hardware.

    Args:
        devices: how many on each node, which, or "auto".
        micro_batch_size: sequences in one forward pass on one device; null for the device's whole share.
        num_workers: data-loading processes for each device.
        threads: CPU threads of each process; null leaves it to torch.
        compile: whether torch.compile compiles the model's blocks; "auto": where it pays.
        recompute: activations of a block that the backward pass makes again: "selective", all but matrix products and
            attention, or "full".
        hang_seconds: without progress of any rank, after which a training says where it hangs, and ends; null: never.
        slurm: what `athanor submit` tells SLURM.
    """


def slurm(
    *,
    partition: str | None = None,
    account: str | None = None,
    qos: str | None = None,
    time: str | None = None,
    memory: str | None = None,
    cpus_per_task: int | None = None,
    gpu_type: str | None = None,
    modules: list[str] = [],  # noqa: B006
    environment: str | None = None,
    container: str | None = None,
    requeues: int = 50,
    signal_seconds: int = 120,
    options: list[str] = [],  # noqa: B006
) -> None:
    """A SLURM cluster; null leaves it to SLURM. Nodes, tasks and GPUs are `cluster.nodes` and `cluster.devices`.

    Args:
        time: the limit, such as "1-12:00:00"; quoted, or YAML reads a number.
        memory: of a node, such as 200G.
        modules: to load first.
        environment: a file to source, such as a virtual environment's bin/activate.
        container: an image: FILE.sif for apptainer, any other for pyxis.
        requeues: how often a job may go back into the queue.
        signal_seconds: so long before its time is over a training saves itself.
        options: more flags of sbatch, such as --constraint=a100.
    """


def logger(*, wandb: bool, tensorboard: bool, project: str, every_n_steps: int, upload: bool = False) -> None:
    """Where metrics go besides metrics.jsonl, and how often. W&B is offline without a key.

    Args:
        upload: the model itself to W&B, and not only its hashes.
    """


def paths(*, runs: str, data_root: str) -> None:
    """`runs` holds the runs, `data_root` the raw data; a relative one starts at the project's folder."""


def checkpoint(
    *,
    every_n_steps: int | None,
    keep: int,
    every_minutes: float | None = None,
    best: int = 0,
    sharded: bool | None = None,
) -> None:
    """How often the state of training is saved, by steps, by the clock, or both, and what is kept.

    Args:
        keep: how many of the newest; the one before is what a damaged newest one falls back on.
        best: besides, how many of the lowest `validation/loss`, which stay when the run is finished.
        sharded: each process writes its own share, under `fsdp2`, `hsdp`, `fsdp2_tp`, `context` and DeepSpeed's;
            null: from 1e9 trained parameters.
    """


def display(*, progress: Literal["auto", "rich", "plain", "quiet"]) -> None:
    """`auto` is live on a terminal and plain lines elsewhere."""
