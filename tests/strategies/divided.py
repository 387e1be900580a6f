"""Trains in stages, or with rows in parts, in so many processes, what `matrix.py` trains by other strategies.

python divided.py TOKENIZER PROMPTS OUTPUT     then on stdin lines of single|STAGESxTURNS[xTENSOR]|contextPARTS[-ring]
PROCESSES CELL...

A cell is ALGORITHM/KIND, KIND an optimizer or what else is not as usual. OUTPUT/LAYOUT-PROCESSES/RANK.pt holds for
each: metrics and whole final weights (rank 0), samples, and numbers held; or the sentence that refuses it. `stop/CELL`
saves LAYOUT-PROCESSES/ALGORITHM-KIND.ckpt in the middle; `from/FOLDER/CELL` goes on from that of FOLDER. `ring/causal`
and `ring/packed` compare attention in a ring of all processes with that of one: the largest differences of the output
and of the gradients of queries, keys and values, and the numbers of scores that this process worked out.
"""

import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import matrix
import torch
import torch.distributed as dist
from lightning import Callback
from matrix import BATCH, OPTIMIZERS, held, watched, whole_weights
from test_invariance import Tokens, sequences
from torch.nn.functional import scaled_dot_product_attention

from athanor import ring
from athanor.acceleration import accelerate
from athanor.algorithms.base import Algorithm
from athanor.algorithms.dpo import DPO
from athanor.algorithms.pretraining import Pretraining
from athanor.algorithms.reward import RewardModeling
from athanor.algorithms.sft import SFT
from athanor.callbacks.averaging import AveragedIterates, ExponentialAverage
from athanor.context import ContextParallel
from athanor.data.base import Data
from athanor.data.instructions import Conversations
from athanor.data.preferences import Pairs
from athanor.data.pretraining import PackedRows
from athanor.errors import UserError
from athanor.models.attention import packed_mask
from athanor.models.heads import ScalarModel
from athanor.schedules import cosine
from athanor.stages import Pipeline
from small import Given, decoder, fit

STEPS, STOP, ACCUMULATED = 6, 3, 4


def make(name: str, kind: str) -> tuple[Algorithm, Data]:
    shape: dict[str, Any] = {"kv_heads": 2, "heads": 4, "width": 48, "hidden": 64, "layers": 4}
    shape |= {"untied": {"tie_embeddings": False}, "dropout": {"dropout": 0.1}}.get(kind, {})
    arguments: tuple = (OPTIMIZERS.get(kind, OPTIMIZERS["adamw"]), partial(cosine, warmup_steps=2))

    def given(make: Any) -> Given:  # other objects for validation, whose samples are not watched
        return Given(make(), make(), validation_batch_size=4)

    pairs = given(lambda: Pairs(sequences(23, 2), sequences(23, 3), 0))
    model = decoder(29, **shape)
    if name == "pretraining":
        return Pretraining(model, *arguments), given(lambda: PackedRows(Tokens(60, 1), 24))
    if name == "sft":  # micro-batches of all lengths
        return SFT(model, *arguments), given(lambda: Conversations(sequences(23, 1), 0))
    if name == "dpo":
        shape |= {"other": {"hidden": 96}}.get(kind, {})
        return DPO(model, *arguments, reference=decoder(29, 7, **shape), beta=0.2), pairs
    scorer = ScalarModel(model, likelihood=kind == "likelihood")
    torch.nn.init.normal_(scorer.head.weight, std=0.3)
    return RewardModeling(scorer, *arguments), pairs


