"""PPO: the rollout against plain loops, the first update by hand; cutting batches up or stopping changes nothing."""

import copy
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD

from athanor import functional
from athanor.algorithms.ppo import PPO, Rollout, joined
from athanor.batches import IGNORED, PromptBatch
from athanor.corpus.tasks import CheckerReward
from athanor.data.base import BatchPlan
from athanor.data.chat import END, encode_texts, render_prompts
from athanor.data.prompts import PromptData
from athanor.errors import UserError
from athanor.models.heads import ScalarModel
from athanor.rollout import Responses, pad_left
from small import decoder, fit, optimizer, steady

VOCABULARY, NEW = 420, 6
QUESTIONS = ["2 + 3 = ?", "三加四等于多少？", "Copy: a b c", "What?", "照抄：甲", "Which is larger, 12 or 7?"]


def scorer(seed: int) -> ScalarModel:
    model = ScalarModel(decoder(VOCABULARY, seed))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) * (parameter.ndim > 1))
    return model


def policy(seed: int) -> nn.Module:
    """Random and sharp."""
    model = decoder(VOCABULARY, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    return model


def make(tokenizer_path: str, **changes) -> PPO:
    arguments = {
        "reference": policy(3), "reward": scorer(5), "value": scorer(6), "tokenizer": tokenizer_path,
        "max_new_tokens": NEW, "kl_coefficient": 0.1, "temperature": 0.9, "gamma": 0.98, "lam": 0.9,
        "optimizer": optimizer(0.02, SGD), "schedule": steady(), "value_weight": 0.3, "unfinished_penalty": 0.7,
    }  # fmt: skip
    return PPO(policy(2), **{**arguments, **changes})


@pytest.fixture
def stop_id(tokenizer) -> int:
    return tokenizer.special[END]


def prompts_of(tokenizer, count=12) -> PromptBatch:
    prompts = render_prompts([[{"role": "user", "content": QUESTIONS[i % 6]}] for i in range(count)], tokenizer)
    tokens, lengths = pad_left(prompts, tokenizer.pad_id)
    return PromptBatch(tokens, lengths, torch.arange(100, 100 + count), torch.tensor(max(map(len, prompts)) + 2))


def alone(algorithm: PPO) -> PPO:
    """Out of a trainer."""
    algorithm.seed = 4
    algorithm.world = SimpleNamespace(world_size=1, accumulate_grad_batches=1, global_step=0)
    algorithm.trainer = algorithm.world
    return algorithm


# --- the rollout ------------------------------------------------------------------------------------------------------


def test_joined_by_hand():
    prompts = PromptBatch(
        tokens_BP=torch.tensor([[0, 11, 12], [21, 22, 23], [0, 0, 31]]), lengths_B=torch.tensor([2, 3, 1]),
        samples_B=torch.arange(3), longest=torch.tensor(4),
    )  # fmt: skip
    responses = Responses(
        tokens_BN=torch.tensor([[13, 2, 0], [24, 25, 26], [2, 0, 0]]), lengths_B=torch.tensor([2, 3, 1]),
        stopped_B=torch.tensor([True, False, True]),
    )  # fmt: skip
    tokens, labels, lengths = joined(prompts, responses, pad_id=0)
    assert tokens.tolist() == [[11, 12, 13, 2, 0, 0], [21, 22, 23, 24, 25, 26], [31, 2, 0, 0, 0, 0]]
    x = IGNORED
    assert labels.tolist() == [[x, 13, 2, x, x, x], [x, x, 24, 25, 26, x], [2, x, x, x, x, x]]
    assert lengths.tolist() == [4, 6, 2]


@torch.no_grad()
def expected_rollout(algorithm: PPO, rollout: Rollout) -> list[dict]:
    """Of each response, one at a time: what `collect` should have found, by loops over its tokens."""
    rows = []
    for tokens, labels in zip(rollout.tokens_RT.tolist(), rollout.labels_RT.tolist()):
        where = [t for t, label in enumerate(labels) if label != IGNORED]
        end = where[-1] + 2
        sequence = torch.tensor([tokens[:end]])
        response = [labels[t] for t in where]
        assert response == tokens[where[0] + 1 : end]
        both = [
            (model.eval()(sequence)[0] / algorithm.temperature).log_softmax(-1)[where, response].tolist()
            for model in (algorithm.model, algorithm.reference)
        ]
        values = algorithm.value.eval()(sequence)[0, where].tolist()
        stopped = response[-1] == algorithm.stop_id
        raw = algorithm.reward(sequence)[0, -1].item()
        score = min(max(raw, -algorithm.reward_clip), algorithm.reward_clip)
        score -= 0 if stopped else algorithm.unfinished_penalty
        coefficient = float(algorithm.kl_coefficient)
        rewards = [-coefficient * (a - b) for a, b in zip(*both)]
        rewards[-1] += score
        advantages = []
        for t in range(len(where)):
            total = 0.0
            for k in range(t, len(where)):
                following = values[k + 1] if k + 1 < len(where) else 0.0
                delta = rewards[k] + algorithm.gamma * following - values[k]
                total += (algorithm.gamma * algorithm.lam) ** (k - t) * delta
            advantages.append(total)
        rows.append({"where": where, "logps": both[0], "ref": both[1], "values": values, "advantages": advantages,
                     "score": score, "stopped": stopped})  # fmt: skip
    return rows


@pytest.mark.parametrize("clip", [None, 0.01])
def test_a_rollout_is_what_the_loops_find(tokenizer_path, tokenizer, clip):
    algorithm = alone(make(tokenizer_path, reward_clip=clip))
    trial = algorithm.collect(prompts_of(tokenizer))[0].labels_RT
    algorithm.stop_id = int(trial[trial != IGNORED].mode().values)  # a word it often says, to have all lengths
    rollout, metrics = algorithm.collect(prompts_of(tokenizer))
    rows = expected_rollout(algorithm, rollout)
    everything = np.concatenate([row["advantages"] for row in rows])
    for r, row in enumerate(rows):
        where = row["where"]
        outside = [t for t in range(rollout.tokens_RT.shape[1]) if t not in where]
        assert rollout.logps_RT[r, where].tolist() == pytest.approx(row["logps"], abs=1e-4)
        assert rollout.values_RT[r, where].tolist() == pytest.approx(row["values"], abs=1e-4)
        returns = [a + v for a, v in zip(row["advantages"], row["values"])]
        assert rollout.returns_RT[r, where].tolist() == pytest.approx(returns, abs=1e-4)
        whitened = [(a - everything.mean()) / everything.std() for a in row["advantages"]]
        assert rollout.advantages_RT[r, where].tolist() == pytest.approx(whitened, abs=1e-3)
        assert not rollout.advantages_RT[r, outside].any()
    kl = [sum(a - b for a, b in zip(row["logps"], row["ref"])) for row in rows]
    assert metrics["reward"].item() == pytest.approx(np.mean([row["score"] for row in rows]), abs=1e-4)
    assert metrics["kl"].item() == pytest.approx(np.mean(kl), abs=1e-3)
    assert metrics["response_tokens"].item() == pytest.approx(np.mean([len(row["where"]) for row in rows]))
    assert metrics["unfinished"].item() == pytest.approx(np.mean([not row["stopped"] for row in rows]))
    assert 0 < metrics["unfinished"].item() < 1, "some responses stop and some do not"
    if clip:
        scores = [row["score"] + (0 if row["stopped"] else algorithm.unfinished_penalty) for row in rows]
        assert max(map(abs, scores)) == pytest.approx(clip), "some scores are cut off"
    error = np.concatenate([row["advantages"] for row in rows]) ** 2
    assert metrics["value_error"].item() == pytest.approx(error.mean(), rel=1e-3)


def test_whitened_rewards_keep_their_mean(tokenizer_path, tokenizer):
    plain, scaled = (alone(make(tokenizer_path, whiten_rewards=w, gamma=1.0, lam=1.0)) for w in (False, True))
    batch = prompts_of(tokenizer)
    mask = plain.collect(batch)[0].labels_RT != IGNORED
    sums = [algorithm.collect(batch)[0].returns_RT for algorithm in (plain, scaled)]
    # with lambda 1 the return at t is the sum of rewards from t on: differences are the rewards
    rewards = [(s - torch.nn.functional.pad(s[:, 1:], (0, 1)))[mask] for s in sums]
    mean = rewards[0].mean()
    torch.testing.assert_close(rewards[1], (rewards[0] - mean) / rewards[0].std(unbiased=False) + mean)


def test_a_rollout_does_not_depend_on_how_it_is_shared_out(tokenizer_path, tokenizer):
    algorithm, batch = alone(make(tokenizer_path)), prompts_of(tokenizer)
    whole, _ = algorithm.collect(batch)
    parts = [algorithm.collect(PromptBatch(*(x[rows] for x in batch[:3]), batch.longest))[0]
             for rows in (slice(0, 5), slice(5, 12))]  # fmt: skip
    for field in ("tokens_RT", "labels_RT"):
        assert torch.equal(torch.cat([getattr(p, field) for p in parts]), getattr(whole, field))
    for field in ("logps_RT", "values_RT", "returns_RT"):
        torch.testing.assert_close(torch.cat([getattr(p, field) for p in parts]), getattr(whole, field))


def test_equal_prompts_are_answered_differently_at_other_places(tokenizer_path, tokenizer):
    algorithm, batch = alone(make(tokenizer_path)), prompts_of(tokenizer)
    first, _ = algorithm.collect(batch)
    later, _ = algorithm.collect(batch._replace(samples_B=batch.samples_B + 12))
    algorithm.seed = 5
    other, _ = algorithm.collect(batch)
    assert not torch.equal(first.tokens_RT, later.tokens_RT)
    assert not torch.equal(first.tokens_RT, other.tokens_RT)
    assert not torch.equal(first.tokens_RT[0], first.tokens_RT[6]), "the same question twice in a rollout"


# --- updates ----------------------------------------------------------------------------------------------------------


def test_the_first_update_by_hand(tokenizer_path, tokenizer):
    """At ratio 1: loss = (-sum A + weight * sum (V - R)^2 / 2) / tokens, and its gradient that of -A log p."""
    algorithm = alone(make(tokenizer_path))
    algorithm.rollout, _ = algorithm.collect(prompts_of(tokenizer))
    rows = torch.tensor([3, 0, 7, 8])
    mask = algorithm.rollout.labels_RT[rows] != IGNORED
    algorithm.minibatch = lambda _: (rows, mask.sum())
    algorithm.loss = lambda total, normalizer, **sums: (
        total / normalizer,
        {k: v / normalizer for k, v in sums.items()},
    )
    nothing = PromptBatch(torch.zeros(0, 1), torch.zeros(0), torch.zeros(0), torch.tensor(0))
    loss, metrics = algorithm.training_step(nothing, 0)
    advantages, values = algorithm.rollout.advantages_RT[rows][mask], algorithm.rollout.values_RT[rows][mask]
    error = values - algorithm.rollout.returns_RT[rows][mask]
    expected = -advantages.mean() + 0.3 * (error**2).mean() / 2
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert metrics["clip_fraction"] == 0
    assert metrics["update_kl"].item() == pytest.approx(0, abs=1e-5)
    loss.backward()
    found = {name: p.grad.clone() for name, p in algorithm.model.named_parameters()}
    algorithm.model.zero_grad()
    tokens, labels = algorithm.rollout.tokens_RT[rows], algorithm.rollout.labels_RT[rows]
    logps = (algorithm.model(tokens) / 0.9).log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    (-(advantages * logps[mask]).sum() / mask.sum()).backward()
    for name, parameter in algorithm.model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5)
    assert all(p.grad is None for frozen in ("reward", "reference") for p in getattr(algorithm, frozen).parameters())


