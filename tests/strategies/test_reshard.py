"""Every strategy's checkpoint, taken up by every other: the same weights and optimizer's states to the bit, the same
model, and the same next step.
"""

from collections.abc import Iterator

import pytest
import torch
from launch import FORMS, SHARERS, Exchange, Matrix, bound, changes, exchanges, written

NAMES, WRITTEN = [f"{name}-{world}" for name, world in FORMS], written(FORMS, SHARERS)
pytestmark = [pytest.mark.strategies, pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    matrix = Matrix(tmp_path_factory.mktemp("reshard"))
    yield matrix
    matrix.close()


@pytest.fixture(scope="module")
def table(matrix: Matrix) -> dict[tuple[str, str], Exchange]:
    return {(writer, reader): came for writer, reader, came in exchanges(matrix)}


@pytest.mark.parametrize("reader", NAMES)
@pytest.mark.parametrize("writer", WRITTEN)
def test_what_any_strategy_has_saved_any_takes_up(writer: str, reader: str, table) -> None:
    came = table[writer, reader]
    assert came.changed == 0, "weights or optimizer's states are other bits"
    assert came.logits == 0
    assert max(came.loss, came.weights) < bound(reader), "the next step is another"
    assert came.gradient < 10 * bound(reader)


def test_what_was_written_was_not_there_before(matrix: Matrix, table) -> None:
    """The states are those of a training, each writer's its own; else the same would be read whatever was written."""
    (found,) = matrix("single", 1, *(f"load/{writer}" for writer in WRITTEN))
    said = [found["load", writer]["logits"] for writer in WRITTEN]
    assert sum(not torch.equal(said[0], other) for other in said[1:]) >= 2
    fresh = torch.load(matrix.folder / "single-1" / "dpo.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    assert all(entries["exp_avg"].abs().max() > 0 for entries in fresh.values())


@pytest.mark.parametrize(("name", "world"), [form for form in SHARERS if form in FORMS])
def test_shares_are_of_the_checkpoint_that_is_whole(name: str, world: int, matrix: Matrix, table) -> None:
    """Two trainings of the same strategy, one gathered, one not; and both go on with the same bits."""
    folder = matrix.folder / f"{name}-{world}"
    assert len(list((folder / "shares.ckpt").glob("__*.distcp"))) == world, "each process has written"
    assert changes(folder / "dpo.ckpt", folder / "shares.ckpt") == 0
    found = matrix(name, world, f"load/{name}-{world}/dpo", f"load/{name}-{world}/shares")[0]
    whole, shared = (found["load", f"{name}-{world}/{kind}"] for kind in ("dpo", "shares"))
    assert whole["metrics"]["train/loss"] == shared["metrics"]["train/loss"]
    assert [n for n, weight in whole["weights"].items() if not torch.equal(weight, shared["weights"][n])] == []
