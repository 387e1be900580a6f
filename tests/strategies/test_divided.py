"""Trainings in stages, and with rows in parts, in real processes, beside the same in one process: weights, losses,
checkpoints, samples.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from launch import Matrix, difference, samples_of_steps

BOUND = 1e-5
CELLS = (
    "pretraining/adamw", "pretraining/untied", "sft/adamw", "sft/sgd", "reward/adamw", "reward/likelihood", "dpo/adamw",
    "pretraining/recompute", "pretraining/average", "pretraining/lamb", "pretraining/schedule_free",
    "pretraining/muon",
)  # fmt: skip
SHORT = ("sft/adamw", "pretraining/untied", "dpo/adamw")  # of the few
SAVED = ("stop/sft/adamw", "stop/pretraining/untied")
# (stages x turns x tensor-parallel or parts of a row, processes); what is left of the processes are replicas
FEW = (("2x2", 2), ("context2-ring", 2))
MORE = (("2x1", 2), ("4x1", 4), ("2x1", 4), ("2x2", 4), ("2x1x2", 4), ("2x2x2", 4), ("context2", 2), ("context4", 4),
        ("context2", 4), ("context4-ring", 4), ("context2-ring", 4))  # fmt: skip
LAYOUTS = [pytest.param(*layout, id="-".join(map(str, layout))) for layout in FEW]
LAYOUTS += [pytest.param(*layout, id="-".join(map(str, layout)), marks=pytest.mark.strategies) for layout in MORE]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def cells(layout: str, world: int) -> list[str]:
    wanted = SHORT if (layout, world) in FEW else CELLS
    others = ("reward/", "dpo/") if layout.startswith("context") else ()
    others += ("pretraining/muon", "pretraining/lamb") if tensor_parallel(layout) > 1 else ()
    return [cell for cell in wanted if not cell.startswith(others)]


def tensor_parallel(layout: str) -> int:
    return int(layout.split("x")[2]) if layout.count("x") == 2 else 1


def shared(layout: str) -> int:
    """Processes that see the same samples."""
    return int(layout.removeprefix("context")[:1]) * tensor_parallel(layout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("divided")


@pytest.fixture(scope="module")
def trained(folder) -> Iterator[Callable[..., list[dict[str, dict]]]]:
    """What each rank has to say of a layout, trained once."""
    matrix = Matrix(folder, "divided.py")
    train = functools.cache(matrix)
    one = train("single", 1, *CELLS, *SAVED)

    def call(layout: str, world: int) -> list[dict[str, dict]]:
        if layout == "single":
            return one
        again = (f"from/{layout}-{world}/pretraining/untied", "from/single-1/sft/adamw")
        again += ("pretraining/muon",) if tensor_parallel(layout) > 1 else ()
        dropped = ("sft/dropout", "stop/sft/dropout", f"from/{layout}-{world}/sft/dropout")
        return train(
            layout,
            world,
            *cells(layout, world),
            *SAVED,
            *again,
            *dropped,
            "pretraining/whole",
            "dpo/adamw" if layout.startswith("context") else "dpo/other",
            "reward/sgd",
            *(("ring/causal", "ring/packed") if "ring" in layout and shared(layout) == world else ()),
        )

    yield call
    matrix.close()


@pytest.mark.parametrize(("layout", "world"), LAYOUTS)
def test_it_trains_the_model_of_one_process(layout, world, trained):
    (one,), found = trained("single", 1), trained(layout, world)[0]
    for cell in cells(layout, world):
        expected, ours = one[cell], found[cell]
        assert ours["metrics"].keys() == expected["metrics"].keys() >= {"train/loss", "train/grad_norm"}
        far = difference(expected, ours)
        # Muon makes the shortest directions of a gradient as long as the longest, and their rounding with them.
        assert max(far.loss, far.weights) < BOUND * (5 if cell == "pretraining/muon" else 1), (cell, far)
        assert far.gradient < 10 * BOUND, (cell, far)
        for name in expected["metrics"]:
            theirs, values = ([v for _, v in run["metrics"][name]] for run in (expected, ours))
            assert values == pytest.approx(theirs, rel=1e-4, abs=1e-4), (cell, name)
        losses = [value for _, value in expected["metrics"]["train/loss"]]
        assert max(losses) - min(losses) > 1e-3 * max(map(abs, losses)), "a training that stands still proves nothing"


@pytest.mark.parametrize(("layout", "world"), LAYOUTS)
def test_started_again_it_ends_with_the_same_bits(layout, world, trained):
    """Saved in the middle by this layout; dropout draws as it would have."""
    found = trained(layout, world)[0]
    for cell in ("pretraining/untied", *(() if "ring" in layout else ("sft/dropout",))):
        expected, again = found[cell]["weights"], found[f"from/{layout}-{world}/{cell}"]["weights"]
        assert again.keys() == expected.keys()
        assert [name for name, weight in expected.items() if not torch.equal(weight, again[name])] == [], cell
        if cell == "sft/dropout":
            plain = found["sft/adamw"]["weights"]
            assert not torch.equal(expected["model.norm.weight"], plain["model.norm.weight"])


@pytest.mark.parametrize(("layout", "world"), LAYOUTS)
def test_checkpoints_are_those_of_one_process(layout, world, trained, folder):
    """It writes what one process writes, of weights and of the optimizer's states, and goes on from that as well."""
    (one,), found = trained("single", 1), trained(layout, world)[0]
    for name, weight in one["sft/adamw"]["weights"].items():
        again = found["from/single-1/sft/adamw"]["weights"][name]
        assert float((again - weight).norm() / weight.norm()) < BOUND, name
    for cell in ("sft-adamw", "pretraining-untied"):
        ours, theirs = (
            torch.load(folder / run / f"{cell}.ckpt", weights_only=True) for run in (f"{layout}-{world}", "single-1")
        )
        assert ours.keys() == theirs.keys()
        assert ours["global_step"] == theirs["global_step"] == 3
        assert ours["state_dict"].keys() == theirs["state_dict"].keys()
        for name, weight in theirs["state_dict"].items():
            torch.testing.assert_close(ours["state_dict"][name], weight, rtol=BOUND, atol=BOUND)
        (state,), (expected,) = ours["optimizer_states"], theirs["optimizer_states"]
        assert state["param_groups"] == expected["param_groups"]
        assert state["state"].keys() == expected["state"].keys()
        for number, entries in expected["state"].items():
            assert state["state"][number].keys() == entries.keys() == {"step", "exp_avg", "exp_avg_sq"}
            for key, value in entries.items():
                kept = state["state"][number][key]
                assert kept.shape == value.shape
                assert float((kept - value).norm()) <= 100 * BOUND * float(value.norm()), (number, key)