@pytest.mark.parametrize("logits", [3 * 420, 2**24])  # of three tokens at a time; of all
def test_distance_paid_in_the_loss_is_the_whole_distribution_s(tokenizer_path, tokenizer, monkeypatch, logits):
    """By a loop over the response's tokens; the rewards are then the scores alone."""
    monkeypatch.setitem(functional.LOGITS, "cpu", logits)
    algorithm = alone(make(tokenizer_path, kl_in="loss", kl_coefficient=0.4, gamma=1.0, lam=1.0))
    algorithm.rollout, _ = algorithm.collect(prompts_of(tokenizer))
    tokens, labels = algorithm.rollout.tokens_RT, algorithm.rollout.labels_RT
    logps, price = algorithm.logps_and_kl(tokens, labels)
    expected, by_hand = 0.0, torch.zeros(labels.shape)
    for r, t in (labels != IGNORED).nonzero().tolist():
        ours, theirs = (
            (model(tokens[r : r + 1, : t + 1])[0, -1] / algorithm.temperature).softmax(-1)
            for model in (algorithm.model, algorithm.reference)
        )
        expected = expected + (ours * (ours / theirs).log()).sum()
        by_hand[r, t] = ours[labels[r, t]].log()
    torch.testing.assert_close(price, 0.4 * expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(logps, by_hand, rtol=1e-3, atol=1e-4)
    found = torch.autograd.grad(price, list(algorithm.model.parameters()), allow_unused=True)
    wanted = torch.autograd.grad(0.4 * expected, list(algorithm.model.parameters()), allow_unused=True)
    for mine, theirs in zip(found, wanted):
        torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-4)
    returns = algorithm.rollout.returns_RT
    for row, mask in zip(returns, labels != IGNORED):
        torch.testing.assert_close(row[mask], row[mask][-1:].expand(int(mask.sum())), rtol=1e-4, atol=1e-4)


