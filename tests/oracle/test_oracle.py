"""The same numbers as independent implementations: transformers' Llama, and the trainers of TRL, step by step.

`figures.json` holds their answers to `inputs.py`; `make_figures.py` made it and says how.
"""

import json
import math
from pathlib import Path

import inputs
import numpy as np
import pytest
import torch

from athanor.algorithms.base import response_logps
from athanor.algorithms.dpo import DPO
from athanor.algorithms.ppo import adapted_kl_coefficient, clipped_policy_loss, clipped_value_loss, token_rewards
from athanor.algorithms.reward import RewardModeling
from athanor.batches import IGNORED, PreferenceBatch
from athanor.data.base import pad_right
from athanor.functional import cross_entropy_sum, gae, masked_mean, masked_whiten
from athanor.models.heads import ScalarModel
from athanor.models.transformer import Transformer

FIGURES = json.loads(Path(__file__).with_name("figures.json").read_text())
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def renamed(llama: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights under transformers' names -> under ours, query-key-value and gate-up joined."""
    weights, rest = {}, dict(llama)
    for name in ("q", "gate"):
        for key in [key for key in rest if f".{name}_proj." in key]:
            if name == "q":
                parts, mine = [key, key.replace("q_proj", "k_proj"), key.replace("q_proj", "v_proj")], "qkv"
            else:
                parts, mine = [key, key.replace("gate_proj", "up_proj")], "gate_up"
            rest[key.replace(f"{name}_proj", mine)] = torch.cat([rest.pop(part) for part in parts])
    for key, value in rest.items():
        for old, new in (
            ("model.layers", "blocks"), ("model.embed_tokens", "embedding"), ("model.norm", "norm"),
            ("lm_head", "output"), ("self_attn.o_proj", "attention.out"), ("self_attn", "attention"),
            ("mlp.down_proj", "feedforward.out"), ("mlp", "feedforward"), ("input_layernorm", "attention_norm"),
            ("post_attention_layernorm", "feedforward_norm"),
        ):  # fmt: skip
            key = key.replace(old, new)
        weights[key] = value
    return weights


def model_of(name: str, who: str = "policy") -> Transformer:
    shape = inputs.SHAPES[name]
    weights = {k: torch.from_numpy(v) for k, v in inputs.llama_weights(shape, inputs.SEED[who]).items()}
    model = Transformer(**shape)
    model.load_state_dict(renamed(weights))
    return model


def split_norms(tensors: dict[str, torch.Tensor], shape: dict) -> dict[str, float]:
    """The norm of each of our tensors, under transformers' names, the joined ones taken apart."""
    key_rows = shape["kv_heads"] * shape["width"] // shape["heads"]
    parts = {"q_proj": slice(0, shape["width"]), "k_proj": slice(shape["width"], shape["width"] + key_rows),
             "v_proj": slice(shape["width"] + key_rows, None), "gate_proj": slice(0, shape["hidden"]),
             "up_proj": slice(shape["hidden"], None)}  # fmt: skip
    norms = {}
    for key in inputs.llama_weights(shape, 0):
        part = next((p for p in parts if p in key), None)
        mine = key.replace("q_proj", "qkv").replace("k_proj", "qkv").replace("v_proj", "qkv")
        mine = mine.replace("gate_proj", "gate_up").replace("up_proj", "gate_up")
        mine = next(iter(renamed({mine: torch.zeros(())})))
        norms[key] = tensors[mine][parts[part] if part else slice(None)].norm().item()
    return norms


def tokens_of(name: str) -> torch.Tensor:
    return torch.from_numpy(inputs.tokens(inputs.SHAPES[name], 2, len(inputs.POSITIONS)))


def figure(*path: str) -> torch.Tensor:
    value = FIGURES
    for key in path:
        value = value[key]
    return torch.tensor(value)


@pytest.mark.parametrize("name", inputs.SHAPES)
def test_logits_of_llama(name):
    logits = model_of(name)(tokens_of(name)).flatten(0, 1)
    assert logits.std() > 0.5  # the figures are not near zero
    torch.testing.assert_close(logits, figure(name, "logits"), **CLOSE)


@pytest.mark.parametrize("name", inputs.SHAPES)
def test_logits_at_far_positions(name):
    found = model_of(name)(tokens_of(name), positions_BT=torch.tensor([inputs.POSITIONS])).flatten(0, 1)
    torch.testing.assert_close(found, figure(name, "logits_at_positions"), atol=1e-4, rtol=1e-5)
    assert not torch.allclose(found, figure(name, "logits"), atol=0.1)


@pytest.mark.parametrize("name", inputs.SHAPES)
def test_packed_documents_have_the_logits_of_each_alone(name):
    documents, positions = torch.tensor([inputs.DOCUMENTS]), torch.tensor([inputs.DOCUMENT_POSITIONS])
    found = model_of(name)(tokens_of(name), documents_BT=documents, positions_BT=positions).flatten(0, 1)
    torch.testing.assert_close(found, figure(name, "logits_of_documents"), **CLOSE)


@pytest.mark.parametrize("name", inputs.SHAPES)
def test_loss_and_gradients_of_llama(name):
    model, tokens = model_of(name), tokens_of(name)
    labels = tokens.clone()
    labels[0, :4] = labels[1, 7:] = IGNORED
    labels = torch.cat((labels[:, 1:], torch.full((2, 1), IGNORED)), dim=1)
    loss = cross_entropy_sum(model(tokens), labels) / (labels != IGNORED).sum()
    assert loss.item() == pytest.approx(FIGURES[name]["loss"], rel=1e-5)
    loss.backward()
    norms = split_norms({key: p.grad for key, p in model.named_parameters()}, inputs.SHAPES[name])
    assert norms == pytest.approx(FIGURES[name]["gradient_norms"], rel=1e-4)


# --- the trainers: three steps of plain SGD ---------------------------------------------------------------------------


def whole(prompts: list, answers: list, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = [p + a for p, a in zip(prompts, answers)]
    labels = [[IGNORED] * (len(p) - 1) + a + [IGNORED] for p, a in zip(prompts, answers)]
    return pad_right(rows, inputs.PAD, length), pad_right(labels, IGNORED, length), torch.tensor([*map(len, rows)])


def pairs() -> PreferenceBatch:
    prompts, chosen, rejected = map(list, zip(*inputs.PAIRS))
    length = max(len(p) + len(a) for p, c, r in inputs.PAIRS for a in (c, r))
    sides = [*whole(prompts, chosen, length), *whole(prompts, rejected, length)]
    return PreferenceBatch(*sides, normalizer=torch.tensor(len(prompts)))


def descend(model: torch.nn.Module, losses) -> list[float]:
    """Takes the steps; `losses()` gives the loss of each."""
    values = []
    for _ in range(inputs.STEPS):
        model.zero_grad()
        loss = losses()
        loss.backward()
        values.append(loss.item())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= inputs.LEARNING_RATE * parameter.grad
    return values


def check_moved(before: dict, model: Transformer, expected: dict, shape: dict) -> None:
    moved = {key: p.detach() - before[key] for key, p in model.named_parameters()}
    expected = {key: value for key, value in expected.items() if key != "score.weight"}
    assert split_norms(moved, shape) == pytest.approx(expected, rel=2e-3)


def test_dpo_as_trl_trains_it():
    shape, model, seen = inputs.SHAPES["grouped"], model_of("grouped"), []
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    algorithm = DPO(model, None, None, reference=model_of("grouped", "reference"), beta=inputs.BETA)

    def loss() -> torch.Tensor:
        terms = algorithm.forward_losses(pairs())
        seen.append({name: value.mean().item() for name, value in terms.items()})
        return terms["loss"].mean()

    assert descend(model, loss) == pytest.approx(FIGURES["dpo"]["losses"], rel=1e-4)
    for mine, theirs in zip(seen, FIGURES["dpo"]["metrics"]):
        assert mine["accuracy"] == theirs["rewards/accuracies"]
        assert mine["margin"] == pytest.approx(theirs["rewards/margins"], rel=1e-4)
        assert mine["chosen_reward"] == pytest.approx(theirs["rewards/chosen"], rel=1e-4)
        assert mine["rejected_reward"] == pytest.approx(theirs["rewards/rejected"], rel=1e-4)
    check_moved(before, model, FIGURES["dpo"]["moved"], shape)


def test_log_probabilities_of_answers_as_trl_has_them():
    batch, model = pairs(), model_of("grouped")
    for side, name in ((batch[0:2], "logps/chosen"), (batch[3:5], "logps/rejected")):
        found = response_logps(model, *side).sum(-1).mean().item()
        assert found == pytest.approx(FIGURES["dpo"]["metrics"][0][name], rel=1e-5)


def test_reward_model_as_trl_trains_it():
    shape, trunk, seen = inputs.SHAPES["grouped"], model_of("grouped"), []
    before = {key: p.detach().clone() for key, p in trunk.named_parameters()}
    model = ScalarModel(trunk)
    model.head.weight.data = torch.from_numpy(inputs.score_weight(shape))
    algorithm = RewardModeling(model, None, None, center_weight=inputs.CENTER)
    algorithm.loss = lambda total, normalizer, **sums: seen.append(sums) or total / normalizer  # without a trainer
    losses = descend(model, lambda: algorithm.training_step(pairs(), 0))
    assert losses == pytest.approx(FIGURES["reward"]["losses"], rel=1e-4)
    for mine, theirs in zip(seen, FIGURES["reward"]["metrics"]):
        assert mine["accuracy"].item() / 4 == theirs["accuracy"]
        assert mine["margin"].item() / 4 == pytest.approx(theirs["margin"], abs=1e-4)
    check_moved(before, trunk, FIGURES["reward"]["moved"], shape)
    head = model.head.weight.detach() - torch.from_numpy(inputs.score_weight(shape))
    assert head.norm().item() == pytest.approx(FIGURES["reward"]["moved"]["score.weight"], rel=1e-3)


def test_sft_as_trl_trains_it_with_accumulation():
    """TRL takes two micro-batches a step and divides by the answer tokens of both; here it is one batch."""
    shape, model = inputs.SHAPES["grouped"], model_of("grouped")
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    prompts, answers = map(list, zip(*inputs.CONVERSATIONS))
    tokens, labels, _ = whole(prompts, answers, max(len(p) + len(a) for p, a in inputs.CONVERSATIONS))
    count = sum(map(len, answers))
    losses = descend(model, lambda: -response_logps(model, tokens, labels).sum() / count)
    theirs = np.array(FIGURES["sft"]["losses"]).reshape(inputs.STEPS, -1).sum(1)
    assert losses == pytest.approx(theirs.tolist(), rel=1e-4)
    check_moved(before, model, FIGURES["sft"]["moved"], shape)


# --- PPO --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def numbers() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in inputs.ppo_numbers().items()}


def rewards_of(numbers: dict[str, torch.Tensor]) -> torch.Tensor:
    kl = numbers["old_logps"] - numbers["ref_logps"]
    return token_rewards(kl, numbers["scores"], numbers["mask"], coefficient=inputs.PPO["kl_coefficient"])


def bessel(mask: torch.Tensor) -> float:
    """TRL whitens by the sample variance, athanor by the population's."""
    return math.sqrt(1 - 1 / mask.sum().item())


def test_ppo_rewards_advantages_and_returns(numbers):
    mask, settings = numbers["mask"], inputs.PPO
    rewards = rewards_of(numbers)
    torch.testing.assert_close(rewards, figure("ppo", "rewards"), **CLOSE)
    advantages, returns = gae(rewards, numbers["values"], mask, gamma=settings["gamma"], lam=settings["lam"])
    torch.testing.assert_close(returns, figure("ppo", "returns"), **CLOSE)
    torch.testing.assert_close(masked_whiten(advantages, mask) * bessel(mask), figure("ppo", "advantages"), **CLOSE)


def test_ppo_whitened_rewards(numbers):
    """Only the responses that reach the last column: TRL's whitened rewards are not zero in the padding after one."""
    mask, settings = numbers["mask"], inputs.PPO
    rewards = rewards_of(numbers)
    mean = masked_mean(rewards, mask) * mask
    whitened = (masked_whiten(rewards, mask, shift_mean=False) - mean) * bessel(mask) + mean
    _, returns = gae(whitened, numbers["values"], mask, gamma=settings["gamma"], lam=settings["lam"])
    torch.testing.assert_close(returns[:2], figure("ppo", "returns_of_whitened")[:2], **CLOSE)
    assert mask[:2, -1].all()


def test_ppo_losses_and_gradients(numbers):
    mask, settings = numbers["mask"], inputs.PPO
    advantages, returns = figure("ppo", "advantages"), figure("ppo", "returns")
    logps, values = numbers["logps"].clone().requires_grad_(), numbers["new_values"].clone().requires_grad_()
    policy = masked_mean(clipped_policy_loss(logps, numbers["old_logps"], advantages, clip=settings["clip"]), mask)
    value = masked_mean(clipped_value_loss(values, numbers["values"], returns, clip=settings["value_clip"]), mask)
    assert policy.item() == pytest.approx(FIGURES["ppo"]["policy_loss"], rel=1e-5)
    assert value.item() == pytest.approx(FIGURES["ppo"]["value_loss"], rel=1e-5)
    slopes = torch.autograd.grad(policy + settings["value_weight"] * value, (logps, values))
    torch.testing.assert_close(slopes[0], figure("ppo", "slope_of_logps"), **CLOSE)
    torch.testing.assert_close(slopes[1], figure("ppo", "slope_of_values"), **CLOSE)


def test_kl_controller():
    control = inputs.KL_CONTROL
    coefficient, gain = torch.tensor(control["coefficient"]), control["steps"] / control["horizon"]
    for kl, expected in zip(control["kl"], FIGURES["ppo"]["kl_coefficients"]):
        coefficient = adapted_kl_coefficient(coefficient, torch.tensor(kl), target=control["target"], horizon=gain)
        assert coefficient.item() == pytest.approx(expected, rel=1e-6)
