"""Hidden tokens and spans: counted as the normalizer says, drawn from the seed and the place alone, and never marks."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_batching import WORLDS, sequences
from test_modules import instruction, plan, write

from athanor.batches import IGNORED
from athanor.data.answers import AnswerData, Answers
from athanor.data.base import BatchPlan, Stream
from athanor.data.chat import END, render_prompts
from athanor.data.corruption import (
    CorruptedRows,
    Marks,
    MaskedData,
    MaskedRows,
    SpanCorruptionData,
    span_counts,
    spans_of,
)
from athanor.data.pretraining import PackedRows
from athanor.errors import UserError
from athanor.models.encoder_decoder import EncoderDecoder
from small import spread

BOS, EOS, MASK, STOP, VOCABULARY = 1, 2, 3, 7, 300
TEXT = np.arange(VOCABULARY) >= 8
MARKS = Marks(MASK, STOP, TEXT, np.flatnonzero(TEXT))
PLAN = {"max_steps": 7, "global_batch_size": 8}


def shards(documents=60, longest=40, seed=0):
    """Documents as they are on disk: beginning, text, end; some are empty."""
    rng = np.random.default_rng(seed)
    texts = [[BOS, *rng.integers(8, VOCABULARY, rng.integers(0, longest)), EOS] for _ in range(documents)]
    offsets = np.concatenate(([0], np.cumsum([len(text) for text in texts])))
    return SimpleNamespace(tokens=np.concatenate(texts).astype(np.uint16), offsets=offsets)


def packed(length=48, **changes):
    return PackedRows(shards(**changes), length)


def masked(seed=1, rate=0.15, masked=0.8, random=0.1, span=None, rows=None):
    return MaskedRows(rows or packed(), MARKS, seed, rate, masked, random, span)


def corrupted(seed=1, rate=0.15, span=3.0, rows=None):
    return CorruptedRows(rows or packed(), MARKS, seed, rate, span, VOCABULARY)


def kinds():
    return [masked(), masked(span=3.8, rate=0.3), corrupted(), corrupted(rate=0.5, span=1.5)]


def every(samples, start=0):
    indices = np.arange(len(samples))
    return samples.batch(indices, indices + start, samples.weights(indices))


# --- what every kind keeps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", range(4))
def test_the_normalizer_counts_the_labels(kind):
    samples = kinds()[kind]
    for index in range(len(samples)):
        one = np.array([index])
        for place in (index, index + 1000):
            batch = samples.batch(one, np.array([place]), samples.weights(one))
            assert int((batch.labels_BT != IGNORED).sum()) == int(batch.normalizer) > 0


@pytest.mark.parametrize("kind", range(4))
def test_what_is_hidden_is_a_function_of_the_seed_and_the_place(kind):
    one, other = kinds()[kind], kinds()[kind]
    indices, places = np.array([3, 5, 9]), np.array([103, 205, 9])
    batch = one.batch(indices, places, 1)
    alone = other.batch(indices[1:2], places[1:2], 1)
    width = alone.labels_BT.shape[1]
    assert torch.equal(batch.labels_BT[1:2, :width], alone.labels_BT)
    later = one.batch(indices, places + len(one), 1)
    assert not torch.equal(later.labels_BT, batch.labels_BT), "another epoch hides others"
    other.seed = 2
    assert not torch.equal(other.batch(indices, places, 1).labels_BT, batch.labels_BT)
    held_out = kinds()[kind]
    held_out.seed = None
    first, again = (held_out.batch(indices, p, 1).labels_BT for p in (places, places + 50))
    assert torch.equal(first, again), "validation is the same whatever the run"


@pytest.mark.parametrize("kind", range(4))
def test_global_batches_are_the_same_on_any_ranks_with_any_micro_batches(kind):
    samples, reference = kinds()[kind], None
    for plans in spread(1, PLAN, WORLDS):
        steps = []
        for step in range(7):
            rows, normalizers = [], set()
            for rank in plans:
                for part in range(rank.accumulation):
                    batch = Stream(samples, rank)[step * rank.accumulation + part]
                    normalizers.add(int(batch.normalizer))
                    for row in batch.labels_BT.tolist():
                        rows.append([label for label in row if label != IGNORED])
            assert normalizers == {sum(map(len, rows))}
            steps.append(rows)
        reference = reference or steps
        assert steps == reference


# --- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("span", [None, 3.8])
def test_most_of_the_chosen_are_masked_some_replaced_some_kept_and_marks_never(span):
    rows = packed(length=256, documents=3000, longest=120)
    plain, batch = every(rows), every(masked(rows=rows, span=span))
    chosen = batch.labels_BT != IGNORED
    assert torch.equal(batch.labels_BT[chosen], plain.tokens_BT[chosen])
    assert torch.equal(batch.tokens_BT[~chosen], plain.tokens_BT[~chosen])
    assert torch.equal(batch.documents_BT, plain.documents_BT)
    assert torch.equal(batch.positions_BT, plain.positions_BT)
    assert batch.labels_BT[chosen].min() >= 8
    count = int(chosen.sum())
    text = int((plain.tokens_BT >= 8).sum())
    assert count / text == pytest.approx(0.15, abs=0.002 if span is None else 0.01)
    shown = batch.tokens_BT[chosen]
    mask, kept = shown == MASK, shown == batch.labels_BT[chosen]
    assert mask.float().mean().item() == pytest.approx(0.8, abs=0.015)
    assert kept.float().mean().item() == pytest.approx(0.1 + 0.1 / 292, abs=0.015)
    drawn = shown[~mask & ~kept]
    assert drawn.min() >= 8
    assert len(drawn.unique()) > 285, "replacements are drawn from all of the vocabulary"
    everywhere = chosen.float().mean(0)
    assert everywhere.min() > 0.05, "no place of a row is left out"


def test_masked_spans_have_the_length_asked_for_stay_in_their_document_and_share_a_fate():
    rows = packed(length=256, documents=300, longest=600)
    batch, lengths, joined_fates = every(masked(rows=rows, span=4.0)), [], 0
    for tokens, labels, documents in zip(batch.tokens_BT, batch.labels_BT, batch.documents_BT):
        chosen = (labels != IGNORED).tolist()
        start = None
        for t in range(257):
            on = t < 256 and chosen[t]
            if on and start is None:
                start = t
            elif start is not None and (not on):
                lengths.append(t - start)
                assert len(documents[start:t].unique()) == 1
                joined_fates += len((tokens[start:t] == MASK).unique()) == 1
                start = None
    assert np.mean(lengths) == pytest.approx(4.0, abs=0.35)
    assert joined_fates == len(lengths)


def test_one_in_seven_of_a_short_row_is_one():
    samples = masked(rows=PackedRows(SimpleNamespace(tokens=np.arange(8, 30), offsets=np.array([0, 22])), 3))
    assert samples.weights(np.arange(len(samples))) == len(samples)


# --- spans ----------------------------------------------------------------------------------------------


def restored(source: list[int], target: list[int]) -> list[int]:
    """The document, from what is left of it and what its sentinels stand for."""
    parts, current = {}, []
    for token in target:
        if token >= VOCABULARY:
            current = parts.setdefault(token, [])
        else:
            current.append(token)
    assert list(parts) == list(range(VOCABULARY, VOCABULARY + len(parts)))
    return [token for t in source for token in (parts[t] if t >= VOCABULARY else [t])]


def test_source_and_target_together_are_the_documents():
    samples = corrupted()
    batch = every(samples)
    for index in range(len(samples)):
        found = []
        for document in range(int(batch.documents_BT[index].max()) + 1):
            here, there = batch.source_documents_BS[index] == document, batch.documents_BT[index] == document
            source, target = batch.sources_BS[index, here].tolist(), batch.labels_BT[index, there].tolist()
            assert batch.source_positions_BS[index, here].tolist() == list(range(len(source)))
            assert batch.positions_BT[index, there].tolist() == list(range(len(target)))
            assert target[-1] == STOP
            assert not {BOS, EOS} & set(target)
            whole = restored(source, target[:-1])
            hidden = len(target) - 1 - sum(t >= VOCABULARY for t in target)
            text = sum(t >= 8 for t in whole)
            assert (hidden, sum(t >= VOCABULARY for t in target)) == span_counts(text, 0.15, 3.0)
            found += whole
        expected = [part.tolist() for part in samples.documents(index) if (part >= 8).sum() >= 2]
        assert found == [token for part in expected for token in part]
        padding = batch.source_documents_BS[index] == -1
        assert (batch.labels_BT[index][batch.documents_BT[index] == -1] == IGNORED).all()
        assert padding.sum() == batch.sources_BS.shape[1] - sum((batch.source_documents_BS[index] >= 0).tolist())


@pytest.mark.parametrize(("tokens", "rate", "mean"), [(2, 0.15, 3), (20, 0.15, 3), (100, 0.5, 1), (100, 0.9, 3)])
def test_spans_are_drawn_anywhere_and_never_touch(tokens, rate, mean):
    hidden, spans = span_counts(tokens, rate, mean)
    covered = np.zeros(tokens)
    rng = np.random.default_rng(0)
    for _ in range(3000):
        found = spans_of(tokens, rate, mean, rng)
        assert len(found) == spans
        assert sum(b - a for a, b in found) == hidden
        assert found[0][0] >= 0
        assert found[-1][1] <= tokens
        assert all(b < a for (_, b), (a, _) in pairwise(found))
        for a, b in found:
            covered[a:b] += 1
    assert covered.min() > 0, "any token may be hidden, the first and the last too"


def test_a_document_too_short_to_hide_a_part_of_is_left_out():
    rows = PackedRows(SimpleNamespace(tokens=np.array([BOS, 9, EOS] * 5), offsets=np.arange(0, 16, 3)), 6)
    batch = every(corrupted(rows=rows))
    assert (batch.source_documents_BS == -1).all()
    assert (batch.labels_BT == IGNORED).all()


# --- answers ----------------------------------------------------------------------------------------------


def test_a_prompt_is_read_and_its_last_answer_said(tokenizer_path, tokenizer, tmp_path):
    turns = [("user", "2 + 2?"), ("assistant", "4"), ("user", "再加三？"), ("assistant", "七")]
    records = [instruction(i) for i in range(12)]
    records.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    data = AnswerData([write(tmp_path / "a.jsonl", records)], tokenizer_path, validation_fraction=0.0)
    data.attach(plan(), 64)
    assert len(data.train) == 13
    asked = [[{"role": "user", "content": r["instruction"]}] for r in records[:12]]
    asked.append([{"role": role, "content": text} for role, text in turns[:3]])
    prompts = render_prompts(asked, tokenizer)
    batch = every(data.train)
    assert int(batch.normalizer) == int((batch.labels_BT != IGNORED).sum())
    begun = EncoderDecoder(420, 8, 1, 2, 8, start=5).begun(batch.labels_BT, batch.positions_BT)
    for i, answer in enumerate([r["output"] for r in records[:12]] + ["七"]):
        here = batch.source_documents_BS[i] == 0
        assert batch.sources_BS[i, here].tolist() == prompts[i]
        said = [*tokenizer.encode(answer), tokenizer.special[END]]
        assert batch.labels_BT[i, batch.documents_BT[i] == 0].tolist() == said
        assert begun[i, : len(said)].tolist() == [5, *said[:-1]]
    assert data.validation_samples is None
    assert data.train.prompts(13) == prompts
    assert data.typical_lengths[0] > data.typical_lengths[1] > 0


def test_starts_are_where_the_last_taught_run_begins():
    samples, rendered = sequences(200, 3)
    answers = Answers(samples)
    for i, (ids, taught) in enumerate(rendered):
        start = len(ids)
        while taught[start - 1]:
            start -= 1
        assert answers.pair(i)[0].tolist() == ids[:start].tolist()
        assert answers.pair(i)[1].tolist() == ids[start:].tolist()


def test_each_side_has_the_context_to_itself(tokenizer_path, tmp_path):
    record = {"instruction": "abc " * 10, "output": "xyz " * 10}
    files = [write(tmp_path / "a.jsonl", [record] * 3)]
    longest = max(lengths_of(files, tokenizer_path))
    for context, kept in ((longest, 3), (longest - 1, 0)):
        data = AnswerData(files, tokenizer_path, validation_fraction=0.0, too_long="drop")
        data.plan = BatchPlan(1, 1, 1)
        assert len(data.open("train", context)) == kept
    data = AnswerData(files, tokenizer_path, validation_fraction=0.0)
    data.plan = BatchPlan(1, 1, 1)
    with pytest.raises(UserError, match="3 of 3 sequences are longer than the model's context"):
        data.open("train", longest - 1)
    data.too_long = "truncate"
    with pytest.raises(UserError, match="too_long=truncate would ask with half a prompt"):
        data.open("train", 64)


def lengths_of(files, tokenizer_path):
    data = AnswerData(files, tokenizer_path, validation_fraction=0.0)
    source, target = data.open("train", 10_000).pair(0)
    return len(source), len(target)


# --- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changes", "match"),
    [
        (MaskedData, {"rate": 0.0}, "data.rate=0.0 must lie between 0 and 1"),
        (MaskedData, {"masked": 0.8, "random": 0.3}, "data.masked=0.8 and data.random=0.3 are shares"),
        (MaskedData, {"span": 0.5}, "data.span=0.5 must be at least 1 token"),
        (SpanCorruptionData, {"rate": 1.0}, "data.rate=1.0 must lie between 0 and 1"),
        (
            SpanCorruptionData,
            {"sentinels": 12},
            "sentinels=12 are too few: a row of 256 tokens has up to 13 spans",
        ),
    ],
)
def test_what_cannot_be_is_refused(tokenizer_path, kind, changes, match):
    with pytest.raises(UserError, match=match):
        kind("nowhere", tokenizer_path, 256, **changes)


def test_marks_are_those_of_the_tokenizer(tokenizer):
    marks = Marks.of(tokenizer)
    assert marks.mask == tokenizer.unk_id
    ids = tokenizer.encode("炉火 furnace \U0001f525 <unk> <|end|>")
    assert marks.mask not in ids, "no text encodes to the mask"
    assert marks.text[ids].all()
    hidden = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, *tokenizer.special.values()}
    assert set(np.flatnonzero(~marks.text)) == hidden
    assert not hidden & set(marks.ordinary)


def test_ids_beyond_the_vocabulary_are_no_text(tokenizer):
    ids = tokenizer.encode("heat")
    beyond = tokenizer.vocabulary_size
    assert tokenizer.decode([beyond, *ids, beyond + 5]) == "heat"
    assert tokenizer.decode([*ids, beyond, tokenizer.special[END]], special=True) == "heat<|end|>"
