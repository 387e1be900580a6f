"""Each algorithm learns a task with a known answer, through the real trainer on the CPU, to a level that is stated."""

import copy
import json
import math
from functools import partial

import numpy as np
import pytest
from torch import nn

from athanor.algorithms.dpo import DPO
from athanor.algorithms.ppo import PPO
from athanor.algorithms.pretraining import Pretraining
from athanor.algorithms.reward import RewardModeling
from athanor.algorithms.sft import SFT
from athanor.corpus.tasks import CheckerReward
from athanor.data.chat import END, encode_texts, render_prompts
from athanor.data.instructions import InstructionData
from athanor.data.preferences import PreferenceData
from athanor.data.pretraining import PackedRows
from athanor.data.prompts import PromptData
from athanor.models.heads import ScalarModel
from athanor.rollout import generate, pad_left, sample, uniforms
from athanor.schedules import cosine
from small import Given, decoder, fit, optimizer, steady

LETTERS = "abcdefgh"
SHAPE = {"width": 48, "layers": 2, "heads": 4, "context": 32}
VOCABULARY = 420


def prompt(letter: str) -> str:
    return f"Copy: {letter}"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, list[str]]:
    """Records of copying one letter; the wrong answers are all others."""
    folder = tmp_path_factory.mktemp("copying")
    records = {
        "instructions": [{"prompt": prompt(x), "completion": x} for x in LETTERS],
        "pairs": [{"prompt": prompt(x), "chosen": x, "rejected": y} for x in LETTERS for y in LETTERS if x != y],
        "prompts": [{"prompt": prompt(x), "answer": x} for x in LETTERS],
    }
    paths = {}
    for name, rows in records.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        paths[name] = [str(path)]
    return paths


@pytest.fixture(scope="module")
def asked(tokenizer) -> list[list[int]]:
    return render_prompts([[{"role": "user", "content": prompt(x)}] for x in LETTERS], tokenizer)


def instructions(files, tokenizer_path) -> InstructionData:
    return InstructionData(files["instructions"], tokenizer_path, validation_files=files["instructions"])


def sft(files, tokenizer_path, steps: int, seed: int = 0):
    model = decoder(VOCABULARY, seed, **SHAPE)
    algorithm = SFT(model, optimizer(5e-3), steady())
    return model, fit(algorithm, instructions(files, tokenizer_path), steps=steps, batch=16)


@pytest.fixture(scope="module")
def beginner(files, tokenizer_path) -> nn.Module:
    """A model that answers with letters, and about every other time with the right one."""
    return sft(files, tokenizer_path, 50)[0]


def share_right(model, asked, tokenizer, draws: int = 64) -> float:
    """Of sampled answers."""
    tokens, lengths = pad_left(asked * draws, tokenizer.pad_id)
    found = sample(
        model, tokens, lengths, max_new_tokens=3, stop_id=tokenizer.special[END], pad_id=tokenizer.pad_id,
        temperature=1.0, uniforms_BN=uniforms([(99, i) for i in range(len(tokens))], 3),
    )  # fmt: skip
    letters = encode_texts(list(LETTERS), tokenizer)
    right = [
        row[:length] == [*letters[i % len(letters)], tokenizer.special[END]]
        for i, (row, length) in enumerate(zip(found.tokens_BN.tolist(), found.lengths_B.tolist()))
    ]
    return float(np.mean(right))


def test_pretraining_learns_a_cycle_to_its_entropy():
    """Documents go six words round a cycle of seven: ln 7 nats for the first word, nothing for the rest and the end."""
    rng = np.random.default_rng(0)
    rows = [[1, *((rng.integers(7) + np.arange(6)) % 7 + 3), 2] for _ in range(401)]

    class Corpus:
        offsets = np.arange(0, 8 * len(rows) + 1, 8)
        tokens = np.concatenate(rows).astype(np.uint16)

    algorithm = Pretraining(decoder(12, **SHAPE), optimizer(5e-3), partial(cosine, warmup_steps=5))
    metrics = fit(algorithm, Given(PackedRows(Corpus(), 32)), steps=120, batch=16)
    assert metrics.values("train/loss")[0] > 0.9 * math.log(12)
    assert metrics.values("validation/loss")[-1] == pytest.approx(math.log(7) / 7, rel=0.02)


