"""Attention by blocks against torch's own in float32, and where it is used."""

import pytest
import torch
import torch.nn.functional as F

from athanor.models import cpu_attention

C = 16


def inputs(rows, heads, kv_heads, tokens, dtype=torch.bfloat16):
    torch.manual_seed(rows + tokens)
    # As the projection leaves them: heads beside each other, not one after another.
    parts = (torch.randn(rows, tokens, count, C).transpose(1, 2) for count in (heads, kv_heads, kv_heads))
    return [part.to(dtype).requires_grad_() for part in parts]


def mask_of(kind, rows, heads, tokens):
    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    if kind == "documents":
        documents = (torch.arange(tokens)[None] >= torch.randint(1, tokens, (rows, 1))).long()
        return (causal & (documents[:, :, None] == documents[:, None, :]))[:, None]
    if kind == "bias":
        return torch.randn(1, heads, tokens, tokens).masked_fill(~causal, -torch.inf).bfloat16()
    return None


@pytest.mark.parametrize("kind", ["causal", "documents", "bias"])
@pytest.mark.parametrize("tokens", [7, 256, 300])  # below a block, one, and one and a bit
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
def test_value_and_gradients(kind, tokens, heads, kv_heads):
    mine = inputs(2, heads, kv_heads, tokens)
    exact = [part.detach().float().requires_grad_() for part in mine]
    mask = mask_of(kind, 2, heads, tokens)
    there = None if mask is None else mask if mask.dtype == torch.bool else mask.float()
    weight = torch.randn(2, heads, tokens, C).bfloat16()
    expected = F.scaled_dot_product_attention(
        *exact, attn_mask=there, is_causal=mask is None, scale=0.3, enable_gqa=True
    )
    (expected * weight.float()).sum().backward()
    assert cpu_attention.serves(mine[0], 0.0) != cpu_attention.TILES
    out = cpu_attention.attend(*mine, mask, 0.3)
    (out * weight).sum().backward()
    for found, right in [(out, expected), *((a.grad, b.grad) for a, b in zip(mine, exact))]:
        assert found.dtype == torch.bfloat16
        assert (found.float() - right).norm() < 0.01 * right.norm()


def test_the_future_is_not_seen():
    query, key, value = inputs(1, 2, 2, 300)
    cpu_attention.attend(query, key, value, None, 0.25)[:, :, 100].float().sum().backward()
    assert key.grad[:, :, :101].any()
    assert not key.grad[:, :, 101:].any()
    assert not value.grad[:, :, 101:].any()


def test_where_it_serves():
    query = inputs(1, 2, 2, 4)[0]
    assert not cpu_attention.serves(query.float(), 0.0)
    assert not cpu_attention.serves(query, 0.1)
    assert not cpu_attention.serves(query[:, :, :1], 0.0)
    with torch.no_grad():
        assert not cpu_attention.serves(query, 0.0)
