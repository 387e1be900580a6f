"""The order of samples: a permutation in every epoch, and a function of seed, epoch and place alone."""

import numpy as np
import pytest

from athanor.data.order import order

SIZES = [*range(1, 40), 63, 64, 65, 255, 256, 257, 1000, 4095, 4096, 4097, 65_537, 100_000]


@pytest.mark.parametrize("size", SIZES)
def test_every_epoch_is_a_permutation(size):
    for epoch in range(3 if size > 1000 else 20):
        indices = order(7, size, epoch * size, (epoch + 1) * size)
        assert indices.dtype == np.int64
        assert np.array_equal(np.sort(indices), np.arange(size))


@pytest.mark.parametrize("size", [1, 2, 10, 1000])
def test_it_is_a_function_of_the_place(size):
    whole = order(3, size, 0, 5 * size + 3)
    again = np.concatenate([order(3, size, n, n + 1) for n in range(len(whole))])
    assert np.array_equal(again, whole)
    assert np.array_equal(order(3, size, 2, 4 * size + 1), whole[2 : 4 * size + 1])
    assert len(order(3, size, 9, 9)) == 0


def test_epochs_and_seeds_differ():
    size = 500
    rows = [order(seed, size, epoch * size, (epoch + 1) * size) for seed in (0, 1, 2**40, -1) for epoch in range(4)]
    for i, one in enumerate(rows):
        for other in rows[:i]:
            assert (one == other).mean() < 0.02  # equal places by chance: 1 in 500
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.2


@pytest.mark.parametrize("size", [2, 3, 5, 8, 30])
def test_every_sample_comes_to_every_place_equally_often(size):
    epochs = 3000
    table = np.zeros((size, size))
    for epoch in range(epochs):
        table[np.arange(size), order(11, size, epoch * size, (epoch + 1) * size)] += 1
    expected = epochs / size
    chi_square = ((table - expected) ** 2 / expected).sum()
    freedom = (size - 1) ** 2
    assert chi_square < freedom + 6 * np.sqrt(2 * freedom) + 6


def test_neighbours_are_mixed():
    """The gap between consecutive samples is that of independent draws: a third of the size on average."""
    size = 20_000
    indices = order(5, size, 0, size)
    assert np.abs(np.diff(indices)).mean() == pytest.approx(size / 3, rel=0.03)
    assert abs(np.corrcoef(indices, np.arange(size))[0, 1]) < 0.03
    assert (np.diff(indices) == 1).mean() < 0.001


def test_a_trillion_samples_cost_no_memory():
    size = 10**12 + 39
    indices = order(1, size, size - 500, size + 500)
    assert indices.min() >= 0
    assert indices.max() < size
    assert len(set(indices[:500].tolist())) == len(set(indices[500:].tolist())) == 500


def test_it_does_not_change_from_release_to_release():
    assert order(1, 10, 0, 10).tolist() == [1, 3, 2, 8, 0, 9, 4, 5, 6, 7]
    assert order(2, 1000, 12_345, 12_350).tolist() == [527, 231, 876, 12, 111]


def test_nothing_to_order():
    with pytest.raises(ValueError, match="nothing to order"):
        order(1, 0, 0, 1)