def test_a_dear_nat_keeps_the_policy_home(tokenizer_path, data):
    """Paid in the loss, from a start that lies off: the dearer, the nearer it ends."""
    ends = []
    for coefficient in (0.0, 5.0):
        algorithm = make(tokenizer_path, kl_in="loss", kl_coefficient=coefficient, kl_control="fixed",
                         optimizer=optimizer(0.1, SGD))  # fmt: skip
        metrics = fit(algorithm, data(), steps=16, batch=8)
        kl = metrics.values("ppo/kl")
        ends.append(sum(kl[-3:]) / sum(kl[:1]))
    assert ends[1] < 0.6 * ends[0]


def test_every_pass_takes_every_row_once_in_another_order(tokenizer_path):
    algorithm = alone(make(tokenizer_path))
    labels = torch.full((24, 9), IGNORED)
    for row in range(24):
        labels[row, : 1 + row % 7] = 1
    empty = torch.zeros(24, 9)
    algorithm.rollout = Rollout(labels, labels, empty, empty, empty, empty)
    passes = []
    for world, micro in ((1, None), (1, 2), (2, 2), (4, 1)):
        ranks = [BatchPlan(9, 12, 8, world, rank, micro) for rank in range(world)]
        steps = [([], set()) for _ in range(12)]
        for plan in ranks:
            algorithm.world.datamodule = SimpleNamespace(plan=plan)
            for m in range(12 * plan.accumulation):
                rows, normalizer = algorithm.minibatch(m)
                steps[m // plan.accumulation][0].extend(rows.tolist())
                steps[m // plan.accumulation][1].add(int(normalizer))
        for rows, normalizers in steps:
            assert normalizers == {sum(1 + row % 7 for row in rows)}
        passes.append([[row for rows, _ in steps[i : i + 3] for row in rows] for i in range(0, 12, 3)])
    assert passes[1:] == passes[:1] * 3
    assert all(sorted(rows) == list(range(24)) for rows in passes[0])
    assert len({tuple(rows) for rows in passes[0]}) == 4


# --- the trainer ------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tokenizer_path, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{q} {i}"}) + "\n" for i in range(5) for q in QUESTIONS))

    def make_data(rollout_size=16, epochs=1) -> PromptData:
        return PromptData([str(path)], tokenizer_path, NEW, rollout_size, epochs, validation_fraction=0.2)

    return make_data


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))


