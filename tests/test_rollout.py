"""Generation against a plain loop: one row, no padding, no cache, the whole sequence computed anew for every token."""

import numpy as np
import pytest
import torch
from torch import nn

from athanor.errors import UserError
from athanor.models.transformer import Transformer
from athanor.rollout import generate, pad_left, sample, uniforms

VOCABULARY, PAD, STOP = 23, 0, 2
PROMPTS = [[1, 5, 9], [1], [1, 4, 4, 8, 20, 11, 3], [1, 22], [1, 7, 7, 7, 7], [1, 5, 9], [1, 16, 3], [1, 12, 13, 14]]


@pytest.fixture(scope="module")
def model() -> Transformer:
    """Random weights, sharp enough that greedy answers have no ties, and fond enough of STOP to reach it at times."""
    torch.manual_seed(37)
    model = Transformer(VOCABULARY, width=32, layers=2, heads=4, kv_heads=2, context=64, tie_embeddings=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(7 if parameter.ndim > 1 else 1)
        model.output.weight[STOP] *= 1.3
    return model.eval()


@torch.no_grad()
def naive(model, prompt, count, temperature=0.0, points=None) -> tuple[list[int], bool]:
    """(response, the stop token included; whether it stopped)."""
    tokens = list(prompt)
    for n in range(count):
        logits = model(torch.tensor([tokens]))[0, -1].double().numpy()
        if temperature:
            weights = np.exp((logits - logits.max()) / temperature)
            token, reached = 0, weights[0]
            while reached <= points[n] * weights.sum():
                token += 1
                reached += weights[token]
        else:
            token = int(logits.argmax())
        tokens.append(token)
        if token == STOP:
            return tokens[len(prompt) :], True
    return tokens[len(prompt) :], False


def run(model, prompts, count=30, **arguments):
    tokens_BP, lengths_B = pad_left(prompts, PAD)
    return sample(model, tokens_BP, lengths_B, max_new_tokens=count, stop_id=STOP, pad_id=PAD, **arguments)


def rows(responses) -> list[tuple[list[int], bool]]:
    lengths, stopped = responses.lengths_B.tolist(), responses.stopped_B.tolist()
    found = []
    for row, (length, ended) in enumerate(zip(lengths, stopped)):
        tokens = responses.tokens_BN[row].tolist()
        assert set(tokens[length:]) <= {PAD}
        found.append((tokens[:length], ended))
    return found


def test_pad_left():
    tokens_BP, lengths_B = pad_left([[5, 6, 7], [8]], PAD)
    assert tokens_BP.tolist() == [[5, 6, 7], [PAD, PAD, 8]]
    assert lengths_B.tolist() == [3, 1]


def test_greedy_answers_are_those_of_the_plain_loop(model):
    found = rows(run(model, PROMPTS))
    assert found == [naive(model, prompt, 30) for prompt in PROMPTS]
    lengths = sorted(len(answer) for answer, _ in found)
    assert lengths[0] < lengths[3] < lengths[5] < lengths[-1] == 30, "rows end at different times and are dropped"


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_sampled_answers_are_those_of_the_plain_loop(model, temperature):
    points = uniforms([(1, row) for row in range(len(PROMPTS))], 30)
    found = rows(run(model, PROMPTS, temperature=temperature, uniforms_BN=points))
    expected = [naive(model, prompt, 30, temperature, points[row].tolist()) for row, prompt in enumerate(PROMPTS)]
    assert found == expected
    assert len({len(answer) for answer, _ in found}) >= 4, "rows end at different times"


def test_a_row_does_not_depend_on_its_neighbours(model):
    points = uniforms([(7, row) for row in range(len(PROMPTS))], 20)
    together = rows(run(model, PROMPTS, 20, temperature=1.0, uniforms_BN=points))
    backwards = rows(run(model, PROMPTS[::-1], 20, temperature=1.0, uniforms_BN=points.flip(0)))
    assert backwards == together[::-1]
    for row, prompt in enumerate(PROMPTS):
        assert rows(run(model, [prompt], 20, temperature=1.0, uniforms_BN=points[row : row + 1])) == [together[row]]
    assert together[0] != together[5], "equal prompts with other numbers"


def test_wider_padding_changes_nothing(model):
    tokens_BP, lengths_B = pad_left(PROMPTS, PAD)
    wide = torch.cat((torch.full((len(PROMPTS), 9), 6), tokens_BP), dim=1)
    wide[:, 9:] = torch.where(tokens_BP == PAD, 17, tokens_BP)  # whatever stands in the padding
    found = sample(model, wide, lengths_B, max_new_tokens=30, stop_id=STOP, pad_id=PAD)
    assert rows(found) == rows(run(model, PROMPTS))


def test_samples_follow_the_distribution(model):
    """At the midpoints of 4000 equal parts of [0, 1) every token comes up in exact proportion, within one."""
    count, temperature = 4000, 1.3
    points = ((torch.arange(count, dtype=torch.float64) + 0.5) / count)[:, None]
    tokens = run(model, [[1, 5, 9]] * count, 1, temperature=temperature, uniforms_BN=points).tokens_BN[:, 0]
    expected = (model(torch.tensor([[1, 5, 9]]))[0, -1].double() / temperature).softmax(-1)
    assert (torch.bincount(tokens, minlength=VOCABULARY) - count * expected).abs().max() <= 1
    assert expected.max() < 0.9


class Fixed(nn.Module):
    """A model whose next token has the same probabilities always."""

    context = 8

    def __init__(self, probabilities):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(probabilities).log())
        self.heard: list[torch.Size] = []

    def new_cache(self, rows, capacity):
        return self

    def keep_rows(self, rows):
        pass

    def hidden_states(self, tokens, **_):
        self.heard.append(tokens.shape)
        return tokens[..., None].float()

    def logits(self, hidden):
        return self.weight.expand(len(hidden), -1)