def compare_ring(world: int, rank: int, packed: bool) -> dict[str, Any]:
    rows, heads, kv_heads, tokens, channels = 2, 4, 2, 16 * world, 8
    torch.manual_seed(0)
    query, key, value, slope = (torch.randn(rows, h, tokens, channels) for h in (heads, kv_heads, kv_heads, heads))
    documents_BT = torch.tensor([[0] * 5 + [1] * (tokens - 5), [0] * (tokens // 2) + [1] * (tokens // 2)])
    allowed = packed_mask(documents_BT if packed else documents_BT * 0)
    whole = [x.clone().requires_grad_() for x in (query, key, value)]
    expected = scaled_dot_product_attention(*whole, attn_mask=allowed, scale=0.3, enable_gqa=True)
    expected.backward(slope)
    pieces = torch.arange(tokens).chunk(2 * world)
    places = [torch.cat((pieces[part], pieces[2 * world - 1 - part])) for part in range(world)]
    own = [x[:, :, places[rank]].clone().requires_grad_() for x in (query, key, value)]
    scores = []
    looked_up = ring.looked_up

    def counted(query: Any, others: Any, *rest: Any) -> Any:
        scores.append(query.shape[2] * others[0].shape[2])
        return looked_up(query, others, *rest)

    if not dist.is_initialized():  # by a training before
        dist.init_process_group("gloo", rank=rank, world_size=world)
    ring.looked_up = counted
    documents = torch.stack([documents_BT[:, place] for place in places]) if packed else None
    found = ring.attend(*own, documents, ring.Ring(dist.group.WORLD), 0.3)
    found.backward(slope[:, :, places[rank]])
    ring.looked_up = looked_up
    pairs = [(expected, found), *((x.grad, y.grad) for x, y in zip(whole, own))]
    far = [float((x[:, :, places[rank]] - y).abs().max() / x.abs().max()) for x, y in pairs]
    return {"far": far, "scores": sum(scores), "sizes": [float(x.abs().max()) for x, _ in pairs]}


def train(layout: str, world: int, rank: int, given: Any, output: Path, words: list[str]) -> None:
    torch.set_num_threads(1)
    results: dict[Any, dict] = {}
    for word in words:
        *before, name, kind = word.split("/")
        if name == "ring":
            results[word] = compare_ring(world, rank, kind == "packed")
            continue
        algorithm, data = make(name, kind)
        chosen: Pipeline | ContextParallel | None = None
        replicas = 1
        if layout.startswith("context"):
            parts, _, attention = layout.removeprefix("context").partition("-")
            chosen = ContextParallel(int(parts), "ring" if attention else "gather")
            replicas = world // chosen.parts
        elif layout != "single":
            stages, turns, *tensor = map(int, layout.split("x"))
            chosen, replicas = Pipeline(stages, turns, *tensor), world // math.prod((stages, *tensor))
        settings: dict[str, Any] = {}
        if before[:1] == ["stop"]:
            settings = {"stop": STOP, "save": output / f"{name}-{kind}.ckpt"}
        if before[:1] == ["from"]:
            settings = {"resume": output.parent / before[1] / f"{name}-{kind}.ckpt"}
            with torch.no_grad():
                for parameter in algorithm.parameters():
                    parameter.mul_(0.5)  # whatever is not loaded shows
        beside: list[Callback] = [ExponentialAverage(0.9)] if kind == "average" else []
        if kind == "schedule_free":
            beside.append(AveragedIterates())
        if kind == "recompute":
            accelerate(algorithm, {"recompute": "full", "compile": False}, "cpu", 1.0, output)
        split = 1 if layout == "single" or kind == "whole" else ACCUMULATED
        seen = watched(data)
        try:
            metrics = fit(
                algorithm, data, steps=STEPS, batch=BATCH, micro=BATCH // replicas // split, clip=0.5, world=world,
                strategy=chosen, validate_every=2, callbacks=beside, **settings,
            )  # fmt: skip
        except UserError as error:
            results[word] = {"refused": str(error)}
            continue
        results[word] = {"weights": whole_weights(algorithm), "seen": seen, "held": held(algorithm)}
        if rank == 0:
            results[word]["metrics"] = metrics.history
    torch.save(results, output / f"{rank}.pt")


if __name__ == "__main__":
    matrix.train = train
    matrix.main(*sys.argv[1:])
