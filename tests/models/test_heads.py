"""The scalar head: read at the last token, blind to padding, and all of it trained."""

import pytest
import torch
from torch import nn

from athanor.batches import IGNORED
from athanor.models.heads import ScalarModel, response_labels
from athanor.models.transformer import Transformer

SHAPE = {"vocabulary_size": 31, "width": 24, "layers": 2, "heads": 4, "kv_heads": 2, "context": 64}


def make(tie=True, likelihood=False):
    torch.manual_seed(0)
    model = ScalarModel(Transformer(**SHAPE, tie_embeddings=tie), likelihood).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def rows():
    lengths = torch.tensor([3, 7, 5])
    return torch.randint(1, 31, (3, 7), generator=torch.Generator().manual_seed(1)), lengths


def test_a_fresh_head_scores_everything_zero_but_learns():
    model, (tokens, lengths) = ScalarModel(Transformer(**SHAPE)), rows()
    scores = model.reward(tokens, lengths)
    assert scores.tolist() == [0.0, 0.0, 0.0]
    scores.sum().backward()
    assert model.head.weight.grad.norm() > 0


def test_reward_is_the_projection_of_the_last_state():
    model, (tokens, lengths) = make(), rows()
    found = model.reward(tokens, lengths)
    assert found.dtype == torch.float32
    for row, length in enumerate(lengths.tolist()):
        state = model.trunk.hidden_states(tokens[row : row + 1, :length])[0, -1]
        torch.testing.assert_close(found[row], state @ model.head.weight[0])


def test_reward_reads_no_padding():
    model, (tokens, lengths) = make(), rows()
    other = tokens.clone()
    for row, length in enumerate(lengths.tolist()):
        other[row, length:] = 7
    wider = torch.cat((other, torch.full((3, 4), 9)), dim=1)
    torch.testing.assert_close(model.reward(wider, lengths), model.reward(tokens, lengths))
    nearer = tokens.clone()
    nearer[:, 0] = 30 - nearer[:, 0]
    assert not torch.isclose(model.reward(nearer, lengths), model.reward(tokens, lengths)).any()


def test_values_are_causal():
    model, (tokens, _) = make(), rows()
    other = tokens.clone()
    other[:, 4:] = 30 - other[:, 4:]
    torch.testing.assert_close(model(other)[:, :4], model(tokens)[:, :4])
    assert not torch.isclose(model(other)[:, 4:], model(tokens)[:, 4:]).all(1).any()


def test_the_likelihood_of_the_answer_counts():
    """head + scale * sum of log p over the response, by the trunk's own logits."""
    model, (tokens, lengths) = make(likelihood=True), rows()
    starts = torch.tensor([2, 3, 1])
    found = model.reward(tokens, lengths, starts)
    assert model.scale.item() != 1
    for row, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist())):
        sequence = tokens[row : row + 1, :length]
        logps = model.trunk(sequence)[0].log_softmax(-1)
        likelihood = sum(logps[t - 1, tokens[row, t]] for t in range(start, length))
        expected = model.trunk.hidden_states(sequence)[0, -1] @ model.head.weight[0] + model.scale * likelihood
        torch.testing.assert_close(found[row : row + 1], expected)


def test_response_labels_by_hand():
    tokens = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 8], [9, 3, 0, 0]])
    found = response_labels(tokens, torch.tensor([2, 1, 1]), torch.tensor([4, 4, 2]))
    x = IGNORED
    assert found.tolist() == [[x, 7, 8, x], [6, 7, 8, x], [3, x, x, x]]


@pytest.mark.parametrize("likelihood", [True, False])
@pytest.mark.parametrize("tie", [True, False])
def test_every_parameter_has_a_gradient(tie, likelihood):
    """A parameter without one stops DistributedDataParallel, one without a dimension FSDP2."""
    model, (tokens, lengths) = make(tie, likelihood), rows()
    model.reward(tokens, lengths, lengths - 2).sum().backward()
    assert all(p.grad is not None and p.ndim > 0 for p in model.parameters())
    again = ScalarModel(Transformer(**model.trunk.arguments), likelihood)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(
        again.eval().reward(tokens, lengths, lengths - 2), model.reward(tokens, lengths, lengths - 2)
    )


@pytest.mark.parametrize("tie", [True, False])
def test_a_reward_model_with_likelihood_becomes_a_critic(tie):
    model, (tokens, _) = make(tie, likelihood=True), rows()
    nn.init.normal_(model.head.weight)
    assert model(tokens).abs().sum() > 0
    critic = model.as_critic()
    assert torch.equal(critic(tokens), torch.zeros_like(tokens, dtype=torch.float32))
    critic(tokens).sum().backward()
    assert all(p.grad is not None for p in critic.parameters())


@pytest.mark.parametrize("likelihood", [True, False])
@pytest.mark.parametrize("tie", [True, False])
def test_flops_count_the_output_matrix_where_it_is_used(tie, likelihood):
    model = make(tie, likelihood)
    matrices = sum(p.numel() for name, p in model.trunk.blocks.named_parameters()) + SHAPE["width"]  # and the last norm
    output = SHAPE["vocabulary_size"] * SHAPE["width"] if likelihood else 0
    assert model.flops_per_token(10) == 6 * (matrices + output) + 6 * 2 * 24 * 10
