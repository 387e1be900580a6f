"""Through the real trainer: how a global batch is cut up, padded or packed changes neither losses nor weights.

Plain SGD, so that differences in the sixth digit of a gradient stay there.
"""

import copy

import numpy as np
import pytest
import torch
from torch.optim import SGD

from athanor.algorithms.base import response_logps
from athanor.algorithms.dpo import DPO
from athanor.algorithms.pretraining import Pretraining
from athanor.algorithms.reward import RewardModeling
from athanor.algorithms.sft import SFT
from athanor.batches import IGNORED, PackedBatch
from athanor.data.instructions import Conversations
from athanor.data.order import order
from athanor.data.preferences import Pairs
from athanor.data.pretraining import PackedRows
from athanor.data.records import Sequences
from athanor.functional import cross_entropy_sum
from athanor.models.heads import ScalarModel
from athanor.models.moe import MixtureOfExperts
from small import Given, decoder, fit, optimizer, steady

VOCABULARY = 29


class Tokens:
    """A corpus in memory."""

    def __init__(self, documents: int, seed: int):
        rng = np.random.default_rng(seed)
        self.offsets = np.concatenate(([0], np.cumsum(rng.integers(2, 30, documents))))
        self.tokens = rng.integers(1, VOCABULARY, self.offsets[-1]).astype(np.uint16)


def sequences(count: int, seed: int) -> Sequences:
    """Very unequal lengths and shares of taught tokens."""
    rng = np.random.default_rng(seed)
    rendered = []
    for _ in range(count):
        length = int(rng.integers(3, 30))
        taught = np.arange(length) >= rng.integers(1, length)
        rendered.append((rng.integers(1, VOCABULARY, length).astype(np.int32), taught))
    return Sequences(rendered)


def scorer(seed: int, **shape) -> ScalarModel:
    model = ScalarModel(decoder(VOCABULARY, seed, **shape))
    torch.nn.init.normal_(model.head.weight, std=0.3)
    return model


def make(name: str, **shape):
    """(algorithm, data) of the same initial weights and samples every time."""
    arguments = (optimizer(0.3, SGD), steady())
    if name == "pretraining":
        return Pretraining(decoder(VOCABULARY, **shape), *arguments), Given(PackedRows(Tokens(60, 1), 24))
    if name == "sft":
        return SFT(decoder(VOCABULARY, **shape), *arguments), Given(Conversations(sequences(23, 1), 0))
    pairs = Given(Pairs(sequences(23, 2), sequences(23, 3), 0))
    if name == "reward":
        return RewardModeling(scorer(0, **shape), *arguments), pairs
    policy, reference = (decoder(VOCABULARY, seed, **shape) for seed in (0, 7))
    return DPO(policy, *arguments, reference=reference, beta=0.2), pairs


