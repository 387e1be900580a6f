"""Every algorithm under every strategy, in real processes: the model of one process, from the same samples."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from launch import MATRIX, Matrix, bound, difference, samples_of_steps

ALGORITHMS = ("pretraining", "sft", "reward", "dpo", "ppo")
SPLITS = ((1, "adamw"), (1, "sgd"), (4, "adamw"), (4, "sgd"))
pytestmark = [pytest.mark.strategies, pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("strategies")


@pytest.fixture(scope="session")
def trained(folder) -> Iterator[Callable[..., list[dict[tuple, dict]]]]:
    """What each rank has to say of a strategy, trained once."""
    matrix = Matrix(folder)
    train = functools.cache(matrix)
    train("single", 1)  # the others start from its checkpoints
    yield train
    matrix.close()


@pytest.mark.parametrize(("strategy", "world"), MATRIX, ids=[f"{name}-{world}" for name, world in MATRIX])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_it_trains_the_model_of_one_process(algorithm, strategy, world, trained):
    (one,), ranks = trained("single", 1), trained(strategy, world)
    for accumulation, optimizer in SPLITS:
        cell = (algorithm, accumulation, optimizer)
        expected, found = one[algorithm, 1, optimizer], ranks[0][cell]
        assert found["metrics"].keys() == expected["metrics"].keys() >= {"train/loss", "train/grad_norm"}
        far = difference(expected, found)
        assert max(far.loss, far.weights) < bound(strategy), (cell, far)
        assert far.gradient < 10 * bound(strategy), (cell, far)
        losses = [value for _, value in expected["metrics"]["train/loss"]]
        assert max(losses) - min(losses) > 1e-3 * max(map(abs, losses)), "a training that stands still proves nothing"


@pytest.mark.parametrize(("strategy", "world"), MATRIX, ids=[f"{name}-{world}" for name, world in MATRIX])
def test_what_goes_beside_it_changes_nothing(strategy, world, trained):
    """Activations made again, other optimizers, averages of the weights; in `EXTRAS` the strategies that have them."""
    (one,), found = trained("single", 1), trained(strategy, world)[0]
    cells = [cell for cell in found if len(cell) == 3 and cell[2] not in ("adamw", "sgd", "muon")]
    assert ("pretraining", 1, "recompute") in cells
    for cell in cells:
        far = difference(one[cell], found[cell])
        # Lion steps by signs, and a gradient that is nearly zero has another sign by rounding.
        assert far.weights < (1e-2 if cell[2] == "lion" else bound(strategy)), (cell, far)
        assert far.loss < (1e-3 if cell[2] == "lion" else bound(strategy)), (cell, far)
    if ("pretraining", 1, "average") in found:
        kept = found["pretraining", 1, "average"]["weights"]
        assert not torch.equal(kept["average.norm.weight"], kept["model.norm.weight"]), "an average of no steps"


@pytest.mark.parametrize(("strategy", "world"), [("ddp", 2), ("fsdp2", 2), ("fsdp2", 4), ("hsdp", 4)])
def test_muon_sees_whole_matrices(strategy, world, trained):
    """Pieces of matrices would give something else. Here the iterations are in float64: in bfloat16 they make all
    directions of a gradient as long as the longest, those too that are but rounding, and weights end 1e-2 apart.
    """
    cell = ("pretraining", 1, "muon")
    far = difference(trained("single", 1)[0][cell], trained(strategy, world)[0][cell])
    assert far.loss < 1e-5, far
    assert far.weights < 5e-5, far


@pytest.mark.parametrize(("strategy", "world"), MATRIX, ids=[f"{name}-{world}" for name, world in MATRIX])
@pytest.mark.parametrize("algorithm", ["dpo", "ppo"])
def test_started_again_from_a_checkpoint_it_ends_with_the_same_bits(algorithm, strategy, world, trained):
    expected, found = (
        trained(strategy, world)[0][key]["weights"] for key in ((algorithm, 4, "adamw"), ("again", algorithm))
    )
    assert found.keys() == expected.keys()
    assert [name for name, weight in expected.items() if not torch.equal(weight, found[name])] == []


@pytest.mark.parametrize(("strategy", "world"), MATRIX, ids=[f"{name}-{world}" for name, world in MATRIX])
def test_killed_and_started_again_it_ends_with_the_same_bits(strategy, world, trained):
    """All processes by SIGKILL, wherever they are after the second checkpoint."""
    assert_killed_ends_as(trained(strategy, world)[0]["dpo", 4, "adamw"], trained(strategy, world, "kill/dpo")[0])


@pytest.mark.parametrize(("strategy", "world"), [("pipeline_interleaved", 2), ("pipeline.tensor_parallel=2", 4)])
def test_a_pipeline_killed_and_started_again_ends_with_the_same_bits(strategy, world, trained):
    expected = trained(strategy, world, "dpo/4/adamw")[0]["dpo", 4, "adamw"]
    assert_killed_ends_as(expected, trained(strategy, world, "kill/dpo")[0])


def assert_killed_ends_as(expected: dict, found: dict) -> None:
    assert 2 <= found["killed", "dpo"]["step"] < 6
    weights = found["killed", "dpo"]["weights"]
    assert weights.keys() == expected["weights"].keys()
    assert [n for n, weight in expected["weights"].items() if not torch.equal(weight, weights[n])] == []


@pytest.mark.parametrize(("strategy", "world"), MATRIX, ids=[f"{name}-{world}" for name, world in MATRIX])
@pytest.mark.parametrize("algorithm", ["dpo", "ppo"])
def test_checkpoints_are_those_of_one_process(algorithm, strategy, world, trained, folder):
    """It writes what one process writes, of weights and of the optimizer's states, and goes on from that as well."""
    (one,), found = trained("single", 1), trained(strategy, world)[0]["from single", algorithm]["weights"]
    for name, weight in one[algorithm, 4, "adamw"]["weights"].items():
        assert float((found[name] - weight).norm() / weight.norm()) < bound(strategy), name
    ours, theirs = (
        torch.load(folder / run / f"{algorithm}.ckpt", weights_only=True) for run in (f"{strategy}-{world}", "single-1")
    )
    assert ours.keys() == theirs.keys()
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    for name, weight in theirs["state_dict"].items():
        torch.testing.assert_close(ours["state_dict"][name], weight, rtol=bound(strategy), atol=bound(strategy))
    (state,), (expected,) = ours["optimizer_states"], theirs["optimizer_states"]
    assert [group["params"] for group in state["param_groups"]] == [g["params"] for g in expected["param_groups"]]
    assert [group["lr"] for group in state["param_groups"]] == [g["lr"] for g in expected["param_groups"]]
    assert state["state"].keys() == expected["state"].keys()
    for number, entries in expected["state"].items():
        assert state["state"][number].keys() == entries.keys() == {"step", "exp_avg", "exp_avg_sq"}
        for key, value in entries.items():
            found = state["state"][number][key]
            assert found.shape == value.shape
            assert float((found - value).norm()) <= 100 * bound(strategy) * float(value.norm()), (number, key)


