"""One order of samples, whatever the ranks and micro-batches; and every batch's normalizer counted from its labels."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from athanor.batches import IGNORED
from athanor.data.base import BatchPlan, Once, Positions, Stream, pad_right
from athanor.data.instructions import Conversations
from athanor.data.order import order
from athanor.data.preferences import Pairs
from athanor.data.pretraining import PackedRows
from athanor.data.prompts import Prompts, Rollouts
from athanor.data.records import Sequences
from athanor.errors import UserError
from small import batches, spread, valid

WORLDS = [(1, None), (1, 4), (1, 1), (2, None), (2, 2), (2, 1), (4, None), (4, 1)]
PLAN = {"max_steps": 7, "global_batch_size": 8}  # 56 samples of 23: over two borders of epochs


def sequences(count, seed, teach_first=False):
    """Random sequences with taught stretches here and there."""
    rng = np.random.default_rng(seed)
    rendered = []
    for _ in range(count):
        length = int(rng.integers(3, 17))
        taught = rng.random(length) < 0.5
        taught[0], taught[-1] = teach_first and rng.random() < 0.5, True
        rendered.append((rng.integers(4, 99, length).astype(np.int32), taught))
    return Sequences(rendered), rendered


def shards(documents=40, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 23, documents)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    return SimpleNamespace(tokens=rng.integers(4, 99, offsets[-1]).astype(np.uint16), offsets=offsets)


def joined(plan, stream_of):
    """Global batch of every step: the micro-batches of rank 0, then of rank 1, ..., as (rows, normalizers)."""
    steps = [([], set()) for _ in range(plan[0].max_steps)]
    for rank in plan:
        for m, batch in enumerate(batches(rank, stream_of(rank))):
            rows, normalizers = steps[m // rank.accumulation]
            rows += rows_of(batch)
            normalizers.add(int(batch.normalizer))
            assert len(rows_of(batch)) == rank.micro
    return steps


def rows_of(batch):
    if hasattr(batch, "chosen_BT"):
        sides = [
            valid(batch.chosen_BT, batch.chosen_labels_BT),
            valid(batch.rejected_BT, batch.rejected_labels_BT),
            batch.chosen_lengths_B.tolist(),
            batch.rejected_lengths_B.tolist(),
        ]
        return list(zip(*sides))
    if hasattr(batch, "documents_BT"):
        return list(zip(batch.tokens_BT.tolist(), batch.labels_BT.tolist(), batch.documents_BT.tolist()))
    return valid(batch.tokens_BT, batch.labels_BT)


def samples_of(kind):
    if kind == "packed":
        return PackedRows(shards(), 16)
    if kind == "conversations":
        return Conversations(sequences(23, 1)[0], pad_id=0)
    return Pairs(sequences(23, 2)[0], sequences(23, 3)[0], pad_id=0)


@pytest.mark.parametrize("kind", ["packed", "conversations", "pairs"])
def test_global_batches_are_the_same_on_any_ranks_with_any_micro_batches(kind):
    samples = samples_of(kind)
    reference = None
    for plan in spread(5, PLAN, WORLDS):
        steps = joined(plan, lambda rank: Stream(samples, rank))
        reference = reference or steps
        assert steps == reference
    for rows, normalizers in reference:
        assert len(rows) == 8
        expected = 8 if kind == "pairs" else sum(label != IGNORED for row in rows for label in row[1])
        assert normalizers == {expected}


def test_the_stream_follows_the_order_and_a_later_start_goes_on():
    samples = Conversations(sequences(23, 1)[0], pad_id=0)
    plan = BatchPlan(seed=5, **PLAN, micro_batch_size=4)
    seen = [row for batch in batches(plan, Stream(samples, plan)) for row in rows_of(batch)]
    expected = [valid(*(x[None] for x in map(torch.tensor, samples.sequences.shifted(i))))[0]
                for i in order(5, 23, 0, 56)]  # fmt: skip
    assert seen == expected
    assert list(Positions(6, 14)) == [6, 7, 8, 9, 10, 11, 12, 13]
    assert len(Positions(6, 14)) == 14


@pytest.mark.parametrize("teach_first", [False, True])
def test_weights_of_conversations_count_the_labels_that_batch_gives(teach_first):
    packed, rendered = sequences(50, 4, teach_first)
    samples = Conversations(packed, pad_id=0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        indices = rng.integers(0, 50, rng.integers(1, 9))
        batch = samples.batch(indices, indices, 0)
        assert samples.weights(indices) == (batch.labels_BT != IGNORED).sum()
    for i, (ids, taught) in enumerate(rendered):
        tokens, labels = packed.shifted(i)
        assert tokens.tolist() == ids[:-1].tolist()
        assert labels.tolist() == [x if t else IGNORED for x, t in zip(ids[1:], taught[1:])]
        tokens, labels = packed.whole(i)
        assert tokens.tolist() == ids.tolist()
        assert labels.tolist() == [x if t else IGNORED for x, t in zip(ids[1:], taught[1:])] + [IGNORED]


@pytest.mark.parametrize("length", [1, 2, 5, 16, 64, 200])
@pytest.mark.parametrize("documents", [1, 7, 60])
def test_packed_rows_label_by_label(length, documents):
    """Against a walk through the documents: a token's label is the next one of its document, if the row reaches it."""
    source = shards(documents, seed=length)
    samples = PackedRows(source, length)
    document_of = [d for d in range(documents) for _ in range(source.offsets[d], source.offsets[d + 1])]
    assert len(samples) == (len(source.tokens) - 1) // length
    for i in range(len(samples)):
        batch = samples.batch(np.array([i]), np.array([i]), 3)
        here = range(i * length, (i + 1) * length)
        assert batch.tokens_BT[0].tolist() == source.tokens[here].tolist()
        expected = [int(source.tokens[t + 1]) if document_of[t + 1] == document_of[t] else IGNORED for t in here]
        assert batch.labels_BT[0].tolist() == expected
        assert batch.documents_BT[0].tolist() == [document_of[t] - document_of[here[0]] for t in here]
        first = [max(here[0], source.offsets[document_of[t]]) for t in here]
        assert batch.positions_BT[0].tolist() == [t - f for t, f in zip(here, first)]
        assert samples.weights(np.array([i])) == sum(label != IGNORED for label in expected)
    if len(samples) > 3:
        some = np.array([2, 0, 2, len(samples) - 1])
        assert samples.weights(some) == (samples.batch(some, some, 0).labels_BT != IGNORED).sum()


