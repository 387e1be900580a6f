"""What the algorithms share: groups of weights, clipping, logging, frozen models, seeds."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD

from athanor.algorithms.dpo import DPO
from athanor.algorithms.sft import SFT
from athanor.data.instructions import Conversations
from athanor.data.order import order
from athanor.data.preferences import Pairs
from athanor.data.records import Sequences
from athanor.models.initialisation import MuP
from athanor.models.moe import MixtureOfExperts
from athanor.models.transformer import Transformer
from athanor.optimizers import MuonWithAdamW
from athanor.schedules import linear
from small import Given, decoder, fit, optimizer, steady

VOCABULARY = 29


def sequences(seed, count=20):
    rng = np.random.default_rng(seed)
    return Sequences(
        [(rng.integers(1, VOCABULARY, n).astype(np.int32), np.arange(n) > n // 2) for n in rng.integers(4, 20, count)]
    )


def conversations():
    return Given(Conversations(sequences(1), 0))


def pairs():
    return Given(Pairs(sequences(2), sequences(3), 0))


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("tie", [True, False])
def test_only_matrices_decay(tie):
    """Under a rate of zero AdamW's decay would be nothing: a decay of 1/rate erases what it touches in one step."""
    model = decoder(VOCABULARY, tie_embeddings=tie)
    before = weights(model)
    algorithm = SFT(model, optimizer(1e-6, weight_decay=1e6), steady())
    fit(algorithm, conversations(), steps=1, batch=4)
    for name, weight in model.named_parameters():
        decays = weight.ndim == 2 and name != "embedding.weight"
        size = (weight.norm() / before[name].norm()).item()
        assert size == pytest.approx(0 if decays else 1, abs=1e-3), name


def test_gradients_are_clipped_by_their_global_norm_which_is_logged():
    model = decoder(VOCABULARY)
    twin, before = copy.deepcopy(model), weights(model)
    data = conversations()
    metrics = fit(SFT(model, optimizer(1.0, SGD), steady()), data, steps=1, batch=8, micro=2, clip=0.01)
    samples = data.samples["train"]
    indices = order(1, len(samples), 0, 8)
    batch = samples.batch(indices, indices, samples.weights(indices))
    alone = SFT(twin, None, None)
    alone.loss = lambda total, normalizer: total / normalizer
    alone.training_step(batch, 0).backward()
    norm = torch.cat([p.grad.flatten() for p in twin.parameters()]).norm().item()
    assert metrics.values("train/grad_norm") == pytest.approx([norm], rel=1e-4)
    assert norm > 0.02
    for (name, weight), slope in zip(model.named_parameters(), twin.parameters()):
        torch.testing.assert_close(weight.data, before[name] - 0.01 / norm * slope.grad, rtol=1e-4, atol=1e-6)


def test_without_clipping_the_norm_is_logged_all_the_same():
    model = decoder(VOCABULARY)
    metrics = fit(SFT(model, optimizer(0.1, SGD), steady()), conversations(), steps=2, batch=8, clip=None)
    assert len(metrics.values("train/grad_norm")) == 2
    assert min(metrics.values("train/grad_norm")) > 0.1


def test_the_logged_rate_is_the_one_that_was_used():
    algorithm = SFT(decoder(VOCABULARY), optimizer(2.0, SGD), partial(linear, warmup_steps=1))
    metrics = fit(algorithm, conversations(), steps=4, batch=4)
    assert metrics.history["train/lr"] == [(1, 2.0), (2, 2.0), (3, 1.0), (4, 0.0)]


@pytest.mark.parametrize(("every", "steps"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [1, 3, 6, 7])])
def test_metrics_are_logged_every_so_many_steps_and_at_both_ends(every, steps):
    algorithm = SFT(decoder(VOCABULARY), optimizer(0.1, SGD), steady())
    metrics = fit(algorithm, conversations(), steps=7, batch=8, micro=4, log_every=every)
    assert [step for step, _ in metrics.history["train/loss"]] == steps


def test_a_frozen_model_neither_moves_nor_drops_out_nor_fills_the_checkpoint(tmp_path):
    reference = decoder(VOCABULARY, seed=5, dropout=0.5)
    before = weights(reference)
    algorithm = DPO(decoder(VOCABULARY, dropout=0.1), optimizer(0.01), steady(), reference=reference, beta=0.1)
    modes = []
    reference.register_forward_hook(lambda module, *_: modes.append(module.training))
    reference.norm.register_forward_hook(lambda module, *_: modes.append(module.training))
    fit(algorithm, pairs(), steps=4, batch=4, stop=2, save=tmp_path / "c.ckpt")
    assert modes
    assert not any(modes)
    assert algorithm.model.training
    algorithm.eval()
    algorithm.train()
    assert algorithm.model.training
    assert not reference.training
    assert not reference.norm.training
    assert same(weights(reference), before)
    assert all(p.grad is None and not p.requires_grad for p in reference.parameters())
    checkpoint = torch.load(tmp_path / "c.ckpt", weights_only=True)
    assert {key.split(".")[0] for key in checkpoint["state_dict"]} == {"model"}
    assert len(checkpoint["optimizer_states"][0]["state"]) == len(list(algorithm.model.parameters()))


def test_dropout_is_a_function_of_the_seed():
    ends = []
    for seed in (1, 1, 2):
        model = decoder(VOCABULARY, dropout=0.3)
        samples = Conversations(sequences(1, count=4), 0)
        torch.rand(seed)  # the generator may stand anywhere
        fit(SFT(model, optimizer(0.1, SGD), steady()), Given(samples), steps=3, batch=4, seed=seed)
        ends.append(weights(model))
    assert same(ends[0], ends[1])
    assert not same(ends[0], ends[2])


