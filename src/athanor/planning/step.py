"""One training step of an experiment on fake tensors: what it holds in each of its phases, and what it computes.

The order is the trainer's: gradients go when their step is taken, and are there while a forward pass runs only if it is
one of several that accumulate.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision, Precision
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from athanor.acceleration import accelerate
from athanor.algorithms.base import Algorithm, response_logps
from athanor.algorithms.ppo import PPO, Rollout
from athanor.data.plan import BatchPlan
from athanor.models.heads import ScalarModel
from athanor.models.transformer import Block
from athanor.planning import batches
from athanor.planning.batches import Shape
from athanor.planning.gpu import as_on_gpu
from athanor.planning.layout import Layout, Sizes
from athanor.planning.live import (
    ACTIVATIONS,
    CACHE,
    FROZEN,
    GRADIENTS,
    INPUTS,
    LOGITS,
    OPTIMIZER,
    WEIGHTS,
    WORKING,
    Live,
    Moment,
)
from athanor.train import make_algorithm

PARTS = ("embeddings", "attention", "feed-forward", "norms", "output")


class Network(NamedTuple):
    """A network that a step uses, trained or frozen."""

    name: str
    trained: bool
    parameters: dict[str, int]  # by part
    active: int  # that one token uses
    flops_per_token: float  # forward and backward


class Step(NamedTuple):
    """What a traced step is found to be."""

    peaks: dict[str, Moment]  # by phase
    layers: dict[str, int]  # bytes of activations of each block, as the backward pass begins
    sizes: Sizes


def trace(
    config: dict[str, Any],
    shape: Shape,
    plan: BatchPlan,
    layout: Layout,
    on_gpu: bool,
    live: Live | None = None,
    shard: Callable[[Algorithm], None] = lambda _: None,
) -> Step:
    """Builds the experiment's algorithm and runs a step of it: the optimizer, then a micro-batch there and back, the
    last of those that accumulate, and a validation batch.

    Args:
        config: resolved, with models in the place of the runs they come from.
        shape: of the batches.
        plan: how the global batch is spread; its `rank` is 0.
        on_gpu: whether to assume the kernels of a GPU.
        live: what counts; default by the shares of `layout`.
        shard: what is done with the algorithm before its optimizer is made.
    """
    precision = plugin(config["precision"])
    live = live or Live(layout.share, labelled=shape.labelled, last=shape.length - 2)
    with FakeTensorMode(allow_non_fake_inputs=True), live, ExitStack() as kernels:
        algorithm = make_algorithm(config)
        accelerate(algorithm, config["cluster"] | {"compile": False}, "cpu", 0.0, Path())
        cast(algorithm, config["precision"])
        kernels.enter_context(as_on_gpu(algorithm) if on_gpu else nullcontext())
        algorithm._trainer = stand_in(config, plan)
        shard(algorithm)
        trained = [parameter for _, parameter in algorithm.trainable()]
        own = {id(parameter) for parameter in trained}
        live.set(algorithm.buffers(), WEIGHTS)
        live.set(trained, WEIGHTS)
        live.set((p for p in algorithm.parameters() if id(p) not in own), FROZEN)
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(lambda p: live.set([p.grad], GRADIENTS))
        blocks = {name: module for name, module in algorithm.named_modules() if isinstance(module, Block)}
        mark_blocks(live, blocks)

        optimizer = algorithm.configure_optimizers()["optimizer"]
        live.enter_phase("optimizer", GRADIENTS)
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        live.enter_phase("optimizer", WORKING)
        optimizer.step()
        live.set((x for x in state_of(optimizer) if isinstance(x, Tensor)), OPTIMIZER)

        if plan.accumulation == 1:
            optimizer.zero_grad()

        live.enter_phase("inputs", INPUTS)
        batch = batches.training(algorithm, config, shape, plan)
        if isinstance(algorithm, PPO):
            roll_out(live, algorithm, shape, precision, plan)
        live.enter_phase("forward", ACTIVATIONS)
        with precision.forward_context():
            loss = algorithm.training_step(batch, 0)
        layers = live.by_place()
        live.enter_phase("backward", WORKING)
        assert isinstance(loss, Tensor)
        loss.backward()
        algorithm.configure_gradient_clipping(optimizer, config["gradient_clip"])
        del loss, batch

        if shape.validation:
            live.enter_phase("inputs", INPUTS)
            batch = batches.validating(algorithm, shape)
            live.enter_phase("validation", WORKING)
            algorithm.eval()
            algorithm.on_validation_epoch_start()
            with torch.no_grad(), precision.forward_context():
                validate(algorithm, batch, shape)
    return Step(
        {name: peak for name, peak in live.peaks.items() if name not in ("build", "inputs")},
        {name: size for name, size in layers.items() if name in blocks},
        sizes_of(algorithm, list(blocks.values()), trained),
    )


def sizes_of(algorithm: Algorithm, blocks: list[nn.Module], trained: list[nn.Parameter]) -> Sizes:
    def bytes_of(parameters: Iterable[nn.Parameter]) -> int:
        return sum(p.numel() * p.element_size() for p in parameters)

    each = [bytes_of(block.parameters()) for block in blocks]
    outside = bytes_of(algorithm.parameters()) - sum(each)
    return Sizes(bytes_of(trained), max(each), outside, bytes_of(algorithm.model.parameters()),
                 trained[0].element_size())  # fmt: skip


def networks(config: dict[str, Any], length: int) -> list[Network]:
    """Those of an experiment; nothing is allocated.

    Args:
        length: tokens of a sequence, for the arithmetic of attention.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        algorithm = make_algorithm(config)
        return [network(name, module, length) for name, module in algorithm.named_children()]


