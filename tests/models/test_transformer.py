"""The decoder: causality and document boundaries by gradient, padding, packing and caching leave answers unchanged."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from athanor.batches import IGNORED
from athanor.functional import cross_entropy_sum
from athanor.models.attention import packed_mask
from athanor.models.feedforward import Gated
from athanor.models.positions import Rotary, rotate
from athanor.models.transformer import Transformer

SHAPE = {"vocabulary_size": 31, "width": 24, "layers": 2, "heads": 4, "kv_heads": 2, "context": 64}


def make(seed=0, **changes):
    """A model whose weights are large enough that every token matters to every later one."""
    torch.manual_seed(seed)
    model = Transformer(**{**SHAPE, **changes}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1).add_(0.1 * torch.randn_like(parameter))
    return model


def distinct(rows, length):
    return torch.stack([torch.randperm(SHAPE["vocabulary_size"])[:length] for _ in range(rows)])


def influence(model, tokens, **where):
    """[B, T, S]: how strongly the state at t depends on the embedding of the token at s."""
    embedded = model.embedding(tokens).detach().requires_grad_()
    handle = model.embedding.register_forward_hook(lambda *_: embedded)
    states = model.hidden_states(tokens, **where)
    handle.remove()
    weight = torch.randn(states.shape[-1])
    rows = [torch.autograd.grad((states[:, t] @ weight).sum(), embedded, retain_graph=True)[0].norm(dim=-1)
            for t in range(tokens.shape[1])]  # fmt: skip
    return torch.stack(rows, dim=1)


def test_a_token_sees_itself_and_all_before_it_and_none_after():
    found = influence(make(), distinct(2, 9)) > 0
    assert torch.equal(found, torch.tril(torch.ones(9, 9, dtype=torch.bool)).expand(2, 9, 9))


def test_packed_documents_do_not_see_each_other():
    documents = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2], [0, 1, 1, 1, 1, 1, 1, 2, 3]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 1, 2, 3], [0, 0, 1, 2, 3, 4, 5, 0, 0]])
    found = influence(make(), distinct(2, 9), documents_BT=documents, positions_BT=positions) > 0
    same = documents[:, :, None] == documents[:, None, :]
    assert torch.equal(found, torch.tril(same))
    assert torch.equal(packed_mask(documents)[:, 0], torch.tril(same))


def test_packing_leaves_loss_and_gradient_of_documents_unchanged():
    lengths, model = [3, 5, 1, 7], make()
    tokens = [distinct(1, n) for n in lengths]
    labels = [F.pad(t[:, 1:], (0, 1), value=IGNORED) for t in tokens]
    documents = torch.cat([torch.full((1, n), i) for i, n in enumerate(lengths)], dim=1)
    positions = torch.cat([torch.arange(n)[None] for n in lengths], dim=1)
    packed = model(torch.cat(tokens, 1), documents_BT=documents, positions_BT=positions)
    cross_entropy_sum(packed, torch.cat(labels, 1)).backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    alone = sum(cross_entropy_sum(model(t), label) for t, label in zip(tokens, labels))
    torch.testing.assert_close(cross_entropy_sum(packed, torch.cat(labels, 1)), alone, rtol=1e-5, atol=0)
    alone.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, together[name], rtol=1e-4, atol=1e-4)


def test_padding_on_the_right_changes_nothing_before_it():
    model, tokens = make(), distinct(1, 6)
    for pad in (0, 5):
        padded = torch.cat((tokens, torch.full((1, 4), pad)), dim=1)
        torch.testing.assert_close(model(padded)[:, :6], model(tokens))


def test_only_distances_between_positions_matter():
    model, tokens = make(context=1024), distinct(2, 7)
    shifted = model(tokens, positions_BT=torch.arange(7)[None] + 500)
    torch.testing.assert_close(shifted, model(tokens), atol=2e-4, rtol=1e-4)
    spread = model(tokens, positions_BT=2 * torch.arange(7)[None])
    assert (spread - model(tokens))[:, 2:].abs().amax(-1).min() > 0.01


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("pieces", [[1] * 12, [5] + [1] * 7, [4, 1, 3, 4], [12]])
def test_cache_gives_the_states_of_the_whole_row(tie, pieces):
    model, tokens = make(tie_embeddings=tie), distinct(3, 12)
    cache, found = model.new_cache(3, 12), []
    for piece in tokens.split(pieces, dim=1):
        found.append(model(piece, cache=cache))
    torch.testing.assert_close(torch.cat(found, 1), model(tokens), atol=1e-4, rtol=1e-4)
    assert cache.length == cache.capacity == 12


def test_cache_goes_on_with_the_rows_it_keeps():
    model, tokens = make(), distinct(4, 10)
    cache = model.new_cache(4, 10)
    model(tokens[:, :6], cache=cache)
    cache.keep_rows(torch.tensor([3, 1]))
    found = model(tokens[[3, 1], 6:], cache=cache)
    torch.testing.assert_close(found, model(tokens)[[3, 1], 6:], atol=1e-4, rtol=1e-4)


def test_longer_than_the_context_is_an_error_with_and_without_a_cache():
    model = make(context=8)
    with pytest.raises(ValueError, match="9 tokens exceeds the model's context of 8"):
        model(torch.zeros(1, 9, dtype=torch.long))
    cache = model.new_cache(1, 16)
    model(torch.zeros(1, 8, dtype=torch.long), cache=cache)
    with pytest.raises(ValueError, match="9 tokens exceeds"):
        model(torch.zeros(1, 1, dtype=torch.long), cache=cache)


def test_rotation_by_hand():
    # 4 channels, theta 100: channels 0 and 2 turn by p, channels 1 and 3 by p / 10
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(1, 2, 1, 4)
    found = rotate(x, Rotary(theta=100.0).rotation(torch.tensor([[0, 7]]), 4, torch.float32))
    c, s, c1, s1 = math.cos(7), math.sin(7), math.cos(0.7), math.sin(0.7)
    expected = torch.tensor([[1.0, 2, 3, 4], [c - 3 * s, 2 * c1 - 4 * s1, 3 * c + s, 4 * c1 + 2 * s1]])
    torch.testing.assert_close(found[0, :, 0], expected)


def test_swiglu_by_hand():
    layer = Gated(2, 3)
    weight = torch.tensor([[1.0, 0], [0, 1], [1, 1], [2, 0], [0, -1], [1, -1]])  # gate rows, then up rows
    layer.gate_up.weight.data, layer.out.weight.data = weight, torch.tensor([[1.0, 10, 100], [0, 0, 1]])
    silu = lambda z: z / (1 + math.exp(-z))  # noqa: E731
    a, b = 1.5, -0.5
    products = [silu(a) * 2 * a, silu(b) * -b, silu(a + b) * (a - b)]
    expected = torch.tensor([products[0] + 10 * products[1] + 100 * products[2], products[2]])
    torch.testing.assert_close(layer(torch.tensor([[[a, b]]]))[0, 0], expected)


def test_initialisation():
    torch.manual_seed(0)
    model = Transformer(vocabulary_size=500, width=128, layers=8, heads=4, context=8, tie_embeddings=False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == 1).all(), name
        else:
            ends = name.endswith(("attention.out.weight", "feedforward.out.weight"))
            assert parameter.std().item() == pytest.approx(0.02 / (4 if ends else 1), rel=0.05), name
            assert abs(parameter.mean().item()) < 5 * parameter.std().item() / math.sqrt(parameter.numel()), name


def test_dropout_acts_in_training_only():
    model, tokens = make(dropout=0.5), distinct(2, 8)
    assert torch.equal(model(tokens), model(tokens))
    torch.testing.assert_close(model(tokens), make()(tokens))
    model.train()
    assert not torch.allclose(model(tokens), model(tokens), atol=0.1)


@pytest.mark.parametrize("tie", [True, False])
def test_arguments_rebuild_the_same_model(tie):
    model, tokens = make(tie_embeddings=tie), distinct(2, 8)
    again = Transformer(**model.arguments).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(tokens), model(tokens))


@pytest.mark.parametrize("tie", [True, False])
def test_flops_are_those_that_run(tie):
    """torch counts what a forward pass multiplies; a training step is three times that, causal attention half."""
    shape = {"vocabulary_size": 400, "width": 64, "layers": 3, "heads": 4, "kv_heads": 2, "context": 128}
    model, tokens = Transformer(**shape, tie_embeddings=tie), torch.zeros(1, 128, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(tokens, mask=torch.ones(1, 1, 128, 128, dtype=torch.bool))
    attention = 4 * 3 * 64 * 128 * 128  # two products of T x T x D in each layer, 2 FLOPs each
    counted = 3 * (counter.get_total_flops() - attention / 2) / 128
    assert model.flops_per_token(128) == pytest.approx(counted, rel=0.005)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"width": 25}, "model.width=25 must be an even multiple of model.heads=4"),
        ({"width": 12}, "even multiple"),
        ({"kv_heads": 3}, "model.kv_heads=3 must divide model.heads=4"),
        ({"dropout": 1.0}, r"model.dropout=1.0 must lie in \[0, 1\)"),
    ],
)
def test_impossible_shapes_say_what_is_wrong(changes, match):
    with pytest.raises(ValueError, match=match):
        Transformer(**{**SHAPE, **changes})