def test_micro_batches_change_neither_metrics_nor_weights(tokenizer_path, data):
    reference = None
    for micro in (None, 4, 1):
        algorithm = make(tokenizer_path)
        metrics = fit(algorithm, data(), steps=6, batch=8, micro=micro)
        reference = reference or (algorithm, metrics)
        for key, values in metrics.history.items():
            np.testing.assert_allclose(values, reference[1].history[key], rtol=2e-3, atol=2e-4, err_msg=key)
        for name in ("model", "value"):
            for key, weight in getattr(algorithm, name).state_dict().items():
                torch.testing.assert_close(weight, getattr(reference[0], name).state_dict()[key], rtol=1e-3, atol=1e-4)


def test_what_is_trained_and_what_is_not(tokenizer_path, data):
    algorithm = make(tokenizer_path)
    before = copy.deepcopy(algorithm)
    metrics = fit(algorithm, data(epochs=2), steps=8, batch=8, validate_every=4)
    assert same(algorithm.reference, before.reference)
    assert same(algorithm.reward, before.reward)
    assert not same(algorithm.model, before.model)
    assert not same(algorithm.value, before.value)
    assert [step for step, _ in metrics.history["ppo/reward"]] == [1, 5], "a rollout serves two passes of two steps"
    assert [step for step, _ in metrics.history["validation/reward"]] == [4, 8]
    assert {"train/policy_loss", "train/value_loss", "train/clip_fraction", "ppo/kl", "validation/kl"} <= set(
        metrics.history
    )