ALGORITHMS = ["pretraining", "sft", "reward", "dpo"]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_micro_batches_change_neither_metrics_nor_weights(name):
    reference = None
    for micro in (None, 4, 1):
        algorithm, data = make(name)
        metrics = fit(algorithm, data, steps=6, batch=8, micro=micro, clip=0.5)
        weights = algorithm.model.state_dict()
        if reference is None:
            reference = metrics, weights
            assert len(metrics.values("train/loss")) == 6
            continue
        for key, values in metrics.history.items():
            np.testing.assert_allclose(values, reference[0].history[key], rtol=1e-4, atol=1e-5, err_msg=key)
        for key, weight in weights.items():
            torch.testing.assert_close(weight, reference[1][key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_logged_loss_is_the_sum_over_the_global_batch_by_its_terms(name):
    """The first loss, from the samples one by one, each alone and unpadded."""
    algorithm, data = make(name)
    before = copy.deepcopy(algorithm.model)
    logged = fit(algorithm, data, steps=2, batch=8, micro=2).values("train/loss")[0]
    samples, indices = data.samples["train"], order(1, len(data.samples["train"]), 0, 8)
    total, terms = 0.0, 0
    with torch.no_grad():
        for i in indices:
            batch = samples.batch(np.array([i]), np.array([0]), 1)
            if isinstance(batch, PackedBatch):
                for document in batch.documents_BT.unique():
                    here = batch.documents_BT[0] == document
                    total += cross_entropy_sum(before(batch.tokens_BT[:, here]), batch.labels_BT[:, here]).item()
                terms += int((batch.labels_BT != IGNORED).sum())
            elif name == "sft":
                total -= response_logps(before, batch.tokens_BT, batch.labels_BT).sum().item()
                terms += int((batch.labels_BT != IGNORED).sum())
            else:
                sides = ((batch.chosen_BT, batch.chosen_labels_BT, batch.chosen_lengths_B),
                         (batch.rejected_BT, batch.rejected_labels_BT, batch.rejected_lengths_B))  # fmt: skip
                alone = [(tokens[:, :n], labels[:, :n], n) for tokens, labels, n in sides]
                if name == "reward":
                    chosen, rejected = (before(tokens)[0, n - 1].item() for tokens, _, n in alone)
                    total += np.log1p(np.exp(rejected - chosen)) + 0.01 * (chosen + rejected) ** 2
                else:
                    margin = [
                        (response_logps(before, t, y) - response_logps(algorithm.reference, t, y)).sum().item()
                        for t, y, _ in alone
                    ]
                    total += np.log1p(np.exp(-0.2 * (margin[0] - margin[1])))
                terms += 1
    assert logged == pytest.approx(total / terms, rel=1e-5)


@pytest.mark.parametrize("shape", [{}, {"feedforward": MixtureOfExperts(3, 2, balance=0.5, z=0.1)}])
@pytest.mark.parametrize("name", ["sft", "reward", "dpo"])
def test_padding_changes_nothing(name, shape):
    """Wider padding with other tokens in it: the same loss and gradient, routers' losses too. (Packed rows have no
    padding.)
    """
    found = []
    for extra, fill in ((0, 0), (9, 13)):
        algorithm, data = make(name, **shape)
        routers = algorithm.model.train().auxiliary_loss

        def loss(total, normalizer, routers=routers, **_):
            return total / normalizer + (routers() or 0.0)

        algorithm.loss = loss
        batch = data.samples["train"].batch(np.arange(8), np.arange(8), 11)
        wider = {}
        for field, value in batch._asdict().items():
            if field.endswith("_BT"):
                labels = "labels" in field
                value = torch.nn.functional.pad(value, (0, extra), value=IGNORED if labels else fill)
                lengths = getattr(batch, field.split("_")[0] + "_lengths_B", None)
                if lengths is not None and not labels:
                    outside = torch.arange(value.shape[1])[None] >= lengths[:, None]
                    value = torch.where(outside, fill, value)
            wider[field] = value
        loss = algorithm.training_step(type(batch)(**wider), 0)
        loss.backward()
        found.append((loss.item(), {k: p.grad.clone() for k, p in algorithm.model.named_parameters()}))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for key, slope in found[0][1].items():
        torch.testing.assert_close(found[1][1][key], slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_validation_means_do_not_depend_on_the_batch(name):
    """Sums over sums: batches of unequal weight do not count alike."""
    found = []
    for size in (23, 5, 1):
        algorithm, data = make(name)
        algorithm.make_optimizer = optimizer(0.0, SGD)
        data.validation_batch_size = size
        metrics = fit(algorithm, data, steps=1, batch=8)
        found.append({key: metrics.values(key)[-1] for key in metrics.history if key.startswith("validation/")})
    assert "validation/loss" in found[0]
    assert found[1] == pytest.approx(found[0], rel=1e-5, abs=1e-6)
    assert found[2] == pytest.approx(found[0], rel=1e-5, abs=1e-6)


def test_a_loss_without_labels_is_zero_and_differentiable():
    model = decoder(VOCABULARY)
    nothing = response_logps(model, torch.ones(2, 5, dtype=torch.long), torch.full((2, 5), IGNORED))
    assert nothing.tolist() == [[0.0] * 5] * 2
    nothing.sum().backward()


def test_response_logps_are_those_of_all_logits_with_temperature():
    model = decoder(VOCABULARY)
    batch = Conversations(sequences(6, 5), 0).batch(np.arange(6), np.arange(6), 1)
    for temperature in (1.0, 0.7):
        logps = (model(batch.tokens_BT) / temperature).log_softmax(-1)
        mask = batch.labels_BT != IGNORED
        expected = logps.gather(-1, batch.labels_BT.clamp(min=0)[..., None])[..., 0] * mask
        found = response_logps(model, batch.tokens_BT, batch.labels_BT, temperature=temperature)
        torch.testing.assert_close(found, expected)
