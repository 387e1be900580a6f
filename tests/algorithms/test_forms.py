"""Masked language modelling and answering: losses by hand, blind to how a batch is cut up, and what they learn."""

import copy
import json
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.optim import SGD

from athanor.algorithms.answering import Answering
from athanor.algorithms.masked import MaskedLanguageModeling
from athanor.batches import IGNORED
from athanor.data.answers import AnswerData, Answers
from athanor.data.chat import END, render_prompts
from athanor.data.corruption import CorruptedRows, Marks, MaskedRows
from athanor.data.order import order
from athanor.data.pretraining import PackedRows
from athanor.data.records import Sequences
from athanor.errors import UserError
from athanor.models.encoder import Encoder
from athanor.models.encoder_decoder import EncoderDecoder
from athanor.models.moe import MixtureOfExperts
from athanor.models.positions import Relative
from athanor.models.transformer import Transformer
from athanor.rollout import generate
from athanor.schedules import cosine, linear
from small import Given, fit, optimizer, steady

VOCABULARY, MASK, STOP = 29, 3, 7
TEXT = np.arange(VOCABULARY) >= 8
MARKS = Marks(MASK, STOP, TEXT, np.flatnonzero(TEXT))
SHAPE = {"width": 32, "layers": 2, "heads": 2, "context": 64}
KINDS = ["masked", "masked spans", "corrupted", "answers"]


def packed(documents=60, length=24):
    rng = np.random.default_rng(1)
    texts = [[1, *rng.integers(8, VOCABULARY, rng.integers(0, 30)), 2] for _ in range(documents)]
    offsets = np.concatenate(([0], np.cumsum([len(text) for text in texts])))
    return PackedRows(SimpleNamespace(tokens=np.concatenate(texts).astype(np.uint16), offsets=offsets), length)


def conversations(count=23):
    rng = np.random.default_rng(1)
    lengths = rng.integers(3, 30, count)
    return Sequences(
        [(rng.integers(1, VOCABULARY, n).astype(np.int32), np.arange(n) >= rng.integers(1, n)) for n in lengths]
    )