@pytest.mark.parametrize("factor", [0.0, 1.0, 3.0])
def test_the_critic_has_its_own_rate(tokenizer_path, data, factor):
    """Plain SGD: one step moves the critic by factor * rate * its gradient, and the policy as ever."""
    moves = {}
    for name, value in (("one", 1.0), ("scaled", factor)):
        algorithm = make(tokenizer_path, value_lr_factor=value, value_clip=None)
        before = copy.deepcopy(algorithm)
        fit(algorithm, data(), steps=1, batch=8)
        moves[name] = {
            part: [p.detach() - q.detach() for p, q in zip(getattr(algorithm, part).parameters(),
                                                          getattr(before, part).parameters())]
            for part in ("model", "value")
        }  # fmt: skip
    for one, scaled in zip(moves["one"]["value"], moves["scaled"]["value"]):
        torch.testing.assert_close(scaled, factor * one, rtol=1e-2, atol=1e-6)
    assert any(move.any() for move in moves["one"]["value"])
    assert all(torch.equal(a, b) for a, b in zip(moves["one"]["model"], moves["scaled"]["model"]))


def test_a_wild_critic_does_not_clip_the_policy(tokenizer_path, data):
    """Each is clipped by its own norm: a thousand times the value loss leaves the policy's step as it was."""
    policies = []
    for weight in (0.3, 300.0):
        algorithm = make(tokenizer_path, value_weight=weight)
        fit(algorithm, data(), steps=1, batch=8, clip=0.05)
        policies.append(algorithm.model)
    assert same(*policies)


def test_kl_at_the_start_is_zero_against_itself(tokenizer_path, data):
    algorithm = make(tokenizer_path, reference=policy(2))
    metrics = fit(algorithm, data(), steps=2, batch=8)
    assert metrics.values("ppo/kl")[0] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("control", ["fixed", "adaptive"])
def test_the_price_of_kl(tokenizer_path, data, control):
    algorithm = make(tokenizer_path, kl_control=control, kl_target=0.5, kl_horizon=0.4)
    metrics = fit(algorithm, data(), steps=8, batch=8)
    prices, kls = metrics.values("ppo/kl_coefficient"), metrics.values("ppo/kl")
    assert len(prices) == 4
    expected = [0.1]
    for kl in kls:
        step = max(-0.2, min(0.2, kl / 0.5 - 1)) * 0.4 if control == "adaptive" else 0
        expected.append(expected[-1] * (1 + step))
    assert prices == pytest.approx(expected[:-1], rel=1e-5)
    assert algorithm.kl_coefficient.item() == pytest.approx(expected[-1], rel=1e-5)