def test_sft_learns_to_copy(files, tokenizer_path, tokenizer, asked):
    model, metrics = sft(files, tokenizer_path, 150)
    assert metrics.values("train/loss")[0] > 0.9 * math.log(VOCABULARY)
    assert metrics.values("validation/loss")[-1] < 0.02
    answers = generate(model, asked, max_new_tokens=4, stop_id=tokenizer.special[END], pad_id=tokenizer.pad_id)
    assert [tokenizer.decode(answer) for answer in answers] == list(LETTERS)


def test_reward_model_tells_right_from_wrong(files, tokenizer_path, beginner):
    algorithm = RewardModeling(ScalarModel(copy.deepcopy(beginner)), optimizer(3e-3), partial(cosine, warmup_steps=5))
    data = PreferenceData(files["pairs"], tokenizer_path, validation_files=files["pairs"])
    metrics = fit(algorithm, data, steps=120, batch=28)
    assert metrics.values("train/loss")[0] == pytest.approx(math.log(2), abs=1e-6), "a fresh head scores all alike"
    assert metrics.values("train/accuracy")[0] == 0.5
    assert metrics.values("validation/accuracy")[-1] == 1.0
    assert metrics.values("validation/margin")[-1] > 2


def test_dpo_prefers_the_right_answer(files, tokenizer_path, tokenizer, asked, beginner):
    before = share_right(beginner, asked, tokenizer)
    assert 0.2 < before < 0.6
    algorithm = DPO(copy.deepcopy(beginner), optimizer(3e-3), steady(), reference=copy.deepcopy(beginner), beta=0.2,
                    likelihood_weight=0.2)  # fmt: skip
    data = PreferenceData(files["pairs"], tokenizer_path, validation_files=files["pairs"])
    metrics = fit(algorithm, data, steps=75, batch=28, validate_every=25)
    assert metrics.values("train/preference_loss")[0] == pytest.approx(math.log(2), abs=1e-5)
    assert metrics.values("train/margin")[0] == pytest.approx(0, abs=1e-4)
    margins = metrics.values("validation/margin")
    assert margins == sorted(margins)
    assert margins[-1] > 1.5
    assert metrics.values("validation/accuracy")[-1] >= 0.95
    assert metrics.values("validation/chosen_reward")[-1] > 0 > metrics.values("validation/rejected_reward")[-1]
    assert share_right(algorithm.model, asked, tokenizer) > 0.9


def test_ppo_raises_the_reward_and_stays_near(files, tokenizer_path, tokenizer, asked, beginner):
    before = share_right(beginner, asked, tokenizer)
    algorithm = PPO(
        copy.deepcopy(beginner), optimizer(3e-3), steady(), reference=copy.deepcopy(beginner),
        reward=CheckerReward(files["prompts"], tokenizer_path), value=ScalarModel(copy.deepcopy(beginner)),
        tokenizer=tokenizer_path, max_new_tokens=3, kl_coefficient=0.05, kl_target=2.0, lam=1.0,
        unfinished_penalty=0.0,
    )  # fmt: skip
    data = PromptData(files["prompts"], tokenizer_path, 3, rollout_size=64, validation_files=files["prompts"])
    metrics = fit(algorithm, data, steps=120, batch=32)
    rewards = metrics.values("ppo/reward")
    assert rewards[0] == pytest.approx(before, abs=0.25), "4 standard errors of 64 answers"
    assert np.mean(rewards[-5:]) > max(0.85, before + 0.25)
    assert metrics.values("validation/reward")[-1] == 1.0
    assert 0.1 < np.mean(metrics.values("ppo/kl")[-5:]) < 1.5
    assert share_right(algorithm.model, asked, tokenizer) > 0.85
