"""Each task against the same numbers computed plainly, one sequence at a time."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from athanor.batches import IGNORED
from athanor.corpus.shards import Shards
from athanor.corpus.tokenizer import TrainTokenizer
from athanor.data.chat import render
from athanor.errors import UserError
from athanor.evaluation import subject as subjects
from athanor.evaluation.evaluate import Evaluation, device_of
from athanor.evaluation.exact_match import ExactMatch, spread
from athanor.evaluation.measurement import Measurement, slices
from athanor.evaluation.perplexity import Perplexity, windows
from athanor.evaluation.preference import Preference, answer_logps
from athanor.evaluation.reward import Reward
from athanor.evaluation.subject import Subject
from athanor.models.heads import ScalarModel
from athanor.models.transformer import Transformer

PAIRS = [
    {"id": "a", "prompt": "2 + 3 = ?", "chosen": "5", "rejected": "6", "language": "en"},
    {"id": "b", "prompt": "Repeat: ember", "chosen": "ember", "rejected": "e", "language": "en"},
    {"id": "c", "prompt": "请重复：炉火", "chosen": "火", "rejected": "炉火炉火", "language": "zh"},
]


def logps(model, ids) -> torch.Tensor:
    """log p of each token after the first, with nothing but the definition."""
    ids = torch.as_tensor(ids).long()
    with torch.no_grad():
        return model(ids[None, :-1])[0].float().log_softmax(-1)[range(len(ids) - 1), ids[1:]].double()


def by_name(outcome) -> dict[str, Measurement]:
    return {m.name: m for m in outcome.measurements}


# --- perplexity -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "context", "overlap"), [(2, 8, 0), (9, 8, 0), (10, 8, 0), (40, 8, 3), (41, 8, 4), (1, 8, 0)]
)
def test_windows_predict_every_token_once(length, context, overlap):
    predicted = []
    for start, end, known in windows(length, context, overlap):
        assert 0 <= start < end <= length
        assert end - start <= context + 1  # the model reads all but the last
        predicted += range(start + known, end)
        assert start == 0 or known == overlap + 1
    assert predicted == list(range(1, length))


def test_perplexity_is_the_plain_sum(world, policy, monkeypatch):
    monkeypatch.setattr(subjects, "LOGITS", 400 * 100)  # several batches
    found = by_name(Perplexity(world.shards)(policy))
    shards = Shards(world.shards, "validation")
    documents = [shards.tokens[a:b].astype("int64") for a, b in zip(shards.offsets, shards.offsets[1:])]
    short = [i for i, d in enumerate(documents) if len(d) <= policy.context]
    assert 5 < len(short) < len(documents), "some fit the context, some do not"
    loss, bits = found["loss_per_token"], found["bits_per_byte"]
    for i in short:
        expected = -float(logps(policy.model, documents[i]).sum())
        assert loss.values[i] == pytest.approx(expected, rel=1e-5)
        assert loss.weights[i] == len(documents[i]) - 1
        assert bits.values[i] == pytest.approx(expected / math.log(2), rel=1e-5)
        assert bits.weights[i] == shards.info["bytes"][i]
    long = next(d for d in documents if len(d) > policy.context + 1)
    i = next(i for i, d in enumerate(documents) if d is long)
    first, rest = long[: policy.context + 1], long[policy.context :]
    expected = -float(logps(policy.model, first).sum() + logps(policy.model, rest).sum())
    assert loss.values[i] == pytest.approx(expected, rel=1e-5)
    assert loss.weights[i] == len(long) - 1
    overall = next(r for r in loss.records() if not r["slice"])
    assert overall["value"] == pytest.approx(sum(loss.values) / sum(loss.weights))
    assert {r["slice"]["language"] for r in loss.records() if r["slice"]} == {"en", "zh"}


def test_overlap_gives_context_and_predicts_the_same_tokens(world, policy):
    plain, wide = (by_name(Perplexity(world.shards, overlap=o)(policy))["loss_per_token"] for o in (0, 20))
    assert plain.weights == wide.weights
    shards = Shards(world.shards, "validation")
    i, long = next(
        (i, shards.tokens[a:b].astype("int64"))
        for i, (a, b) in enumerate(zip(shards.offsets, shards.offsets[1:]))
        if policy.context + 1 < b - a < 2 * policy.context - 20
    )
    tail = long[policy.context - 20 :]
    expected = -float(logps(policy.model, long[: policy.context + 1]).sum() + logps(policy.model, tail)[20:].sum())
    assert wide.values[i] == pytest.approx(expected, rel=1e-5)


def test_a_uniform_model_has_log_v_nats(world):
    model = Transformer(world.text.vocabulary_size, width=32, layers=1, heads=2, context=48)
    torch.nn.init.zeros_(model.embedding.weight)
    uniform = Subject(world.runs.model("uniform", model, world.tokenizer))
    loss, bits = Perplexity(world.shards, documents=4)(uniform).measurements
    assert len(loss.values) == 8  # four of each language
    assert loss.records()[0]["value"] == pytest.approx(math.log(400), rel=1e-6)
    assert bits.records()[0]["value"] == pytest.approx(math.log2(400) * sum(loss.weights) / sum(bits.weights), rel=1e-6)


def test_perplexity_refuses_other_tokenizers(world, refused):
    runs = world.runs
    source = str(next((runs.root / "documents").iterdir()))
    TrainTokenizer(source, vocabulary_size=400, split_digits=False).run(runs.context("another"))
    another = runs.finish("another", "prepare")
    model = Transformer(400, width=32, layers=1, heads=2, context=48)
    stranger = Subject(runs.model("stranger", model, another))
    assert "another tokenizer" in refused(Perplexity(world.shards), stranger)
    assert "reward model" in refused(Perplexity(world.shards), Subject(world.judge))
    assert "overlap" in refused(Perplexity(world.shards, overlap=40), Subject(world.policy))
    assert "different tokenizers" in refused(stranger.require_tokenizer_of, world.judge, "the reward model")


# --- exact match ------------------------------------------------------------------------------------------------------


def test_exact_match_of_a_model_that_was_taught(scholar, questions):
    outcome = ExactMatch(questions, max_new_tokens=8, samples=1)(Subject(scholar))
    (found,) = outcome.measurements
    assert found.values[:4] == [1, 0, 1, 1]  # the second was taught wrongly
    records = {tuple(sorted(r["slice"].items())): r for r in found.records()}
    assert records[()]["value"] == pytest.approx(sum(found.values) / 6)
    assert records[("family", "copying"),]["value"] == 1
    assert records[("family", "addition"), ("language", "en")]["value"] == 0.5
    assert records[("level", 2),]["n"] == 2
    assert records[()]["low"] < records[()]["value"] < records[()]["high"]
    sample = next(s for s in outcome.samples if s["id"] == "q3")
    assert (sample["prompt"], sample["response"], sample["answer"]) == ("请重复：炉火", "炉火", "炉火")
    assert sample["correct"] is True
    assert [s["id"] for s in outcome.samples] == ["q0", "q2", "q3", "q4"]  # one of each language and family


def test_white_space_is_stripped_and_a_cut_off_answer_is_wrong(world, policy, questions, monkeypatch):
    replies = [" 5 ", "8", "embers", "炉火", "7", "2"]
    given = [world.text.encode(reply) for reply in replies]
    monkeypatch.setattr(Subject, "answers", lambda *a, **k: given)
    (found,) = ExactMatch(questions, max_new_tokens=20)(policy).measurements
    assert found.values == [1, 1, 0, 1, 1, 1]
    longest = max((i for i in range(6) if found.values[i]), key=lambda i: len(given[i]))
    (cut,) = ExactMatch(questions, max_new_tokens=len(given[longest]))(policy).measurements
    assert cut.values[longest] == 0
    assert sum(cut.values) > 0


def test_answers_are_in_order_and_made_once(policy, monkeypatch):
    prompts = [[1, 50 + i, *range(60, 60 + i % 7)] for i in range(20)]
    parts = policy.answers(prompts, max_new_tokens=6, batch_size=7)
    fresh = Subject.answers
    one_by_one = [fresh(policy, [p], max_new_tokens=6)[0] for p in prompts]
    assert parts == one_by_one
    monkeypatch.setattr(subjects, "generate", lambda *a, **k: pytest.fail("generated twice"))
    assert policy.answers(prompts, max_new_tokens=6, batch_size=7) == parts


# --- preferences ------------------------------------------------------------------------------------------------------


def test_preferences_of_a_policy_and_of_a_judge(world, policy, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(p, ensure_ascii=False) + "\n" for p in PAIRS), "utf-8")
    judge = Subject(world.judge)
    implicit, explicit, summed, rows, labels = [], [], [], [], []
    for pair in PAIRS:
        scores, rewards = [], []
        for side in ("chosen", "rejected"):
            turns = [{"role": "user", "content": pair["prompt"]}, {"role": "assistant", "content": pair[side]}]
            ids, taught = render([turns], world.text)[0]
            scores.append(float(logps(policy.model, ids)[torch.from_numpy(taught[1:])].sum()))
            with torch.no_grad():
                rewards.append(float(judge.model(torch.from_numpy(ids).long()[None])[0, -1]))
            rows.append(ids.tolist())
            labels.append(np.where(np.append(taught[1:], False), np.append(ids[1:], 0), IGNORED))
        summed += scores
        implicit.append(float(scores[0] > scores[1]))
        explicit.append(float(rewards[0] > rewards[1]))
    assert answer_logps(policy, rows, labels) == pytest.approx(summed, rel=1e-5)
    of_policy = by_name(Preference([str(path)])(policy))
    of_judge = by_name(Preference([str(path)])(judge))
    assert of_policy["implicit_preference_accuracy"].values == implicit
    assert of_judge["preference_accuracy"].values == explicit
    assert of_judge["length_baseline_accuracy"].values == [0.5, 1.0, 0.0]  # equal, chosen longer, chosen shorter
    assert 0 < sum(implicit) + sum(explicit) < 6, "both outcomes occur, or this test shows nothing"


def test_a_judge_without_opinion_ties(world, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(PAIRS[1]) + "\n", "utf-8")
    model = ScalarModel(Transformer(400, width=32, layers=1, heads=2, context=48))  # the head starts at zero
    indifferent = Subject(world.runs.model("indifferent", model, world.tokenizer))
    assert by_name(Preference([str(path)])(indifferent))["preference_accuracy"].values == [0.5]


# --- reward and KL ----------------------------------------------------------------------------------------------------


def test_reward_and_divergence(world, scholar, questions, monkeypatch):
    policy = Subject(scholar)
    monkeypatch.setattr(subjects, "LOGITS", 3 * 400 * 30)  # several batches
    found = by_name(Reward(questions, world.judge, world.other, max_new_tokens=3)(policy))
    records = [json.loads(line) for line in Path(questions[0]).read_text("utf-8").splitlines()]
    prompts = [
        [
            *render([[{"role": "user", "content": r["prompt"]}]], world.text)[0][0].tolist(),
            world.text.special["<|assistant|>"],
        ]
        for r in records
    ]
    answers = policy.answers(prompts, max_new_tokens=3)
    assert {len(answer) < 3 for answer in answers} == {True, False}, "some end, some are cut off"
    judge, other = Subject(world.judge).model, Subject(world.other).model
    for i, (prompt, answer) in enumerate(zip(prompts, answers)):
        ended = len(answer) < 3
        ids = torch.tensor([*prompt, *answer, *([world.text.special["<|end|>"]] if ended else [])])
        with torch.no_grad():
            assert found["reward"].values[i] == pytest.approx(float(judge(ids[None])[0, -1]), rel=1e-4, abs=1e-5)
            p, q = (m(ids[None])[0, len(prompt) - 1 : -1].double().log_softmax(-1) for m in (policy.model, other))
        expected = float((p.exp() * (p - q)).sum())
        assert found["kl_to_reference"].values[i] == pytest.approx(expected, rel=1e-4)
        assert found["kl_to_reference"].weights[i] == len(ids) - len(prompt)
    a_response = next(r for r in found["kl_of_response"].records() if not r["slice"])
    assert a_response["value"] == pytest.approx(sum(found["kl_to_reference"].values) / 6)


def test_a_policy_is_no_distance_from_itself(world, policy, questions):
    found = by_name(Reward(questions, world.judge, world.policy, max_new_tokens=7, temperature=1.0, seed=3)(policy))
    assert max(map(abs, found["kl_to_reference"].values)) < 1e-5
    assert "kl_to_reference" not in by_name(Reward(questions, world.judge, max_new_tokens=7)(policy))


def test_reward_needs_a_reward_model(world, policy, questions, refused):
    assert "no reward model" in refused(Reward(questions, world.other, max_new_tokens=7), policy)


# --- the job ----------------------------------------------------------------------------------------------------------


def test_the_job_writes_results(world, scholar, questions):
    run = world.runs.context("evaluate", cluster={"accelerator": "cpu", "threads": None})
    tasks = {
        "perplexity": Perplexity(world.shards, documents=5),
        "exact_match": ExactMatch(questions, max_new_tokens=8),
        "reward": Reward(questions, world.judge, scholar, max_new_tokens=8),
    }
    metrics = Evaluation(scholar, tasks).run(run)
    text = (run.directory / "results.json").read_text("utf-8")
    results = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert results["model"] == {
        "name": "scholar",
        "fingerprint": Path(scholar).name,
    }
    names = ["loss_per_token", "bits_per_byte", "exact_match", "reward", "kl_to_reference", "kl_of_response"]
    assert list(results["per_item"]) == names
    assert {m["name"] for m in results["metrics"]} == set(names)
    overall = {m["name"]: m for m in results["metrics"] if not m["slice"]}
    assert list(metrics)[:2] == ["exact_match", "bits_per_byte"]
    assert metrics["exact_match"] == overall["exact_match"]["value"]
    assert metrics["exact_match/zh"] == next(
        m["value"] for m in results["metrics"] if m["name"] == "exact_match" and m["slice"] == {"language": "zh"}
    )
    item = results["per_item"]["exact_match"]
    assert item["ids"] == [f"q{i}" for i in range(6)]
    assert item["slices"]["language"] == ["en"] * 3 + ["zh"] * 3
    assert len(results["per_item"]["bits_per_byte"]["weights"]) == 10
    assert "炉火" in text  # Chinese as itself, not as escapes


def test_the_job_refuses(world, questions, tmp_path, refused):
    assert "job.tasks is empty" in refused(Evaluation, world.policy, {})
    twice = {"a": ExactMatch(questions, max_new_tokens=2), "b": ExactMatch(questions, max_new_tokens=3)}
    run = world.runs.context("twice", cluster={"accelerator": "cpu"})
    assert "two tasks measure exact_match" in refused(Evaluation(world.policy, twice).run, run)
    assert not (run.directory / "results.json").exists()
    unanswered = tmp_path / "unanswered.jsonl"
    unanswered.write_text('{"prompt": "2 + 2 = ?"}\n')
    assert "no `answer`" in refused(ExactMatch([str(unanswered)]), Subject(world.policy))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert "no records" in refused(ExactMatch([str(empty)]), Subject(world.policy))
    assert "lower max_new_tokens" in refused(ExactMatch(questions, max_new_tokens=47), Subject(world.policy))
    if not torch.cuda.is_available():
        assert "no GPU" in refused(device_of, "gpu")
    assert device_of("cpu") == "cpu"


def test_slices_and_measurements():
    items = [{"id": "a", "language": "en", "level": 2}, {"id": "b", "language": "zh", "level": 1}]
    assert slices(items) == [
        {}, {"language": "en"}, {"language": "zh"}, {"level": 1}, {"level": 2},
        {"language": "en", "level": 2}, {"language": "zh", "level": 1},
    ]  # fmt: skip
    assert slices([{"id": "a"}, {"id": "b", "language": "en"}]) == [{}]  # a key that not all items have is no slice
    records = Measurement("m", items, [1.0, 0.25], "reward", "higher").records()
    assert records[1]["value"] == 1.0
    assert (records[1]["low"], records[1]["high"]) == (None, None)  # one item has no interval
    weighted = Measurement("m", items, [4.0, 1.0], "nats/token", "lower", [2.0, 3.0])
    assert weighted.records()[0]["value"] == 1.0
    with pytest.raises(AssertionError):
        Measurement("m", items, [1.0], "reward", "higher")
    with pytest.raises(UserError, match="at least 1"):
        spread([1], 0)
