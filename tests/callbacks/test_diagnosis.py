"""The diagnosis of curves made by formula, one for each verdict, and of real trainings that over- and underfit by
construction.
"""

import math

import numpy as np
import pytest
from watched import conversations

from athanor.algorithms.dpo import DPO
from athanor.algorithms.pretraining import Pretraining
from athanor.algorithms.reward import RewardModeling
from athanor.algorithms.sft import SFT
from athanor.callbacks.diagnosis import chance
from athanor.diagnosis import VERDICTS, diagnose, spikes
from athanor.models.heads import ScalarModel
from small import Given, decoder, fit, optimizer, steady

LN_V = math.log(2048)
STEPS = np.arange(1, 401)
HELD = np.arange(50, 401, 50)


def noisy(values, seed=0, noise=0.05):
    return values + np.random.default_rng(seed).normal(0, noise, len(values))


def settling(steps, end=3.0, scale=40.0, start=7.6):
    """Falls from start and has settled long before step 400."""
    return end + (start - end) * np.exp(-np.asarray(steps) / scale)


def verdict(train, validation=(), **known):
    held = HELD[: len(validation)]
    made = diagnose((STEPS[: len(train)], train), (held, validation), **({"chance": LN_V} | known))
    assert made["verdict"] == made["findings"][0]["verdict"]
    ranks = [VERDICTS.index(finding["verdict"]) for finding in made["findings"]]
    assert ranks == sorted(ranks)
    return made


@pytest.mark.parametrize("seed", range(20))
def test_a_settled_training_is_healthy(seed):
    made = verdict(noisy(settling(STEPS), seed), settling(HELD, end=3.1))
    assert made["verdict"] == "healthy", made
    assert len(made["findings"]) == 1
    assert made["findings"][0]["try"] == ""
    assert made["numbers"]["validation_end"] == pytest.approx(3.1, abs=1e-3)
    assert made["numbers"]["gap"] == pytest.approx(0.1, abs=0.03)
    assert made["numbers"]["train_end"] == pytest.approx(3.0, abs=0.03)


@pytest.mark.parametrize("seed", range(20))
def test_the_noise_of_single_steps_is_not_a_finding(seed):
    """As of the demo's SFT: a loss of 1.8 with a spread of 0.6 from step to step."""
    made = verdict(noisy(settling(STEPS, end=1.8), seed, noise=0.6), settling(HELD, end=2.0))
    assert made["verdict"] in ("healthy", "underfit"), made
    assert made["numbers"]["spikes"] == 0


def test_what_still_falls_is_underfit():
    made = verdict(noisy(7.6 - 3 * STEPS / 400), 7.7 - 3 * HELD / 400)
    assert made["verdict"] == "underfit"
    assert made["numbers"]["fall_of_last_fifth"] == pytest.approx(0.6, abs=0.05)
    assert "still fell by 0.6" in made["findings"][0]["says"]
    assert "more steps" in made["findings"][0]["try"]
    assert verdict(noisy(7.6 - 3 * STEPS / 400))["verdict"] == "underfit", "without validation too"


def test_validation_that_rises_while_training_falls_is_overfit():
    rising = np.where(HELD <= 150, 5 - HELD / 100, 3.5 + (HELD - 150) / 200)
    made = verdict(noisy(settling(STEPS, end=2.0, scale=100)), rising)
    assert made["verdict"] == "overfit"
    assert "best at step 150 with 3.5 and has risen to 4.75" in made["findings"][0]["says"]
    assert "by heart" not in made["findings"][0]["says"]
    assert "stopping=early" in made["findings"][0]["try"]
    assert "underfit" not in {finding["verdict"] for finding in made["findings"]}


def test_learning_by_heart_is_said_so_and_how_often_the_data_were_seen():
    rising = np.where(HELD <= 100, 5 - HELD / 100, 4 + (HELD - 100) / 100)
    for epochs, said in ((40.0, True), (3.0, False), (None, False)):
        made = verdict(noisy(settling(STEPS, end=0.05), noise=0.01), rising, epochs=epochs)
        assert made["verdict"] == "overfit"
        assert "learnt by heart" in made["findings"][0]["says"]
        assert ("Each sample has been seen 40 times." in made["findings"][0]["says"]) is said
        assert ("since the data repeat" in made["findings"][0]["try"]) is said


def test_validation_that_stands_still_while_training_falls_is_overfit():
    made = verdict(noisy(7 - 4 * STEPS / 400), np.array([6.0, 5.0, 4.6, 4.5, 4.48, 4.48, 4.48, 4.48]))
    assert made["verdict"] == "overfit"
    assert "stands still at 4.48, while training goes on falling" in made["findings"][0]["says"]


@pytest.mark.parametrize(("epochs", "expected"), [(1.0, "data trouble"), (None, "data trouble"), (9.0, "overfit")])
def test_validation_far_above_is_another_kind_of_text_unless_the_data_repeat(epochs, expected):
    made = verdict(noisy(settling(STEPS, end=1.8)), settling(HELD, end=4.0) - HELD / 1000, epochs=epochs)
    assert made["verdict"] == expected
    assert ("of another kind" in made["findings"][0]["try"]) is (expected == "data trouble")
    assert ("hardly repeat" in made["findings"][0]["says"]) is (epochs == 1.0)