@pytest.mark.parametrize("make", ["sft", "dpo"])
def test_a_resumed_training_ends_with_the_same_bits(make, tmp_path):
    """Adam, dropout, warm-up, clipping, accumulation; PPO has a test of its own."""

    def algorithm():
        arguments = (optimizer(0.01), partial(linear, warmup_steps=3))
        model = decoder(VOCABULARY, dropout=0.2)
        if make == "sft":
            return SFT(model, *arguments), conversations()
        return DPO(model, *arguments, reference=decoder(VOCABULARY, seed=5), beta=0.1), pairs()

    settings = {"steps": 8, "batch": 8, "micro": 4, "clip": 0.5}
    whole, data = algorithm()
    expected = fit(whole, data, **settings)
    first, data = algorithm()
    fit(first, data, **settings, stop=3, save=tmp_path / "c.ckpt")
    second, data = algorithm()
    with torch.no_grad():  # all that counts comes from the checkpoint
        for parameter in second.model.parameters():
            parameter.fill_(0.123)
    found = fit(second, data, **settings, resume=tmp_path / "c.ckpt")
    assert same(weights(second.model), weights(whole.model))
    assert found.values("train/loss") == expected.values("train/loss")[3:]
    assert found.history["train/lr"] == expected.history["train/lr"][3:]


@pytest.mark.parametrize(("before", "after"), [(8, 2), (2, 8), (4, 2)])
def test_a_training_resumed_with_other_micro_batches_takes_whole_steps(before, after, tmp_path):
    """Lightning counts micro-batches to tell where a step ends."""
    settings = {"steps": 6, "batch": 8, "clip": 0.5, "validate_every": 2}

    def algorithm():
        return SFT(decoder(VOCABULARY), optimizer(0.1, SGD), partial(linear, warmup_steps=3)), conversations()

    whole, data = algorithm()
    expected = fit(whole, data, micro=before, **settings)
    first, data = algorithm()
    fit(first, data, micro=before, **settings, stop=3, save=tmp_path / "c.ckpt")
    second, data = algorithm()
    found = fit(second, data, micro=after, **settings, resume=tmp_path / "c.ckpt")
    assert found.values("train/loss") == pytest.approx(expected.values("train/loss")[3:], rel=1e-5)
    assert [step for step, _ in found.history["validation/loss"]] == [4, 6]
    for name, weight in weights(whole.model).items():
        torch.testing.assert_close(weights(second.model)[name], weight, rtol=1e-4, atol=1e-6)


def test_initial_weights_are_a_function_of_the_seed():
    assert same(weights(decoder(VOCABULARY, seed=3)), weights(decoder(VOCABULARY, seed=3)))
    assert not same(weights(decoder(VOCABULARY, seed=3)), weights(decoder(VOCABULARY, seed=4)))
    assert isinstance(decoder(VOCABULARY), Transformer)


def test_the_routers_losses_are_trained_and_logged_whatever_the_micro_batch():
    rng = np.random.default_rng(1)
    rows = Sequences([(rng.integers(1, VOCABULARY, 12).astype(np.int32), np.arange(12) > 5) for _ in range(20)])
    ends = []
    for micro, balance in ((None, 0.5), (2, 0.5), (None, 0.0)):
        model = decoder(VOCABULARY, feedforward=MixtureOfExperts(4, 2, balance=balance))
        algorithm = SFT(model, optimizer(0.1, SGD), steady())
        metrics = fit(algorithm, Given(Conversations(rows, 0)), steps=2, batch=8, micro=micro, clip=None)
        ends.append((weights(model), metrics))
    (whole, metrics), (split, others), (free, _) = ends
    for name, weight in whole.items():
        torch.testing.assert_close(split[name], weight, rtol=1e-4, atol=1e-6, msg=name)
    assert metrics.values("train/auxiliary_loss") == pytest.approx(others.values("train/auxiliary_loss"), rel=1e-4)
    assert min(metrics.values("train/auxiliary_loss")) > 0.4, (
        "balanced or not, each layer's loss is at least its weight"
    )
    router = "blocks.0.feedforward.router.weight"
    assert not torch.allclose(whole[router], free[router], rtol=1e-4)
    for layer in (0, 1):
        shares = [metrics.values(f"moe/load/{layer}/{expert}")[-1] for expert in range(4)]
        assert sum(shares) == pytest.approx(1)


def test_a_model_may_scale_the_rate_of_its_parameters():
    """muP under Adam: the first step of a matrix in the wide model is base_width / width of the narrow one's."""
    model = decoder(VOCABULARY, width=64, initialisation=MuP(base_width=16))
    before = weights(model)
    factors = model.learning_rate_factors
    assert set(factors.values()) == {0.25}
    fit(SFT(model, optimizer(1e-3, weight_decay=0.0), steady()), conversations(), steps=1, batch=8)
    for name, weight in model.named_parameters():
        step = (weight - before[name]).abs().max().item()
        assert step == pytest.approx(1e-3 * factors.get(name, 1.0), rel=0.05), name


def test_muon_takes_no_factor_that_is_made_for_adam():
    model = decoder(VOCABULARY, width=64, initialisation=MuP(base_width=16))
    before = weights(model)
    make = partial(MuonWithAdamW, lr=1e-3, matrix_lr=0.02)
    fit(SFT(model, make, steady()), conversations(), steps=1, batch=8)
    after, checked = weights(model), 0
    for name in model.learning_rate_factors:
        if after[name].ndim == 2:  # an update has unit spectral norm, times sqrt(max(1, rows / columns))
            norm = torch.linalg.matrix_norm(after[name] - before[name], 2).item()
            rows, columns = after[name].shape
            assert norm == pytest.approx(0.02 * max(1.0, rows / columns) ** 0.5, rel=0.3), name
            checked += 1
    assert checked