@pytest.mark.parametrize(("layout", "world"), LAYOUTS)
def test_samples_are_those_of_one_process(layout, world, trained):
    """Processes that share a network, or rows, see the same ones."""
    (one,), ranks = trained("single", 1), trained(layout, world)
    replicas, ways = world // shared(layout), tensor_parallel(layout)
    for cell in ("sft/adamw", "pretraining/untied"):
        seen = [rank[cell]["seen"] for rank in ranks]
        if not layout.startswith("context"):  # neighbours
            seen = [own for tensor in range(ways) for own in seen[tensor::ways]]
        else:
            seen = [own for part in range(shared(layout)) for own in seen[part :: shared(layout)]]
        for rank in range(world):
            assert seen[rank] == seen[rank % replicas]
        steps = samples_of_steps(seen[:replicas], 4, replicas)
        count = min(len(steps), len(one[cell]["seen"]))  # a loader reads ahead
        assert count >= 6
        assert steps[:count] == one[cell]["seen"][:count]


@pytest.mark.parametrize(("layout", "world"), LAYOUTS)
def test_what_a_process_holds(layout, world, trained):
    """Of a pipeline, its layers, and the ends the tied embeddings besides; where rows are shared, a piece of all."""
    (one,), ranks = trained("single", 1), trained(layout, world)
    whole, table, norms = one["sft/adamw"]["held"], 29 * 48, 9 * 48
    for kind, each in (("parameters", 1), ("states", 2)):
        held = [rank["sft/adamw"]["held"][kind] for rank in ranks]
        if layout.startswith("context"):
            assert sum(held) == whole[kind]
            assert max(held) <= 1.1 * whole[kind] / world
        else:  # the last stage has a copy of the embeddings; neighbours each have those, and the norms
            stages, ways = int(layout[0]), tensor_parallel(layout)
            one_replica = [own for tensor in range(ways) for own in held[tensor :: world // stages]]
            assert sum(one_replica) == whole[kind] + each * (table + (ways - 1) * (2 * table + norms))
            assert max(held) <= whole[kind] / stages / ways + each * (table + norms)


@pytest.mark.parametrize(("layout", "world"), LAYOUTS)
def test_what_does_not_fit_is_refused(layout, world, trained):
    for rank in trained(layout, world):
        if layout.startswith("context"):
            assert "The loss of DPO is not a sum over tokens" in rank["dpo/adamw"]["refused"]
            assert "The loss of RewardModeling is not a sum over" in rank["reward/sgd"]["refused"]
            if "ring" in layout:
                assert "attention has neither dropout nor capped" in rank["sft/dropout"]["refused"]
        else:
            assert "reference is of another architecture than the model" in rank["dpo/other"]["refused"]
            assert "micro-batches a step, and has 1; set cluster.mic" in rank["pretraining/whole"]["refused"]
        if tensor_parallel(layout) > 1:
            assert "gives an optimizer pieces of parameters, but MuonWithAdamW" in rank["pretraining/muon"]["refused"]


RINGS = [layout for layout in LAYOUTS if "ring" in layout.values[0] and shared(layout.values[0]) == layout.values[1]]


@pytest.mark.parametrize(("layout", "world"), RINGS)
def test_a_ring_attends_as_one_process(layout, world, trained):
    """In output and gradients, also of packed documents; and each process has half of all scores of its queries, and no
    more than another.
    """
    ranks = trained(layout, world)
    for kind in ("causal", "packed"):
        for rank in ranks:
            assert max(rank[f"ring/{kind}"]["far"]) < BOUND, rank[f"ring/{kind}"]
            assert min(rank[f"ring/{kind}"]["sizes"]) > 0.1
        own = 16 * 16
        assert {rank[f"ring/{kind}"]["scores"] for rank in ranks} == {own + (world - 1) * own // 2}