def test_beyond_the_bound_the_price_rises_by_half(tokenizer_path, data):
    algorithm = make(tokenizer_path, kl_control="fixed", kl_bound=-1e9)
    assert fit(algorithm, data(), steps=6, batch=8).values("ppo/kl_coefficient") == pytest.approx([0.1, 0.15, 0.225])
    algorithm = make(tokenizer_path, kl_control="fixed", kl_bound=1e9)
    assert fit(algorithm, data(), steps=6, batch=8).values("ppo/kl_coefficient") == pytest.approx([0.1, 0.1, 0.1])


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_a_resumed_training_ends_with_the_same_bits(tokenizer_path, data, stop, tmp_path):
    """Interrupted within a rollout (3, 5) and between two (4)."""

    def fresh():
        return make(tokenizer_path, optimizer=optimizer(0.002))

    settings = {"steps": 9, "batch": 8, "micro": 4}
    whole = fresh()
    expected = fit(whole, data(epochs=2), **settings)
    fit(fresh(), data(epochs=2), **settings, stop=stop, save=tmp_path / "c.ckpt")
    second = fresh()
    with torch.no_grad():
        for parameter in (*second.model.parameters(), *second.value.parameters()):
            parameter.fill_(0.01)
    found = fit(second, data(epochs=2), **settings, resume=tmp_path / "c.ckpt")
    assert same(second.model, whole.model)
    assert same(second.value, whole.value)
    assert torch.equal(second.kl_coefficient, whole.kl_coefficient)
    assert found.values("train/loss") == expected.values("train/loss")[stop:]
    assert found.values("ppo/reward") == expected.values("ppo/reward")[-len(found.values("ppo/reward")) :]
    assert {k.split(".")[0] for k in torch.load(tmp_path / "c.ckpt", weights_only=True)["state_dict"]} == {
        "model", "value", "kl_coefficient",
    }  # fmt: skip


def test_nothing_is_learnt_from_greedy_answers(tokenizer_path):
    with pytest.raises(ValueError, match="temperature=0 must be positive"):
        make(tokenizer_path, temperature=0)


# --- the checker ------------------------------------------------------------------------------------------------------


def test_the_checker_rewards_the_right_answer_and_its_end_only(tokenizer_path, tokenizer, stop_id, tmp_path):
    path = tmp_path / "tasks.jsonl"
    records = [{"prompt": "2 + 3 = ?", "answer": "5"}, {"prompt": "倒着写：a b", "answer": "b a"}]
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    checker = CheckerReward([str(path)], tokenizer_path)
    asked = render_prompts([[{"role": "user", "content": r["prompt"]}] for r in records], tokenizer)
    five, back = encode_texts(["5", "b a"], tokenizer)
    cases = [
        (asked[0], [*five, stop_id], 1.0), (asked[1], [*back, stop_id], 1.0), (asked[1], [*five, stop_id], 0.0),
        (asked[0], five, 0.0), (asked[0], [*five, stop_id, stop_id], 0.0), (asked[0], [*five, *five, stop_id], 0.0),
        (asked[0], [stop_id], 0.0), (asked[1], [*back[:-1], stop_id], 0.0),
    ]  # fmt: skip
    length = max(len(p) + len(a) for p, a, _ in cases) + 3
    tokens = torch.tensor([[*p, *a, *[stop_id] * (length - len(p) - len(a))] for p, a, _ in cases])
    found = checker.reward(tokens, torch.tensor([len(p) + len(a) for p, a, _ in cases]))
    assert found.dtype == torch.float32
    assert found.tolist() == [score for *_, score in cases]
    assert not math.isnan(found.sum())


def test_the_checker_needs_answers(tokenizer_path, tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "a"}\n')
    with pytest.raises(UserError, match=r"tasks\.jsonl:2 has no `answer`"):
        CheckerReward([str(path)], tokenizer_path)
