"""Context parallelism: neighbouring processes each have some of the tokens of the same rows, and of all that is
computed of them; only attention needs the others', whose keys and values it gathers (Llama 3, Grattafiori et al. 2024,
arXiv:2407.21783, section 3.3.2), or lets go round a ring (`athanor.ring`). With few key-value heads these are small
beside the activations; the ring is for rows whose mask and whose keys of all processes are not.

Each process takes two pieces of a row, one from its beginning and one from its end, so that all have as many earlier
tokens to look at. Parameters are sharded over all processes by FSDP2.
"""

import math
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from athanor.algorithms.base import Algorithm
from athanor.algorithms.pretraining import Pretraining
from athanor.algorithms.sft import SFT
from athanor.batches import IGNORED
from athanor.errors import UserError
from athanor.functional import computing_dtype
from athanor.models.attention import SelfAttention
from athanor.models.patterns import Full
from athanor.models.transformer import Transformer
from athanor.ring import GRAIN, Ring, attend
from athanor.strategies import FSDP2

PADDING = {"labels_BT": IGNORED, "documents_BT": -1}  # of what makes a row divide; 0 else


class ContextParallel(FSDP2):
    """
    Args:
        parts: processes that share the tokens of a row. They divide all processes.
        attention: gather all keys and values of a layer at once, or take them block by block from a ring.
    """

    compiles = False

    def __init__(self, parts: int = 2, attention: Literal["gather", "ring"] = "gather"):
        if parts < 2:
            raise UserError("strategy.parts must be at least 2.")
        if attention not in ("gather", "ring"):
            raise UserError(f"strategy.attention={attention} must be gather or ring.")
        super().__init__()
        self.parts, self.attention = parts, attention
        self.among: Any = None
        self.columns, self.order = torch.empty(0), torch.empty(0)  # of a row: this process's, and those of all
        self.documents_BT: Tensor | None = None

    @property
    def replicas(self) -> int:
        return self.world_size // self.parts

    @property
    def replica(self) -> int:
        return self.global_rank // self.parts

    @property
    def part(self) -> int:
        return self.global_rank % self.parts

    @property
    def averaged(self) -> int:
        return self.world_size

    def check(self, world_size: int, algorithm: Algorithm) -> None:
        if world_size % self.parts:
            raise UserError(
                f"strategy.parts={self.parts} does not divide the {world_size} processes; choose a divisor, or another "
                "number of devices."
            )
        if not isinstance(algorithm, Pretraining | SFT):
            raise UserError(
                f"The loss of {type(algorithm).__name__} is not a sum over tokens, which processes could share; choose "
                "strategy=fsdp2."
            )
        model = cast(Any, algorithm.model)
        if type(model) is not Transformer or model.positions.biased or any(block.routed for block in model.blocks):
            raise UserError("Rows are shared by decoders without position biases and experts; choose strategy=fsdp2.")
        if any(not isinstance(pattern, Full) for pattern in model.patterns):
            raise UserError("Rows are not shared where attention is sparse; choose strategy=fsdp2.")
        if self.attention == "ring" and (model.attention_dropout or model.attention.softcap):
            raise UserError(
                "In a ring, attention has neither dropout nor capped scores; set strategy.attention=gather, or "
                "model.dropout=0."
            )

    def shard(self, algorithm: Algorithm) -> None:
        shape = (self.replicas, self.parts)
        self.among = init_device_mesh(self.root_device.type, shape, mesh_dim_names=("rows", "part"))["part"].get_group()
        trunk = cast(Any, algorithm.model)
        trunk.hidden_states = partial(self.hidden_states, trunk.hidden_states)
        ring = Ring(self.among)
        for block in trunk.blocks:
            own = block.attention
            own.attended = (
                partial(self.in_ring, own, ring) if self.attention == "ring" else partial(self.attended, own.attended)
            )
        super().shard(algorithm)

    # --- rows -----------------------------------------------------------------------------------------------------

    def cut(self, batch: Any) -> Any:
        """This process's tokens of a batch, and notes what they are among."""
        length, pieces = batch.tokens_BT.shape[1], 2 * self.parts
        grain = pieces * (GRAIN[self.root_device.type] if self.attention == "ring" else 1)
        columns = torch.arange(-(-length // grain) * grain, device=batch.tokens_BT.device).chunk(pieces)
        own = [torch.cat((columns[part], columns[pieces - 1 - part])) for part in range(self.parts)]
        self.columns, self.order = own[self.part], torch.cat(own)
        whole = {
            name: torch.nn.functional.pad(field, (0, len(self.order) - length), value=PADDING.get(name, 0))
            for name, field in batch._asdict().items() if name.endswith("_BT")
        }  # fmt: skip
        self.documents_BT = whole.get("documents_BT")
        return batch._replace(**{name: field[:, self.columns] for name, field in whole.items()})

    def hidden_states(
        self, whole: Any, tokens_BT: Tensor, documents_BT: Tensor | None = None, positions_BT: Tensor | None = None,
        **where: Any,
    ) -> Tensor:  # fmt: skip
        """In the place of the network's own, `whole`, which would take the tokens for a row."""
        mask = None
        if self.attention == "gather":
            allowed_BTS = (self.order <= self.columns[:, None])[None]
            if self.documents_BT is not None:
                ours_BT, all_BS = self.documents_BT[:, self.columns], self.documents_BT[:, self.order]
                allowed_BTS = allowed_BTS & (ours_BT[:, :, None] == all_BS[:, None])
            mask = allowed_BTS[:, None]
        positions_BT = self.columns[None] if positions_BT is None else positions_BT
        states_BTD: Tensor = whole(tokens_BT, positions_BT=positions_BT, mask=mask, **where)
        return states_BTD

    def attended(
        self, whole: Any, query_BHTC: Tensor, key_BKTC: Tensor, value_BKTC: Tensor, mask: Any, causal: bool
    ) -> Tensor:
        """In the place of an attention's own, `whole`: over the keys and values of all, in the order of `order`."""
        all_P2BKTC = Gathered.apply(torch.stack((key_BKTC, value_BKTC)), self.among)
        key_BKSC, value_BKSC = all_P2BKTC.movedim(0, 3).flatten(3, 4)
        attended_BTD: Tensor = whole(query_BHTC, key_BKSC, value_BKSC, mask, causal)
        return attended_BTD

    def in_ring(
        self, module: SelfAttention, ring: Ring, query_BHTC: Tensor, key_BKTC: Tensor, value_BKTC: Tensor, mask: Any,
        causal: bool,
    ) -> Tensor:  # fmt: skip
        """In the place of the same."""
        query, key, value = (x.to(computing_dtype(x)) for x in (query_BHTC, key_BKTC, value_BKTC))
        scale = 1 / math.sqrt(module.channels) if module.scale is None else module.scale
        documents_NBT = None
        if self.documents_BT is not None:
            documents_NBT = torch.stack(self.documents_BT[:, self.order].chunk(self.parts, 1))
        out_BHTC = attend(query, key, value, documents_NBT, ring, scale)
        attended_BTD: Tensor = module.out(out_BHTC.transpose(1, 2).flatten(2))
        return attended_BTD

    # --- steps ----------------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, index: int) -> Any:
        torch.manual_seed(self.algorithm.seed_of(index) * 1_021 + self.part)  # dropout's noise is each part's own
        return super().training_step(self.cut(batch), index)

    def validation_step(self, batch: Any, index: int) -> Any:
        return super().validation_step(self.cut(batch), index)


class Gathered(torch.autograd.Function):
    """Tensors of the same shape of all processes of a group, [processes, ...]."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: Any) -> Tensor:
        ctx.group = group
        found = own.new_empty(dist.get_world_size(group) * len(own), *own.shape[1:])
        dist.all_gather_into_tensor(found, own.contiguous(), group=group)
        return found.unflatten(0, (-1, len(own)))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        own = grad.new_empty(grad.shape[1:])
        dist.reduce_scatter_tensor(own, grad.flatten(0, 1).contiguous(), group=ctx.group)
        return own, None
