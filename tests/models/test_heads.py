"""The scalar head: read at the last token, blind to padding, and all of it trained."""

import pytest
import torch

from athanor.models.heads import ScalarModel
from athanor.models.transformer import Transformer

SHAPE = {"vocabulary_size": 31, "width": 24, "layers": 2, "heads": 4, "kv_heads": 2, "context": 64}


def make(**changes):
    torch.manual_seed(0)
    model = ScalarModel(Transformer(**SHAPE, **changes)).eval()
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


@pytest.mark.parametrize("tie", [True, False])
def test_every_parameter_has_a_gradient(tie):
    """A parameter without one stops DistributedDataParallel."""
    model, (tokens, lengths) = make(tie_embeddings=tie), rows()
    model.reward(tokens, lengths).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    again = ScalarModel(Transformer(**model.trunk.arguments))
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval().reward(tokens, lengths), model.reward(tokens, lengths))


@pytest.mark.parametrize("tie", [True, False])
def test_flops_leave_the_output_matrix_out(tie):
    model = make(tie_embeddings=tie)
    matrices = sum(p.numel() for name, p in model.trunk.named_parameters() if "embedding" not in name)
    assert model.flops_per_token(10) == 6 * matrices + 6 * 2 * 24 * 10
