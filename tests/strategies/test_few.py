"""One cell of the equivalence for each algorithm, each under a strategy of its own kind, in minutes less than all of
`test_equivalence`: accumulated, clipped, by AdamW, on two processes.
"""

from collections.abc import Iterator

import pytest
import torch
from launch import Matrix, bound, difference

FEW = (
    ("sft", "ddp"),
    ("reward", "fsdp2_tp"),
    ("dpo", "fsdp2"),
    ("pretraining", "deepspeed_zero2"),
    ("ppo", "deepspeed_zero3"),
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory) -> Iterator[Matrix]:
    matrix = Matrix(tmp_path_factory.mktemp("few"))
    yield matrix
    matrix.close()


def test_each_algorithm_trains_the_model_of_one_process(matrix):
    (one,) = matrix("single", 1, *(f"{algorithm}/1/adamw" for algorithm, _ in FEW))
    for algorithm, strategy in FEW:
        found = matrix(strategy, 2, f"{algorithm}/4/adamw")[0]
        expected, found = one[algorithm, 1, "adamw"], found[algorithm, 4, "adamw"]
        far = difference(expected, found)
        assert max(far.loss, far.weights) < bound(strategy), (algorithm, strategy, far)
        losses = [value for _, value in expected["metrics"]["train/loss"]]
        assert max(losses) - min(losses) > 1e-3 * max(map(abs, losses)), "a training that stands still proves nothing"


@pytest.mark.parametrize("strategy", ["fsdp2", "deepspeed_zero3"])
def test_started_again_from_a_checkpoint_it_ends_with_the_same_bits(matrix, strategy):
    """The frozen reference is not in the checkpoint."""
    ranks = matrix(strategy, 2, "dpo/4/adamw", "again/dpo")
    expected, found = (ranks[0][key]["weights"] for key in (("dpo", 4, "adamw"), ("again", "dpo")))
    assert [name for name, weight in expected.items() if not torch.equal(weight, found[name])] == []
    assert len(found) == len(expected) > 10
