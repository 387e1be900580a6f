"""What an encoder fills in, against the same numbers computed one document at a time."""

import math

import numpy as np
import pytest
import torch

from athanor.batches import IGNORED
from athanor.corpus.shards import Shards
from athanor.data.chat import render_prompts
from athanor.data.corruption import Marks, hide, single_tokens
from athanor.errors import UserError
from athanor.evaluation import subject as subjects
from athanor.evaluation.exact_match import ExactMatch
from athanor.evaluation.masked import Masked
from athanor.evaluation.perplexity import Perplexity
from athanor.evaluation.preference import Preference
from athanor.evaluation.subject import Subject
from athanor.models.encoder import Encoder
from athanor.models.encoder_decoder import EncoderDecoder
from athanor.rollout import generate


def loud(model: torch.nn.Module) -> torch.nn.Module:
    """Far from uniform, so that a wrong token or position shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return model.eval()


@pytest.fixture(scope="module")
def encoder(world) -> Subject:
    torch.manual_seed(0)
    model = Encoder(world.text.vocabulary_size, width=32, layers=2, heads=2, context=48)
    return Subject(world.runs.model("encoder", loud(model), world.tokenizer))


@pytest.fixture(scope="module")
def answerer(world) -> Subject:
    torch.manual_seed(0)
    model = EncoderDecoder(world.text.vocabulary_size, width=32, layers=2, heads=2, context=48)
    return Subject(world.runs.model("answerer", loud(model), world.tokenizer))


@torch.no_grad()
def test_masked_tokens_and_pseudo_perplexity_are_the_plain_sums(world, encoder, monkeypatch):
    monkeypatch.setattr(subjects, "LOGITS", 400 * 100)  # several batches
    found = {m.name: m for m in Masked(world.shards, documents=5, pseudo=2)(encoder).measurements}
    shards, marks = Shards(world.shards, "validation"), Marks.of(world.text)
    nats, right, pseudo = found["masked_loss"], found["masked_accuracy"], found["pseudo_loss_per_token"]
    assert len(nats.values) == 10
    assert len(pseudo.values) == 4
    assert [item["language"] for item in pseudo.items].count("zh") == 2
    lengths = set()
    for i, item in enumerate(nats.items):
        document = int(item["id"].removeprefix("validation/"))
        tokens = shards.tokens[shards.offsets[document] : shards.offsets[document + 1]][:48].astype(np.int64)
        lengths.add(len(tokens))
        text, rng = np.flatnonzero(marks.text[tokens]), np.random.default_rng(document)
        assert len(text) >= len(tokens) - 2
        shown, labels = hide(tokens, single_tokens(text, 0.15, rng), marks, rng, 0.8, 0.1)
        logps = encoder.model(torch.from_numpy(shown)[None])[0].log_softmax(-1)
        chosen = np.flatnonzero(labels != IGNORED)
        assert nats.weights[i] == len(chosen) == max(1, int(0.15 * len(text) + 0.5))
        assert nats.values[i] == pytest.approx(-sum(logps[t, labels[t]].item() for t in chosen), rel=1e-4)
        assert right.values[i] == sum(int(logps[t].argmax()) == labels[t] for t in chosen)
        if item in pseudo.items:
            total = 0.0
            for t in text:
                alone = torch.from_numpy(tokens.copy())
                alone[t] = world.text.unk_id
                total -= encoder.model(alone[None])[0, t].log_softmax(-1)[tokens[t]].item()
            place = pseudo.items.index(item)
            assert pseudo.values[place] == pytest.approx(total, rel=1e-4)
            assert pseudo.weights[place] == len(text)
    assert max(lengths) == 48, "some documents are longer than the context"
    assert min(lengths) < 48


def test_a_uniform_encoder_has_log_v_nats(world):
    model = Encoder(world.text.vocabulary_size, width=32, layers=1, heads=2, context=48)
    torch.nn.init.zeros_(model.embedding.weight)
    uniform = Subject(world.runs.model("uniform-encoder", model, world.tokenizer))
    for measurement in Masked(world.shards, documents=3, pseudo=1)(uniform).measurements:
        if measurement.unit == "nats/token":
            assert measurement.records()[0]["value"] == pytest.approx(math.log(400), rel=1e-6)


def test_an_encoder_decoder_is_asked_its_prompts(world, answerer, questions):
    outcome = ExactMatch(questions, max_new_tokens=6, samples=9)(answerer)
    asked = render_prompts([[{"role": "user", "content": sample["prompt"]}] for sample in outcome.samples], world.text)
    stop = world.text.special["<|end|>"]
    said = generate(answerer.model, asked, max_new_tokens=6, stop_id=stop, pad_id=world.text.pad_id)
    assert [sample["response"] for sample in outcome.samples] == [world.text.decode(answer) for answer in said]
    assert any(sample["response"] for sample in outcome.samples)


def test_tasks_refuse_what_a_form_cannot_do(world, encoder, answerer, policy, questions, tmp_path):
    for task, subject, match in (
        (Perplexity(world.shards), encoder, "encoder is an encoder, which fills in tokens .* cannot do perplexity"),
        (
            ExactMatch(questions),
            encoder,
            "do exact match; .* a run that is a decoder or an encoder-decoder",
        ),
        (Perplexity(world.shards), answerer, "answerer is an encoder-decoder, .* cannot do perplexity"),
        (Masked(world.shards), policy, "policy is a decoder, .* cannot do the filling in of masked tokens"),
        (Masked(world.shards), answerer, "name a run that is an encoder$"),
    ):
        with pytest.raises(UserError, match=match):
            task(subject)
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "2 + 3 = ?", "chosen": "5", "rejected": "6"}\n')
    for subject in (encoder, answerer):
        with pytest.raises(UserError, match="cannot do a ranking by the likelihoods"):
            Preference([str(path)])(subject)


def test_bad_settings_are_refused(world):
    with pytest.raises(UserError, match="documents=1 of masked must be at least 2"):
        Masked(world.shards, documents=1)
    with pytest.raises(UserError, match=r"rate=1\.5 must lie between 0 and 1"):
        Masked(world.shards, rate=1.5)
