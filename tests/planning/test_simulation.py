"""A simulated rank against sums by hand, and against the plan."""

import pytest

from athanor import config as configs
from athanor.errors import UserError
from athanor.planning import plan as planning
from athanor.planning.live import GATHERED, GRADIENTS, OPTIMIZER, WEIGHTS
from athanor.planning.simulation import simulate

LAYERS, WIDTH, HIDDEN, KEYS, VOCABULARY, LENGTH = 3, 256, 512, 128, 4096, 128
SHAPE = (
    f"model.layers={LAYERS}", f"model.width={WIDTH}", f"+model.hidden={HIDDEN}", "model.heads=8", "+model.kv_heads=4",
    f"model.vocabulary_size={VOCABULARY}", f"model.context={LENGTH}", f"data.sequence_length={LENGTH}",
    "+model.tie_embeddings=false", "global_batch_size=32", "cluster=gpus", "cluster.nodes=2", "cluster.devices=4",
    "cluster.recompute=full",
)  # fmt: skip
BLOCK = WIDTH * (WIDTH + 2 * KEYS) + WIDTH * WIDTH + 3 * WIDTH * HIDDEN + 2 * WIDTH
OUTSIDE = 2 * VOCABULARY * WIDTH + WIDTH
PARAMETERS = LAYERS * BLOCK + OUTSIDE
NORMS = 2 * LAYERS * WIDTH
BY_FOUR = (LAYERS * BLOCK - NORMS) / 4 + NORMS + OUTSIDE  # what each of four neighbours holds before it is sharded


def load(*overrides: str) -> configs.Experiment:
    return configs.load("ladder/10m", [*SHAPE, *overrides])


def sent(found, phase, kind, ranks):
    return sum(row.bytes for row in found.sent if (row.phase, row.kind, row.ranks) == (phase, kind, ranks))


def test_sharded_over_all_a_rank_gathers_each_layer_twice_and_reduces_once():
    found = simulate(load("strategy=fsdp2"))
    others = 7 / 8 * 4  # bytes sent for a number, by a ring of eight
    assert sent(found, "forward", "all-gather", 8) == pytest.approx(others * PARAMETERS)
    assert sent(found, "backward", "all-gather", 8) == pytest.approx(others * LAYERS * BLOCK)  # the rest is still there
    assert sent(found, "backward", "reduce-scatter", 8) == pytest.approx(others * PARAMETERS)
    assert {row.nodes for row in found.sent} == {2}
    assert found.per_step(within=True) == pytest.approx(others * (2 * PARAMETERS + LAYERS * BLOCK), rel=1e-4)
    assert found.per_step(within=False) == pytest.approx(found.per_step(within=True) / 4)  # a node's four share it
    # one of four hops of the ring leaves a node, and carries what every hop does
    assert [row.leaving / row.bytes for row in found.sent] == [1.0] * len(found.sent)
    assert [sum(weights.values()) for weights in found.weights] == [4 * PARAMETERS // 8] * 8


def test_neighbours_that_share_layers_exchange_activations_within_their_node():
    found = simulate(load("strategy=fsdp2_tp", "strategy.tensor_parallel=4", "cluster.micro_batch_size=8"))
    assert (found.batch.micro, found.batch.accumulation) == (8, 2)
    states = 8 * LENGTH * WIDTH * 2  # bytes of one tensor of states, bfloat16
    ring = 2 * 3 / 4
    assert sent(found, "forward", "all-reduce", 4) == pytest.approx(ring * 2 * LAYERS * states)
    # gradients of the inputs of both branches, in float32; and of what is made again the first branch's result: there
    # is no need for the second one's
    assert sent(found, "backward", "all-reduce", 4) == pytest.approx(ring * 5 * LAYERS * states, rel=0.01)
    assert sent(found, "forward", "all-gather", 2) == pytest.approx(1 / 2 * 4 * BY_FOUR)
    assert {row.ranks: row.nodes for row in found.sent} == {4: 1, 2: 2}
    (gathered,) = (row for row in found.sent if (row.phase, row.kind) == ("forward", "all-gather"))
    assert gathered.leaving == pytest.approx(4 * gathered.bytes)  # each of a node's four has a ring of its own
    between = sum(row.bytes for row in found.sent if row.nodes == 2)
    assert found.per_step(within=False) == pytest.approx(2 * between)  # in each of two micro-batches
    assert found.per_step(within=True) == pytest.approx(2 * sum(row.bytes for row in found.sent if row.nodes == 1))
    assert found.weights[0]["embeddings"] == 4 * VOCABULARY * WIDTH / 2
    assert found.weights[0]["attention"] == 4 * LAYERS * (WIDTH * (WIDTH + 2 * KEYS) + WIDTH * WIDTH) / 8


def test_what_does_not_divide_is_cut_as_torch_does():
    found = simulate(load("strategy=fsdp2", "model.vocabulary_size=4090"), rank=3)
    assert [weights["embeddings"] for weights in found.weights] == [4 * 512 * WIDTH] * 7 + [4 * 506 * WIDTH]
    whole = PARAMETERS - 2 * 6 * WIDTH
    assert sum(sum(weights.values()) for weights in found.weights) == 4 * whole
    last = simulate(load("strategy=fsdp2", "model.vocabulary_size=4090"), rank=7)
    held = [one.peaks["optimizer"].parts[WEIGHTS] for one in (found, last)]
    assert held[0] == held[1] == pytest.approx(4 * PARAMETERS / 8, rel=0.01)  # FSDP2 makes pieces of the same length


@pytest.mark.parametrize(
    ("overrides", "held"),
    [
        (("strategy=fsdp2",), 4 * PARAMETERS / 8),
        (("strategy=hsdp", "strategy.replicas=2"), 4 * PARAMETERS / 4),
        (("strategy=fsdp2_tp", "strategy.tensor_parallel=4"), 4 * BY_FOUR / 2),
        (("strategy=fsdp2", "cluster.recompute=none", "precision=bf16-true"), 2 * PARAMETERS / 8),
    ],
)
def test_the_plan_is_what_the_code_does(overrides, held):
    """What lasts is equal; the moment when most is held, which the plan puts together from parts, is nearly."""
    experiment = load(*overrides)
    found, planned = simulate(experiment), planning.plan(experiment, planning.Wishes(device="h100"))
    at, told = found.peak[1].parts, planned.memory.parts
    assert at[WEIGHTS] == pytest.approx(held, rel=0.01)
    assert told[WEIGHTS] == pytest.approx(held, rel=0.01)
    assert at[OPTIMIZER] == pytest.approx(told[OPTIMIZER], rel=0.02)
    assert found.peaks["optimizer"].parts[GRADIENTS] == pytest.approx(held, rel=0.02)
    assert 0 < at[GATHERED] <= told["gathered"]
    assert found.peak[0] == planned.memory.phase
    total = planned.memory.total - planned.machine.reserved
    assert found.peak[1].held <= total == pytest.approx(found.peak[1].held, rel=0.06)


def test_what_is_not_simulated_is_refused():
    with pytest.raises(UserError, match="simulated are strategy=fsdp2, fsdp2_tp and hsdp"):
        simulate(load("strategy=ddp"))
    with pytest.raises(UserError, match="global_batch_size=30 does not divide into 8 devices"):
        simulate(load("strategy=fsdp2", "global_batch_size=30"))


def test_nothing_is_left_behind():
    import torch
    import torch.distributed as dist

    simulate(load("strategy=fsdp2"))
    assert not dist.is_initialized()
    storage = torch.zeros(4).untyped_storage()
    storage.resize_(0)
    assert storage.nbytes() == 0