@pytest.mark.parametrize(("point", "token"), [(0.0, 1), (0.2499, 1), (0.25, 3), (0.9999999999999999, 3)])
def test_impossible_tokens_are_never_drawn(point, token):
    model = Fixed([0.0, 0.25, 0.0, 0.75, 0.0])
    found = run(model, [[1]], 1, temperature=1.0, uniforms_BN=torch.tensor([[point]], dtype=torch.float64))
    assert found.tokens_BN.tolist() == [[token]]


def test_stopping_at_once_costs_one_step():
    model = Fixed([0.0, 0.0, 1.0])
    found = run(model, [[1], [1, 1]], 5)
    assert found.tokens_BN.tolist() == [[STOP, 0, 0, 0, 0]] * 2
    assert found.lengths_B.tolist() == [1, 1]
    assert found.stopped_B.all()
    assert model.heard == [(2, 2)]


def test_a_response_that_is_cut_off_has_not_stopped():
    found = run(Fixed([0.0, 1.0, 0.0]), [[1]], 3)
    assert found.tokens_BN.tolist() == [[1, 1, 1]]
    assert (found.lengths_B.item(), found.stopped_B.item()) == (3, False)


def test_prompt_and_answer_must_fit_the_context(model):
    run(model, [[1] * 34, [1]], 30)
    with pytest.raises(UserError, match="35 tokens plus 30 new ones exceeds the model's context of 64"):
        run(model, [[1] * 35, [1]], 30)


def test_sampling_asks_for_its_numbers(model):
    with pytest.raises(ValueError, match="uniforms_BN"):
        run(model, PROMPTS, temperature=1.0)


def test_uniforms_are_a_function_of_the_seed_of_the_row():
    table = uniforms([(1, 2), (1, 3), (2, 2)], 500)
    assert table.dtype == torch.float64
    assert ((table >= 0) & (table < 1)).all()
    assert torch.equal(uniforms([(2, 2), (1, 2)], 300), table[[2, 0], :300])
    assert len(table.unique()) == table.numel()
    assert (table.mean(1) - 0.5).abs().max() < 4 / np.sqrt(12 * 500)


def test_generation_is_in_eval_mode_without_gradient_and_gives_the_mode_back(model):
    noisy = Transformer(**{**model.arguments, "dropout": 0.5})
    noisy.load_state_dict(model.state_dict())
    assert rows(run(noisy.train(), PROMPTS)) == rows(run(model, PROMPTS))
    assert noisy.training
    run(noisy.eval(), PROMPTS, 2)
    assert not noisy.training
    assert all(p.grad is None for p in noisy.parameters())


def test_generate_keeps_the_order_and_leaves_the_stop_token_out(model):
    expected = [answer[:-1] if stopped else answer for answer, stopped in (naive(model, p, 12) for p in PROMPTS)]
    for batch_size in (1, 3, 100):
        arguments = {"max_new_tokens": 12, "stop_id": STOP, "pad_id": PAD, "batch_size": batch_size}
        assert generate(model, PROMPTS, **arguments) == expected


def test_generated_samples_do_not_depend_on_the_batch(model):
    arguments = {"max_new_tokens": 12, "stop_id": STOP, "pad_id": PAD, "temperature": 1.0}
    whole = generate(model, PROMPTS, **arguments, seed=5)
    assert generate(model, PROMPTS, **arguments, seed=5, batch_size=3) == whole
    assert generate(model, PROMPTS[:4], **arguments, seed=5, batch_size=2) == whole[:4]
    assert generate(model, PROMPTS, **arguments, seed=6) != whole
    assert generate(model, [], **arguments) == []


def test_generation_under_autocast(model):
    """As in PPO with bf16-mixed precision; low precision may choose other words, but must run and end the same way."""
    with torch.autocast("cpu", torch.bfloat16):
        found = rows(run(model, PROMPTS))
    exact = rows(run(model, PROMPTS))
    agree = sum(a[0][0] == b[0][0] for a, b in zip(found, exact))
    assert agree >= len(PROMPTS) - 1