def test_validation_far_below_training_is_trouble_with_the_data():
    made = verdict(noisy(settling(STEPS)), settling(HELD, end=2.0))
    assert made["verdict"] == "data trouble"
    assert made["findings"][0]["says"] == "Validation, at 2, is far below training, at 3."
    assert "among those of training" in made["findings"][0]["try"]


@pytest.mark.parametrize("alternatives", [2048, 2])
def test_a_loss_at_chance_is_trouble_with_the_data(alternatives):
    level = math.log(alternatives)
    made = verdict(noisy(np.full(400, level * 0.995), noise=0.01), np.full(8, level), chance=level)
    assert made["verdict"] == "data trouble"
    assert f"an even guess has {level:.3g}. Nothing has been learnt." in made["findings"][0]["says"]
    learnt = verdict(noisy(np.full(400, level * 0.9), noise=0.01), np.full(8, level * 0.9), chance=level)
    assert learnt["verdict"] == "healthy"


def test_spikes_that_come_back_are_trouble_with_the_data():
    losses = noisy(settling(STEPS))
    for at in (100, 200, 300):
        losses[at] = 9.0
    assert spikes(losses) == [100, 200, 300]
    made = verdict(losses, settling(HELD, end=3.1))
    assert made["verdict"] == "data trouble"
    assert "jumped up 3 times and came back, at steps 101, 201, 301." in made["findings"][0]["says"]
    losses[300] = 3.0
    assert verdict(losses, settling(HELD, end=3.1))["verdict"] == "healthy", "two are no pattern"


def test_a_loss_that_rises_for_good_is_unstable():
    losses = noisy(settling(STEPS))
    losses[250:] += np.linspace(0, 3, 150)
    made = verdict(losses, settling(HELD, end=3.1))
    assert "unstable" in {finding["verdict"] for finding in made["findings"]}
    assert any("and has risen to" in finding["says"] for finding in made["findings"])


def test_trouble_with_the_data_comes_before_all_else():
    rising = np.where(HELD <= 150, 5 - HELD / 100, 3.5 + (HELD - 150) / 200)
    losses = noisy(settling(STEPS, end=2.0, scale=100))
    losses[[100, 200, 300]] = 20.0
    assert [finding["verdict"] for finding in verdict(losses, rising)["findings"]] == ["data trouble", "overfit"]


def test_numbers_that_are_none_are_passed_over_and_few_steps_are_too_early():
    losses = noisy(settling(STEPS))
    losses[[5, 50]] = math.nan
    assert verdict(losses, settling(HELD, end=3.1))["verdict"] == "healthy"
    for few in ([], [7.6] * 7):
        made = verdict(np.array(few))
        assert made["verdict"] == "too early"
        assert made["numbers"]["logged_steps"] == len(few)
    assert verdict(noisy(settling(STEPS[:8])))["verdict"] != "too early"


def test_what_chance_is():
    model = decoder(50)
    assert chance(SFT(model, None, None)) == chance(Pretraining(model, None, None)) == math.log(50)
    reward = ScalarModel(decoder(50))
    assert chance(RewardModeling(reward, None, None)) == math.log(2)
    assert chance(DPO(model, None, None, reference=decoder(50), beta=0.1)) == math.log(2)


# Real trainings


def trained(steps, rate, train, held_out, batch=8, **shape):
    algorithm = SFT(decoder(29, **shape), optimizer(rate), steady())
    metrics = fit(algorithm, Given(train, held_out), steps=steps, batch=batch, validate_every=max(1, steps // 8))
    train_curve, held_curve = (zip(*metrics.history[f"{part}/loss"]) for part in ("train", "validation"))
    return diagnose(
        tuple(map(list, train_curve)),
        tuple(map(list, held_curve)),
        chance=math.log(29),
        epochs=steps * batch / len(train),
    )


def test_a_training_on_eight_samples_overfits():
    made = trained(120, 0.01, conversations(1, 8), conversations(2, 32))
    assert made["verdict"] == "overfit", made
    assert "learnt by heart. Each sample has been seen 120 times." in made["findings"][0]["says"]


def test_a_training_that_ends_too_soon_underfits():
    made = trained(40, 5e-4, conversations(1, 5120), conversations(2, 64), batch=256)
    assert made["verdict"] == "underfit", made


def test_a_training_on_enough_data_for_long_enough_is_healthy():
    made = trained(240, 0.003, conversations(1, 2000), conversations(2, 256))
    assert made["verdict"] == "healthy", made


def test_a_training_without_a_rate_has_learnt_nothing():
    made = trained(40, 1e-9, conversations(1, 320), conversations(2, 64))
    assert made["verdict"] == "data trouble", made
    assert "Nothing has been learnt" in made["findings"][0]["says"]


def test_validation_among_the_training_documents_is_no_better_than_training():
    """The same samples on both sides: dropout alone sets training above validation, and that is told."""
    samples = conversations(1, 8)
    made = trained(120, 0.01, samples, samples, dropout=0.5)
    assert made["verdict"] == "data trouble", made
    assert "far below training" in made["findings"][0]["says"]
    assert "dropout" in made["findings"][0]["try"]
