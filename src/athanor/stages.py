"""Pipeline parallelism: each process has some of the layers, and micro-batches go from one to the next, there and back.

torch.distributed.pipelining says when a process does what (1F1B: Narayanan et al. 2019, PipeDream-Flush; interleaved:
Narayanan et al. 2021, arXiv:2104.04473, section 2.2) and sends states and gradients. What an algorithm computes it need
not know: every process has the whole batch, and runs the algorithm's own step on each of its micro-batches up to the
moment when that asks the network for its hidden states. There a process computes its own layers of them, from what came
in, and leaves the step; only the last stage gets the states it asked for, and goes on to the loss. States of a frozen
network that the step asks first (the reference of DPO) go along with those of the one that is trained.

Embeddings that are also the output are held by the first stage and the last, whose gradients are added. Processes that
hold the same layers (the replicas) average their gradients. Processes are numbered stage by stage: those that average,
which send more, are neighbours.

The matrices of a stage's layers may be split in turn, over nearer neighbours still, by the model's own plan
(`athanor.models.parallel`). Those compute the same states from the same bits, and each sends its copy of them on.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B
from torch.distributed.pipelining._utils import extract_tensor_meta
from torch.distributed.pipelining.stage import _RecvInfo
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Shard
from torch.optim import Optimizer

from athanor.algorithms.base import Algorithm
from athanor.errors import UserError
from athanor.models import parallel
from athanor.models.transformer import Transformer
from athanor.strategies import Sharded, networks

EMBEDDINGS = ("embedding.", "position_embedding.")


class Leaving(Exception):  # noqa: N818
    """Carries what a stage hands on out of an algorithm's step."""

    def __init__(self, states: Any):
        super().__init__("a stage's states")
        self.states = states


