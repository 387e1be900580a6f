"""The kernels of a block; what a ring makes of them is in tests/strategies/test_divided.py."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from athanor import ring

SHAPE = (2, 4, 64, 16)


@pytest.mark.parametrize("masked", [False, True])
def test_cuda_has_the_kernels_that_are_called(masked):
    """As they are declared: arguments, and shapes of what they return."""
    query = torch.empty(SHAPE, device="meta", dtype=torch.bfloat16)
    bias = torch.empty(2, 1, 64, 64, device="meta", dtype=torch.bfloat16) if masked else None
    out, sums = ring.looked_up(query, (query, query), bias, not masked, 0.1)
    assert out.shape == query.shape
    assert (sums.shape, sums.dtype) == (query.shape[:3], torch.float32)
    slopes = ring.slopes([query, out, sums, query], (query, query), bias, not masked, 0.1)
    assert [x.shape for x in slopes] == [query.shape] * 3


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))],
)
def test_a_block_is_attended_as_by_torch(device, masked):
    """Given output and sums of the block itself, gradients are those of attention to nothing else. A query that sees
    nothing of a block has a sum that adds nothing to another's.
    """
    torch.manual_seed(0)
    query, key, value, grad = torch.randn(4, *SHAPE, device=device)
    documents_1BT = (torch.arange(64, device=device) // 40).expand(1, 2, 64)
    whole = slice(0, 64)
    bias, causal = ring.bias_of(documents_1BT if masked else None, 0, 0, whole, whole, query.dtype)
    inputs = [x.clone().requires_grad_() for x in (query, key, value)]
    expected = scaled_dot_product_attention(*inputs, attn_mask=bias, is_causal=causal, scale=0.1)
    expected.backward(grad)
    out, sums = ring.looked_up(query, (key, value), bias, causal, 0.1)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    scores = (query @ key.mT * 0.1).masked_fill(~torch.ones(64, 64, device=device).tril().bool(), -torch.inf)
    if bias is not None:
        scores = scores + bias
    torch.testing.assert_close(sums, scores.logsumexp(-1), rtol=1e-5, atol=1e-5)
    for found, given in zip(ring.slopes([query, out, sums, grad], (key, value), bias, causal, 0.1), inputs):
        torch.testing.assert_close(found, given.grad, rtol=1e-4, atol=1e-5)
    unseen = torch.full((2, 1, 64, 64), ring.HIDDEN, device=device)
    _, nothing = ring.looked_up(query, (key, value), unseen, False, 0.1)
    assert torch.equal(torch.logaddexp(sums, nothing), sums)