def test_packed_rows_lose_no_token_but_the_tail():
    source = shards()
    samples = PackedRows(source, 16)
    everything = samples.batch(np.arange(len(samples)), np.arange(len(samples)), 0).tokens_BT.flatten()
    assert everything.tolist() == source.tokens[: len(everything)].tolist()
    assert len(source.tokens) - len(everything) <= 16
    few = PackedRows(source, 16, limit=3)
    assert len(few) == 3
    everything, some = (rows.batch(np.arange(len(rows)), np.arange(len(rows)), 1).tokens_BT for rows in (samples, few))
    assert torch.equal(some, everything[[0, (len(samples) - 1) // 2, len(samples) - 1]]), "from all of the corpus"
    assert few.weights(np.array([1])) == samples.weights(np.array([(len(samples) - 1) // 2]))
    assert len(PackedRows(source, 16, limit=10_000)) == len(samples)


def test_documents_of_rows_are_those_that_their_tokens_lie_in():
    """Of documents with no token at all, too, and of rows in any order."""
    rng = np.random.default_rng(0)
    for length in (2, 7, 40):
        offsets = np.concatenate([[0], rng.integers(0, 9, 200).cumsum()])
        samples = PackedRows(SimpleNamespace(tokens=np.zeros(offsets[-1], np.uint16), offsets=offsets), length)
        where = samples.starts(rng.permutation(len(samples)))[:, None] + np.arange(length + 1)
        assert (samples.documents(where) == np.searchsorted(offsets, where, "right") - 1).all()


def test_openings_of_documents_are_their_first_tokens():
    source = shards()
    for prompt in PackedRows(source, 16).prompts(5):
        starts = [source.tokens[a : a + len(prompt)].tolist() for a in source.offsets[:-1]]
        assert prompt in starts
        assert 1 <= len(prompt) <= 16


@pytest.mark.parametrize("world", [1, 2, 3, 23])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_validation_shows_every_sample_once(world, size):
    """On all ranks equally many batches, none empty: a forward pass may need the other ranks."""
    samples = Conversations(sequences(23, 1)[0], pad_id=0)
    seen, lengths = [], set()
    for rank in range(world):
        once = Once(samples, BatchPlan(seed=1, max_steps=1, global_batch_size=world, world_size=world, rank=rank), size)
        lengths.add(len(once))
        for i in range(len(once)):
            batch = once[i]
            assert 1 <= len(batch.tokens_BT) <= size + (1 if 23 % world and size == 1 else 0)
            assert batch.normalizer == (batch.labels_BT != IGNORED).sum()
            seen += rows_of(batch)
    assert len(lengths) == 1
    whole = samples.batch(np.arange(23), np.arange(23), 0)
    assert sorted(seen) == sorted(rows_of(whole))


def test_validation_on_more_ranks_than_samples():
    samples = Conversations(sequences(3, 1)[0], pad_id=0)
    with pytest.raises(UserError, match="validation split holds 3 samples, fewer than the 4 devices"):
        Once(samples, BatchPlan(seed=1, max_steps=1, global_batch_size=4, world_size=4), 2)
    nothing = Conversations(Sequences([]), pad_id=0)
    assert len(Once(nothing, BatchPlan(seed=1, max_steps=1, global_batch_size=4, world_size=4), 2)) == 0


def test_pairs_are_padded_to_one_length_and_keep_their_last_token():
    chosen, rejected = sequences(9, 2), sequences(9, 3)
    batch = Pairs(chosen[0], rejected[0], pad_id=0).batch(np.array([4, 0, 7]), np.array([0, 1, 2]), 11)
    assert batch.chosen_BT.shape == batch.rejected_BT.shape == batch.chosen_labels_BT.shape
    assert batch.normalizer == 11
    for row, i in enumerate([4, 0, 7]):
        for tokens, lengths, side in (
            (batch.chosen_BT, batch.chosen_lengths_B, chosen[1]),
            (batch.rejected_BT, batch.rejected_lengths_B, rejected[1]),
        ):
            assert lengths[row] == len(side[i][0])
            assert tokens[row, : lengths[row]].tolist() == side[i][0].tolist()
            assert set(tokens[row, lengths[row] :].tolist()) <= {0}


# --- rollouts ---------------------------------------------------------------------------------------------------------


def test_rollouts_give_the_same_prompts_on_any_ranks_and_nothing_between():
    prompts = Prompts([[1] * (1 + i % 5) + [10 + i] for i in range(11)], pad_id=0)
    steps_per_rollout, rollout_size = 2, 8
    plan = {"max_steps": 6, "global_batch_size": 4}
    reference = None
    for ranks in spread(3, plan, [(1, None), (1, 2), (2, None), (4, 1)]):
        rollouts: list[list] = [[], [], []]
        for rank in ranks:
            stream = Rollouts(prompts, rank, rollout_size, steps_per_rollout)
            for m, batch in enumerate(batches(rank, stream)):
                step = m // rank.accumulation
                begins = step % steps_per_rollout == 0 and m % rank.accumulation == 0
                assert len(batch.lengths_B) == (rollout_size // rank.world_size if begins else 0)
                assert batch.longest == 6
                assert tuple(batch.tokens_BP.shape) in {(0, 1)} or begins
                for tokens, length, place in zip(batch.tokens_BP, batch.lengths_B, batch.samples_B):
                    width = len(tokens)
                    assert set(tokens[: width - length].tolist()) <= {0}
                    rollouts[step // steps_per_rollout].append((int(place), tokens[width - length :].tolist()))
        reference = reference or rollouts
        assert rollouts == reference
    places = [place for rollout in reference for place, _ in rollout]
    assert places == list(range(24))
    indices = order(3, 11, 0, 24)
    assert [tokens for rollout in reference for _, tokens in rollout] == [prompts.encoded[i] for i in indices]


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "world", "micro", "nearest"),
    [(10, 4, None, "8 or 12"), (10, 2, 3, "6 or 12"), (4, 2, 3, "6"), (7, 1, 2, "6 or 8")],
)
def test_a_batch_that_does_not_divide_names_its_neighbours(batch, world, micro, nearest):
    plan = BatchPlan(seed=0, max_steps=1, global_batch_size=batch, world_size=world, micro_batch_size=micro)
    with pytest.raises(
        UserError, match=rf"global_batch_size={batch} does not divide .* the nearest that do: {nearest}\."
    ):
        plan.check()


@pytest.mark.parametrize(("batch", "micro"), [(0, None), (-4, None), (4, 0), (4, -2)])
def test_sizes_below_one(batch, micro):
    with pytest.raises(UserError, match="must be at least 1"):
        BatchPlan(seed=0, max_steps=1, global_batch_size=batch, micro_batch_size=micro).check()


def test_accumulation_is_what_is_left_of_the_batch():
    plan = BatchPlan(seed=0, max_steps=1, global_batch_size=48, world_size=4, micro_batch_size=3)
    plan.check()
    assert (plan.per_rank, plan.micro, plan.accumulation) == (12, 3, 4)
    assert BatchPlan(seed=0, max_steps=1, global_batch_size=48, world_size=4).accumulation == 1


def test_pad_right():
    rows = [np.array([5, 6, 7]), np.array([8])]
    assert pad_right(rows, -1).tolist() == [[5, 6, 7], [8, -1, -1]]
    assert pad_right(rows, 0, 4).tolist() == [[5, 6, 7, 0], [8, 0, 0, 0]]