class Pipeline(Sharded):
    """
    Args:
        stages: processes, or groups of `tensor_parallel`, that share the layers of a network.
        turns: stages of each of them, which a micro-batch meets in turn; more than 1 are interleaved.
        tensor_parallel: processes that share each layer's matrices and work on the same tokens; neighbours.

    Stages times `tensor_parallel` divide all processes; the quotient are replicas.
    """

    skips, cuts_alike = True, True

    def __init__(self, stages: int = 2, turns: int = 1, tensor_parallel: int = 1):
        if stages < 2 or turns < 1 or tensor_parallel < 1:
            raise UserError(
                "strategy.stages must be at least 2, and strategy.turns and strategy.tensor_parallel at least 1."
            )
        super().__init__()
        self.processes, self.turns, self.tensor_parallel = stages, turns, tensor_parallel
        self.keeps_matrices = tensor_parallel == 1
        self.mesh: DeviceMesh | None = None
        self.schedule: Any = None
        self.waiting: list[tuple[Any, int]] = []  # micro-batches of the step, and their numbers
        self.sending: list[tuple[Any, Tensor]] = []
        self.summed: dict[tuple[int, ...], list[str]] = {}
        self.stage, self.looking = 0, False
        self.entering: list[Tensor] = []  # states of each network that a step asks
        self.leaving: list[Tensor] = []
        self.cuts: dict[str, int] = {}  # of a parameter that is split over neighbours, by name: along which dimension
        self.orders: dict[str, Tensor] = {}  # and that of its rows (`athanor.models.parallel`)

    @property
    def stages(self) -> int:
        return self.processes * self.turns

    @property
    def replicas(self) -> int:
        return self.world_size // (self.processes * self.tensor_parallel)

    @property
    def replica(self) -> int:
        return self.global_rank // self.tensor_parallel % self.replicas

    @property
    def alike(self) -> int:
        """Processes that have the same layers, or parts of them."""
        return self.replicas * self.tensor_parallel

    @property
    def place(self) -> int:
        """Of this process in its pipeline."""
        return self.global_rank // self.alike

    @property
    def data_group(self) -> Any:
        return None if self.mesh is None else self.mesh["data"].get_group()

    @property
    def pipeline(self) -> Any:
        """The processes that share a network, or the same parts of its layers, and its data."""
        assert self.mesh is not None
        return self.mesh["stage"].get_group()

    @property
    def neighbours(self) -> Any:
        """The processes that share the matrices of this one's layers."""
        assert self.mesh is not None
        return self.mesh["tensor"].get_group()

    def check(self, world_size: int, algorithm: Algorithm) -> None:
        if world_size % (self.processes * self.tensor_parallel):
            ways = f" times strategy.tensor_parallel={self.tensor_parallel}" if self.tensor_parallel > 1 else ""
            raise UserError(
                f"strategy.stages={self.processes}{ways} does not divide the {world_size} processes; choose a divisor, "
                "or another number of devices."
            )
        name = type(algorithm).__name__
        found = networks(algorithm)
        if len(found) > 1 and not algorithm.asks_first:
            raise UserError(
                f"A pipeline passes once through its networks in a step, but {name} needs {', '.join(found)} one after "
                "the other; choose strategy=fsdp2 for it."
            )
        trunk = trunk_of(algorithm.model)
        if type(trunk) is not Transformer:
            raise UserError(f"A pipeline has decoders, not the {trunk.form} of {name}; choose strategy=fsdp2 for it.")
        if any(block.routed for block in trunk.blocks):
            raise UserError(
                "A pipeline's stages do not see each other's experts; choose strategy=fsdp2 for this model."
            )
        if trunk.position_bias is not None:
            raise UserError("All layers share one learnt position bias, which stages cannot; choose strategy=fsdp2.")
        if len(trunk.blocks) < self.stages:
            raise UserError(
                f"The model has {len(trunk.blocks)} layers, too few for {self.stages} stages; lower strategy.stages or "
                "strategy.turns."
            )
        for other, network in found.items():
            if other != "model" and trunk_of(network).architecture != trunk.architecture:
                raise UserError(
                    f"A pipeline cuts all networks in the same places, but {other} is of another architecture than "
                    "the model; choose strategy=fsdp2."
                )
        self.asked = list(found)  # before averages come to them
        if self.tensor_parallel > 1:
            parallel.check(trunk, self.tensor_parallel)

    # --- who has what ---------------------------------------------------------------------------------------------

    def layers_of(self, stage: int) -> range:
        count = len(self.trunk.blocks)
        return range(count * stage // self.stages, count * (stage + 1) // self.stages)

    def stage_of(self, name: str) -> int:
        """Of a parameter by its name in the network: what lies before the layers is the first one's, after them the
        last one's.
        """
        name = name.removeprefix("trunk.")
        if name.startswith(EMBEDDINGS):
            return 0
        if not name.startswith("blocks."):
            return self.stages - 1
        layer = int(name.split(".")[1])
        return next(stage for stage in range(self.stages) if layer in self.layers_of(stage))

    def holder(self, name: str) -> int:
        """The place of the process whose parameter of that name counts."""
        return self.stage_of(name) % self.processes

    def is_tied(self, name: str) -> bool:
        """Whether the last stage has a copy."""
        return self.tied and name.removeprefix("trunk.") == "embedding.weight"

    def holds(self, name: str) -> bool:
        return self.holder(name) == self.place or (self.is_tied(name) and self.place == self.processes - 1)

    def named(self, networks: dict[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
        """(name in its network, parameter) of all."""
        return ((name, p) for network in networks.values() for name, p in network.named_parameters())

    def source(self, place: int) -> int:
        """The rank of a process of this pipeline."""
        return place * self.alike + self.global_rank % self.alike

    # --- stages ---------------------------------------------------------------------------------------------------

    def shard(self, algorithm: Algorithm) -> None:
        count = algorithm.trainer.accumulate_grad_batches
        if count < self.processes or (self.turns > 1 and count % self.processes):
            rule = "a multiple of" if self.turns > 1 else "at least"
            raise UserError(
                f"A pipeline of {self.processes} processes needs {rule} {self.processes} micro-batches a step, and has "
                f"{count}; set cluster.micro_batch_size."
            )
        shape = (self.processes, self.replicas, self.tensor_parallel)
        self.mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=("stage", "data", "tensor"))
        self.trunk = cast(Any, trunk_of(algorithm.model))
        self.tied = self.trunk.output is None and getattr(algorithm.model, "likelihood", True)
        ends = [[same, (self.processes - 1) * self.alike + same] for same in range(self.alike)]
        self.both_ends: Any = dist.new_subgroups_by_enumeration(ends)[0] if self.tied else None
        if self.tensor_parallel == 1:
            self.setup_optimizers(algorithm.trainer)  # while parameters have their shapes; they stay the same objects
        for name, parameter in self.named(networks(algorithm)):
            if not self.holds(name):
                parameter.data = parameter.new_empty((0,) * parameter.ndim)
        algorithm.to(self.root_device)
        if self.tensor_parallel > 1:
            for network in networks(algorithm).values():
                self.split(network)
            self.setup_optimizers(algorithm.trainer)
        self.own = [p for name, p in self.named({"model": algorithm.model}) if self.holds(name)]
        self.copied = [p for name, p in self.named({"model": algorithm.model}) if self.is_tied(name)]
        self.dtype = self.own[0].dtype
        for name in self.asked:
            trunk = cast(Any, trunk_of(networks(algorithm)[name]))
            trunk.hidden_states = partial(self.hidden_states, trunk.hidden_states)
        self.local = [
            Stage(turn * self.processes + self.place, self, count=count) for turn in range(self.turns)
        ]  # fmt: skip
        settings: dict[str, Any] = {"loss_fn": lambda loss, _: loss, "scale_grads": False}
        if self.turns == 1:
            self.schedule = Schedule1F1B(self.local[0], count, **settings)
        else:
            self.schedule = ScheduleInterleaved1F1B(list(self.local), count, **settings)

    def split(self, network: nn.Module) -> None:
        """A network's layers that are held here, over the neighbours."""
        assert self.mesh is not None
        trunk = cast(Any, trunk_of(network))
        start = "" if trunk is network else "trunk."
        held = [layer for stage in range(self.place, self.stages, self.processes) for layer in self.layers_of(stage)]
        orders = trunk.parallelize(self.mesh["tensor"], held)
        self.orders |= {f"{start}{name}": order for name, order in orders.items()}
        for name, module in network.named_modules():
            for own, placement in hold_pieces(module).items():
                if isinstance(placement, Shard):
                    self.cuts[f"{name}.{own}"] = placement.dim

    def hidden_states(self, whole_pass: Any, tokens_BT: Tensor, **where: Any) -> Tensor:
        """In the place of a network's own, `whole_pass`."""
        number = len(self.leaving)
        if number == len(self.asked):
            raise UserError(
                f"A pipeline passes once through its networks in a step, and {type(self.algorithm).__name__} wants "
                "more; choose strategy=fsdp2 for it."
            )
        if self.looking:
            raise Leaving(tokens_BT.shape)
        entering_BTD = self.entering[number] if self.entering else None
        states_BTD: Tensor = whole_pass(
            tokens_BT, entering_BTD=entering_BTD, layers=self.layers_of(self.stage), **where
        )
        self.leaving.append(states_BTD.to(self.dtype))
        if self.stage < self.stages - 1 and len(self.leaving) == len(self.asked):
            raise Leaving(torch.stack(self.leaving))
        return states_BTD

    def look(self, step: Any, batch: Any, index: int) -> torch.Size:
        """The shape of the states that go from stage to stage in an algorithm's step, [networks, B, T, D]."""
        self.looking = True
        try:
            self.compute(step, batch, index, 0, None)
        except Leaving as leaving:
            return torch.Size((len(self.asked), *leaving.states, self.trunk.width))
        finally:
            self.looking = False
        raise UserError(f"{type(self.algorithm).__name__} does not ask its network for hidden states.")

    def compute(self, step: Any, batch: Any, index: int, stage: int, entering: Tensor | None) -> Any:
        """What a stage makes of a micro-batch: states, or what the step returns."""
        self.stage, self.leaving = stage, []
        self.entering = [] if entering is None else list(entering.unbind())
        try:
            return step(batch, index)
        except Leaving as leaving:
            if self.looking:
                raise
            return leaving.states
        finally:
            self.entering, self.leaving = [], []

    # --- steps ----------------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, index: int) -> Tensor:
        """Nothing yet: the schedule wants all micro-batches of a step."""
        self.waiting.append((batch, index))
        self.algorithm.begin_sums()
        return torch.zeros((), device=self.root_device, requires_grad=True)

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *_: Any, **__: Any) -> Tensor:
        """At the last micro-batch of a step, all of it: forward and backward passes of all of them."""
        algorithm = self.algorithm
        if len(self.waiting) == algorithm.trainer.accumulate_grad_batches:
            shapes = [self.look(algorithm.training_step, *work) for work in self.waiting]
            for stage in self.local:
                stage.expect(shapes)
            numbers = torch.arange(len(self.waiting))
            self.schedule.step(number=numbers, target=numbers, return_outputs=False)
            self.waiting.clear()
            algorithm._sums = self.shared(algorithm._sums, ())
            self.reduce_gradients()
        return closure_loss

    @property
    def is_last(self) -> bool:
        return self.place == self.processes - 1

    def turn(self, stage: int, number: int, entering: Tensor | None) -> Tensor:
        """A stage's forward pass of a micro-batch; of the last one its part of the step's loss."""
        algorithm, (batch, index) = self.algorithm, self.waiting[number]
        torch.manual_seed(algorithm.seed_of(index) * 1_021 + stage)
        with self.precision_plugin.train_step_context():
            found: Tensor = self.compute(algorithm.training_step, batch, index, stage, entering)
        return found / len(self.waiting) if stage == self.stages - 1 else found

    def reduce_gradients(self) -> None:
        """Over the replicas; then over both ends, which so have the same bits."""
        grads = [p.grad for p in self.own if p.grad is not None]
        if self.replicas > 1:
            for work in [dist.all_reduce(grad, group=self.data_group, async_op=True) for grad in grads]:
                work.wait()
            torch._foreach_div_(grads, self.replicas)
        if self.both_ends is not None and self.place in (0, self.processes - 1):
            for parameter in self.copied:
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad, group=self.both_ends)

    def clip(self, parameters: list[nn.Parameter], max_norm: float) -> Tensor:
        twice = {id(p) for p in self.copied} if self.place else set()
        grads = [p.grad for p in parameters if p.grad is not None]
        pieces = {id(p) for name, p in self.named({"model": self.algorithm.model}) if name in self.cuts}
        squares = torch.zeros((), device=self.root_device)
        for cut in (True, False):  # pieces first, whose squares the neighbours add up
            once = [p for p in parameters if id(p) not in twice and (id(p) in pieces) == cut]
            norm = nn.utils.get_total_norm([p.grad for p in once if p.grad is not None])
            squares += norm.to(self.root_device, torch.float32).square()
            if cut and self.tensor_parallel > 1:
                dist.all_reduce(squares, group=self.neighbours)
        dist.all_reduce(squares, group=self.pipeline)
        norm = squares.sqrt()
        torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def validation_step(self, batch: Any, index: int) -> None:
        """One batch after another through all stages; a process goes on to the next one when its own part is done."""
        step, before = self.algorithm.validation_step, self.sending
        shape = self.look(step, batch, index)
        self.sending = []
        for stage in range(self.place, self.stages, self.processes):
            entering = None
            if stage:
                entering = torch.empty(shape, dtype=self.dtype, device=self.root_device)
                dist.recv(entering, self.source((stage - 1) % self.processes), group=self.pipeline)
            with self.precision_plugin.val_step_context():
                states = self.compute(step, batch, index, stage, entering)
            if stage < self.stages - 1:
                target = self.source((stage + 1) % self.processes)
                self.sending.append((dist.isend(states, target, group=self.pipeline), states))
        for work, _ in before:
            work.wait()

    def shared(self, sums: dict[str, Tensor], shape: tuple[int, ...] = (2,)) -> dict[str, Tensor]:
        """The sums of the last stage, which alone has any; float32 scalars of a step, float64 [2] of validations.
        Collective.
        """
        for work, _ in self.sending:
            work.wait()
        self.sending = []
        source = self.source(self.processes - 1)
        if shape not in self.summed:  # the same at every step
            told = [list(sums)]
            dist.broadcast_object_list(told, source, group=self.pipeline)
            self.summed[shape] = told[0]
        names, dtype = self.summed[shape], torch.float64 if shape else torch.float32
        values = torch.zeros((len(names), *shape), dtype=dtype, device=self.root_device)
        if self.is_last:
            values = torch.stack([sums[name].to(dtype) for name in names])
        dist.broadcast(values, source, group=self.pipeline)
        return dict(zip(names, values))

    # --- whole tensors --------------------------------------------------------------------------------------------

    def joined(self, name: str, own: Tensor) -> Tensor:
        """A parameter of a layer that is held here, or what an optimizer keeps of it, whole. Collective among
        neighbours.
        """
        own = own.to(self.root_device)
        if name not in self.cuts or not own.ndim:
            return own.clone()
        pieces = [torch.empty_like(own) for _ in range(self.tensor_parallel)]
        dist.all_gather(pieces, own.contiguous(), group=self.neighbours)
        whole = torch.cat(pieces, self.cuts[name])
        return whole if name not in self.orders else whole[self.orders[name].argsort().to(whole.device)]

    def piece(self, name: str, whole: Tensor) -> Tensor:
        """This process's of what `joined` gives."""
        if name not in self.cuts or not whole.ndim:
            return whole
        if name in self.orders:
            whole = whole[self.orders[name]]
        return whole.chunk(self.tensor_parallel, self.cuts[name])[self.global_rank % self.tensor_parallel]

    def full(self, network: nn.Module, keep: bool = True) -> Iterator[tuple[str, Tensor]]:
        (prefix,) = (name for name, child in self.algorithm.named_children() if child is network)
        shapes = {name: parameter.shape for name, parameter in self.plain[prefix].named_parameters()}
        for name, parameter in network.named_parameters():
            yield name, self.passed_on(name, parameter.detach(), shapes[name], parameter.dtype)

    def passed_on(self, name: str, own: Tensor | None, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """A tensor of the process that holds a parameter, on all of the pipeline. Collective."""
        place = self.holder(name)
        if place == self.place:
            assert own is not None
            value = self.joined(name, own)
        else:
            value = torch.empty(shape, dtype=dtype, device=self.root_device)
        dist.broadcast(value, self.source(place), group=self.pipeline)
        return value

    def fill(self, parameters: dict[str, Tensor]) -> None:
        for prefix, network in networks(self.algorithm).items():
            for name, parameter in network.named_parameters():
                if self.holds(name) and f"{prefix}.{name}" in parameters:
                    parameter.copy_(self.piece(name, parameters[f"{prefix}.{name}"]))

    def _names(self, optimizer: Optimizer) -> list[str]:
        """Of the parameters in their networks, as its state dict numbers them."""
        names = {id(parameter): name for name, parameter in self.named(networks(self.algorithm))}
        return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]

    def described(self, name: str, value: Any) -> tuple[torch.Size | None, torch.dtype | None, Any]:
        """(whole shape, dtype, None) of a tensor that an optimizer keeps; (None, None, value) of anything else."""
        if not isinstance(value, Tensor):
            return None, None, value
        shape = list(value.shape)
        if shape and name in self.cuts:
            shape[self.cuts[name]] *= self.tensor_parallel
        return torch.Size(shape), value.dtype, None

    def full_optimizer(self, optimizer: Optimizer) -> dict[str, Any]:
        state, names = optimizer.state_dict(), self._names(optimizer)
        mine = {number: {key: self.described(names[number], value) for key, value in entries.items()}
                for number, entries in state["state"].items()}  # fmt: skip
        known: list[Any] = [None] * self.processes
        dist.all_gather_object(known, mine, group=self.pipeline)
        whole: dict[int, dict[str, Any]] = {}
        for number, name in enumerate(names):
            for key, (shape, dtype, value) in known[self.holder(name)].get(number, {}).items():
                if shape is not None:
                    value = self.passed_on(name, state["state"].get(number, {}).get(key), shape, dtype).cpu()
                if self.is_global_zero:
                    whole.setdefault(number, {})[key] = value
        return {**state, "state": whole}

    def fill_optimizer(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        names = self._names(optimizer)
        own = {number: {key: self.piece(names[number], value).clone() if isinstance(value, Tensor) else value
                        for key, value in entries.items()}
               for number, entries in state["state"].items() if self.holds(names[number])}  # fmt: skip
        optimizer.load_state_dict({**state, "state": own})


class Stage(PipelineStage):
    """torch's, for micro-batches that may be of different shapes, which all processes know; what it receives into is
    made when it is needed.
    """

    def __init__(self, index: int, strategy: Pipeline, count: int):
        like = torch.empty(1, dtype=strategy.dtype, device="meta").requires_grad_()
        module = Turn(partial(strategy.turn, index))
        super().__init__(
            module, index, strategy.stages, strategy.root_device, input_args=like, output_args=like,
            group=strategy.pipeline,
        )  # fmt: skip
        self.shapes, self.dtype = [torch.Size((1,))] * count, strategy.dtype

    def expect(self, shapes: list[torch.Size]) -> None:
        self.shapes = shapes

    def _receive(self, infos: dict[int, tuple[_RecvInfo, ...]], number: int, gradient: bool) -> None:
        for info in infos[number]:
            if not info.is_root_arg:
                like = torch.empty(self.shapes[number], dtype=self.dtype, device=self.device)
                info.buffer, info.tensor_meta = like, extract_tensor_meta(like.detach().requires_grad_(not gradient))

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        self._receive(self.args_recv_info, fwd_chunk_id, gradient=False)
        return super().get_fwd_recv_ops(fwd_chunk_id)

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        if self.has_backward and not self.is_last:
            self._receive(self.grad_recv_info, bwd_chunk_id, gradient=True)
        return super().get_bwd_recv_ops(bwd_chunk_id)


class Turn(nn.Module):
    """What torch calls with the states that enter, and the number of the micro-batch."""

    def __init__(self, run: Any):
        super().__init__()
        self.run = run

    def forward(self, entering: Tensor | None = None, *, number: Tensor) -> Tensor:
        result: Tensor = self.run(int(number), entering)
        return result


def hold_pieces(module: nn.Module) -> dict[str, Any]:
    """Makes plain tensors of a module's own parameters that are DTensors, for whoever adds them up, moves or saves
    them; it still computes with the DTensors, which are attributes of its class. Returns their placements.
    """

    def whole(name: str, mesh: DeviceMesh, placements: tuple) -> property:
        return property(
            lambda self: DTensor.from_local(self._parameters[name], mesh, placements, grad_placements=placements)
        )

    found = {name: p for name, p in module.named_parameters(recurse=False) if isinstance(p, DTensor)}
    if found:
        views = {name: whole(name, p.device_mesh, p.placements) for name, p in found.items()}
        module.__class__ = type(type(module).__name__, (type(module),), views)
    for name, parameter in found.items():
        module._parameters[name] = nn.Parameter(parameter.to_local().detach(), requires_grad=parameter.requires_grad)
    return {name: parameter.placements[0] for name, parameter in found.items()}


def trunk_of(model: nn.Module) -> nn.Module:
    return getattr(model, "trunk", model)