@pytest.mark.parametrize(("strategy", "world"), MATRIX, ids=[f"{name}-{world}" for name, world in MATRIX])
def test_the_samples_and_their_order_are_those_of_one_process(strategy, world, trained):
    (one,), ranks = trained("single", 1), trained(strategy, world)
    replicas = world // 2 if strategy == "fsdp2_tp" else world
    for cell in [cell for cell in ranks[0] if len(cell) == 3]:
        if cell[0] == "ppo":  # draws prompts where a rollout begins, whole rollouts at once
            rollouts = zip(*(rank[cell]["seen"] for rank in ranks[:: world // replicas]))
            steps = [[i for share in shares for i in share] for shares in rollouts]
            expected = one["ppo", 1, cell[2]]["seen"]
        else:
            steps = samples_of_steps([rank[cell]["seen"] for rank in ranks], cell[1], replicas)
            expected = one[cell[0], 1, cell[2]]["seen"]
        count = min(len(steps), len(expected))  # a loader reads ahead
        assert count >= (3 if cell[0] == "ppo" else 6), cell
        assert steps[:count] == expected[:count], cell


@pytest.mark.parametrize(("strategy", "world"), MATRIX, ids=[f"{name}-{world}" for name, world in MATRIX])
def test_what_it_shards_is_really_sharded(strategy, world, trained):
    """PPO holds four networks, two of them frozen. Of `whole` numbers a process keeps a share, and a little padding."""
    (one,), ranks = trained("single", 1), trained(strategy, world)
    whole, cell = one["ppo", 1, "adamw"]["held"], ("ppo", 1, "adamw")
    sharded = {"ddp": (), "deepspeed_zero1": ("states",), "deepspeed_zero2": ("states",)}.get(
        strategy, ("parameters", "frozen", "states")
    )
    share = 1 / (2 if strategy == "hsdp" else world)
    if strategy == "fsdp2_tp":  # embeddings and norms are not split over the two
        share = 0.7 * 2 / world
    for name, size in whole.items():
        for rank in ranks:
            held = rank[cell]["held"][name]
            assert held < size * share * 1.1 if name in sharded else held == size, (name, held, size)
        if name in sharded and name != "states":
            assert sum(rank[cell]["held"][name] for rank in ranks) >= size