def make(kind: str, **changes):
    """(algorithm, samples) of the same initial weights and samples every time."""
    torch.manual_seed(0)
    arguments = (changes.pop("optimizer", optimizer(0.3, SGD)), changes.pop("schedule", steady()))
    shape = {**SHAPE, **changes}
    if kind.startswith("masked"):
        samples = MaskedRows(packed(), MARKS, 1, 0.2, 0.8, 0.1, 2.0 if kind == "masked spans" else None)
        return MaskedLanguageModeling(Encoder(VOCABULARY, **shape), *arguments), samples
    model = EncoderDecoder(VOCABULARY + 16, positions=Relative(8, 20), **shape)
    if kind == "corrupted":
        return Answering(model, *arguments), CorruptedRows(packed(), MARKS, 1, 0.2, 2.0, VOCABULARY)
    return Answering(model, *arguments), Answers(conversations())


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_change_neither_metrics_nor_weights(kind):
    reference = None
    for micro in (None, 4, 1):
        algorithm, samples = make(kind, feedforward=MixtureOfExperts(3, 2))
        metrics = fit(algorithm, Given(samples), steps=5, batch=8, micro=micro, clip=0.5)
        weights = algorithm.model.state_dict()
        reference = reference or (metrics, weights)
        assert len(metrics.values("train/loss")) == 5
        for key, values in metrics.history.items():
            if "auxiliary" not in key and not key.startswith("moe"):
                np.testing.assert_allclose(values, reference[0].history[key], rtol=1e-3, atol=1e-4, err_msg=key)
        for key, weight in weights.items():
            torch.testing.assert_close(weight, reference[1][key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_logged_loss_is_the_sum_over_the_global_batch_by_its_labels(kind):
    """The first loss from the documents one by one, each alone and unpadded."""
    algorithm, samples = make(kind)
    model: torch.nn.Module = copy.deepcopy(algorithm.model).eval()
    logged = fit(algorithm, Given(samples), steps=2, batch=8, micro=2).values("train/loss")[0]
    total, terms = 0.0, 0
    for place, index in enumerate(order(1, len(samples), 0, 8)):
        batch = samples.batch(np.array([index]), np.array([place]), 1)
        for document in batch.documents_BT.unique():
            here = batch.documents_BT[0] == document
            labels = batch.labels_BT[0, here]
            if kind.startswith("masked"):
                logits = model(batch.tokens_BT[:, here])[0]
            elif document < 0:
                continue
            else:
                source = batch.sources_BS[:, batch.source_documents_BS[0] == document]
                begun = torch.cat((torch.tensor([1]), labels[:-1]))
                logits = model(begun[None], source=model.encode(source))[0]
            logps = logits.log_softmax(-1)
            for t, label in enumerate(labels.tolist()):
                if label != IGNORED:
                    total, terms = total - logps[t, label].item(), terms + 1
    assert logged == pytest.approx(total / terms, rel=1e-5)
    assert terms > 8


@pytest.mark.parametrize("kind", ["masked", "corrupted"])
def test_a_resumed_training_ends_with_the_same_bits(kind, tmp_path):
    settings = {"steps": 8, "batch": 8, "micro": 4, "clip": 0.5}

    def fresh():
        adam = optimizer(0.01)
        algorithm, samples = make(kind, dropout=0.2, optimizer=adam, schedule=partial(linear, warmup_steps=3))
        return algorithm, Given(samples)

    whole, data = fresh()
    expected = fit(whole, data, **settings)
    first, data = fresh()
    fit(first, data, **settings, stop=3, save=tmp_path / "c.ckpt")
    second, data = fresh()
    with torch.no_grad():
        for parameter in second.model.parameters():
            parameter.fill_(0.123)
    found = fit(second, data, **settings, resume=tmp_path / "c.ckpt")
    assert same(second.model.state_dict(), whole.model.state_dict())
    assert found.values("train/loss") == expected.values("train/loss")[3:]


# --- what they learn --------------------------------------------------------------------------------------------------


def cycles(first: int):
    """Documents go six words round a cycle of seven, from `first` on: every word is known from any other."""
    rng = np.random.default_rng(0)
    rows = [[1, *((rng.integers(7) + np.arange(6)) % 7 + first), 2] for _ in range(401)]
    tokens = np.concatenate(rows).astype(np.uint16)
    return PackedRows(SimpleNamespace(tokens=tokens, offsets=np.arange(0, 8 * len(rows) + 1, 8)), 32)


def words(first: int, vocabulary: int) -> Marks:
    text = np.arange(vocabulary) >= first
    return Marks(MASK, STOP, text, np.flatnonzero(text))


def test_an_encoder_learns_what_a_cycle_leaves_out():
    torch.manual_seed(0)
    model = Encoder(15, width=48, layers=2, heads=4, context=32)
    algorithm = MaskedLanguageModeling(model, optimizer(5e-3), partial(cosine, warmup_steps=5))
    rows, marks = cycles(8), words(8, 15)
    train, held_out = (MaskedRows(rows, marks, seed, 0.15, 0.8, 0.1, None) for seed in (1, None))
    metrics = fit(algorithm, Given(train, held_out), steps=150, batch=16)
    assert metrics.values("train/loss")[0] > 0.9 * math.log(15)
    assert metrics.values("validation/accuracy")[-1] > 0.97
    assert metrics.values("validation/loss")[-1] < 0.12
    assert metrics.values("train/accuracy")[-1] == pytest.approx(metrics.values("validation/accuracy")[-1], abs=0.1)


def test_an_encoder_decoder_learns_the_spans_of_a_cycle():
    torch.manual_seed(0)
    model = EncoderDecoder(15 + 4, width=48, layers=2, heads=4, context=32)
    algorithm = Answering(model, optimizer(5e-3), partial(cosine, warmup_steps=5))
    rows, marks = cycles(8), words(8, 15)
    train, held_out = (CorruptedRows(rows, marks, seed, 0.3, 1.0, 15) for seed in (1, None))
    metrics = fit(algorithm, Given(train, held_out), steps=150, batch=16)
    assert metrics.values("train/loss")[0] > 0.9 * math.log(19)
    assert metrics.values("validation/loss")[-1] < 0.03
    (source, target), *_ = held_out.corrupted(0, 0)
    answer = generate(model, [source.tolist()], max_new_tokens=10, stop_id=STOP, pad_id=0)[0]
    assert answer == target[:-1].tolist()


def test_an_encoder_decoder_learns_to_copy(tokenizer_path, tokenizer, tmp_path):
    letters, path = "abcdefgh", tmp_path / "copying.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Copy: {x}", "completion": x}) + "\n" for x in letters))
    torch.manual_seed(0)
    model = EncoderDecoder(420, width=48, layers=2, heads=4, context=32)
    algorithm = Answering(model, optimizer(2e-3), partial(cosine, warmup_steps=20))
    data = AnswerData([str(path)], tokenizer_path, validation_files=[str(path)])
    metrics = fit(algorithm, data, steps=200, batch=16)
    assert metrics.values("validation/loss")[-1] < 0.05
    asked = render_prompts([[{"role": "user", "content": f"Copy: {x}"}] for x in letters], tokenizer)
    answers = generate(model, asked, max_new_tokens=4, stop_id=tokenizer.special[END], pad_id=tokenizer.pad_id)
    assert [tokenizer.decode(answer) for answer in answers] == list(letters)


def test_each_trains_its_own_form_only():
    with pytest.raises(UserError, match=r"Transformer is a decoder, .*; model must be an encoder here"):
        MaskedLanguageModeling(Transformer(VOCABULARY, **SHAPE), None, None)
    with pytest.raises(UserError, match=r"Encoder is an encoder, .*; model must be an encoder-decoder here"):
        Answering(Encoder(VOCABULARY, **SHAPE), None, None)