def plugin(precision: str) -> Precision:
    """Lightning's own."""
    if precision.endswith("-mixed"):
        return MixedPrecision(precision, device="cpu")  # type: ignore[arg-type]
    return Precision() if precision in ("32-true", "64-true") else HalfPrecision(precision)  # type: ignore[arg-type]


def cast(module: nn.Module, precision: str) -> None:
    """As `module.to(dtype)` in the precisions that are true to their name, which fake parameters do not take."""
    dtype = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}.get(precision)
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, old in part._parameters.items():
            if old is not None and dtype is not None:
                if id(old) not in made:
                    made[id(old)] = nn.Parameter(old.detach().to(dtype), requires_grad=old.requires_grad)
                part._parameters[name] = made[id(old)]


def stand_in(config: dict[str, Any], plan: BatchPlan) -> Any:
    """What the algorithms ask of Lightning's Trainer within a step."""
    data = SimpleNamespace(plan=plan, sample_tokens=config["data"].get("sequence_length"))
    return SimpleNamespace(
        global_step=0, accumulate_grad_batches=plan.accumulation, world_size=plan.world_size,
        max_steps=config["max_steps"], datamodule=data, sanity_checking=False,
    )  # fmt: skip


def state_of(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [value for state in optimizer.state.values() for value in state.values()]


def mark_blocks(live: Live, blocks: Mapping[str, nn.Module]) -> None:
    """While a block computes, activations are its own; after the last one, they belong to the logits and the loss."""
    ends = {name.rpartition(".")[0]: name for name in blocks}.values()

    def begin(name: str) -> Any:
        def hook(*_: Any) -> None:
            if live.phase == "forward":
                live.place, live.making = name, ACTIVATIONS

        return hook

    def end(name: str) -> Any:
        def hook(*_: Any) -> None:
            live.place = ""
            if live.phase == "forward" and name in ends:
                live.making = LOGITS

        return hook

    for name, block in blocks.items():
        block.register_forward_pre_hook(begin(name))
        block.register_forward_hook(end(name))


def network(name: str, module: nn.Module, length: int) -> Network:
    counts = dict.fromkeys(PARTS, 0)
    for key, parameter in module.named_parameters():
        counts[part_of(key)] += parameter.numel()
    trunk = module.trunk if isinstance(module, ScalarModel) else module
    idle = sum(p.numel() for p in trunk.parameters()) - trunk.active_parameters  # type: ignore[operator]
    return Network(
        name,
        any(p.requires_grad for p in module.parameters()),
        counts,
        sum(counts.values()) - int(idle),
        module.flops_per_token(length),  # type: ignore[operator]
    )


def part_of(name: str) -> str:
    """The part of the network that a parameter belongs to, by its name."""
    words = name.split(".")
    if any("norm" in word for word in words):
        return "norms"
    if "blocks" in words:
        return "attention" if "attention" in words else "feed-forward"
    return "embeddings" if any("embedding" in word for word in words) else "output"


# --- generation -------------------------------------------------------------------------------------------------------


def roll_out(live: Live, algorithm: PPO, shape: Shape, precision: Precision, plan: BatchPlan) -> None:
    """What `PPO.collect` holds: the key-value cache of this rank's prompts, then four passes that score the responses.
    Leaves a rollout of all ranks.
    """
    rows, length = shape.rollout // plan.world_size, shape.length
    live.enter_phase("rollout", WORKING)
    algorithm.eval()
    with torch.no_grad(), precision.forward_context():
        generate(live, algorithm.model, rows, shape)
        tokens_RT, labels_RT = batches.ids(rows, length), batches.ids(rows, length)
        ends_R = batches.ids(rows)
        scored = [
            response_logps(algorithm.model, tokens_RT, labels_RT, temperature=algorithm.temperature),
            algorithm.value(tokens_RT),
            response_logps(algorithm.reference, tokens_RT, labels_RT, temperature=algorithm.temperature),
            algorithm.reward.reward(tokens_RT, ends_R, ends_R),  # type: ignore[operator]
        ]
        del scored
    algorithm.train()
    live.enter_phase("inputs", INPUTS)
    whole, numbers = batches.ids(shape.rollout, length), [torch.zeros(shape.rollout, length) for _ in range(4)]
    algorithm.rollout = Rollout(whole, batches.ids(shape.rollout, length), *numbers)


def generate(live: Live, model: nn.Module, rows: int, shape: Shape) -> None:
    """The dearest moment of `rollout.sample`: all prompts at once into the cache, and the first tokens drawn."""
    width = shape.length - shape.new_tokens
    cache = model.new_cache(rows, shape.length)  # type: ignore[operator]
    live.set([cache.store], CACHE)
    mask = torch.ones(rows, 1, width, width, dtype=torch.bool)
    hidden = model.hidden_states(batches.ids(rows, width), mask=mask, cache=cache)[:, -1]  # type: ignore[operator]
    (model.logits(hidden).float().double()).softmax(-1).cumsum(-1)  # type: ignore[operator]


def validate(algorithm: Algorithm, batch: Any, shape: Shape) -> None:
    if not isinstance(algorithm, PPO):
        algorithm.validation_step(batch, 0)
        return
    tokens_BT = batches.ids(shape.validation, shape.length)
    generate(SimpleNamespace(set=lambda *_: None), algorithm.model, shape.validation, shape)  # type: ignore[arg-type]
    algorithm.reward.reward(tokens_BT, tokens_BT[:, 0], tokens_BT[:, 0])  # type: ignore[operator]
    response_logps(algorithm.model, tokens_BT, tokens_BT)
    response_logps(algorithm.reference, tokens_BT, tokens_BT)
