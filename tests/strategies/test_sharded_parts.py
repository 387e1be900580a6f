"""What the strategies are made of, without processes: rows of joined matrices, copies without data, refusals."""

import sys

import pytest
import torch
from torch import nn

from athanor import strategies
from athanor.models import parallel
from athanor.models.attention import Attention
from athanor.models.heads import ScalarModel
from athanor.models.moe import MixtureOfExperts
from athanor.models.positions import ALiBi
from small import decoder


def test_joined_rows_by_hand():
    """Two queries' heads of two rows, one of keys, one of values; two ways: each piece holds half of each."""
    assert parallel.joined_rows([4, 2, 2], 2).tolist() == [0, 1, 4, 6, 2, 3, 5, 7]
    assert parallel.joined_rows([3, 3], 3).tolist() == [0, 3, 1, 4, 2, 5]


def test_a_piece_of_a_joined_matrix_computes_a_piece_of_its_heads():
    """The first half of the reordered rows gives the first half of queries, keys and values."""
    torch.manual_seed(0)
    model = decoder(29, width=48, heads=4, kv_heads=2, hidden=64, attention=Attention(bias=True))
    orders = parallel.row_orders(model, 2)
    assert set(orders) == {
        f"blocks.{layer}.{name}" for layer in (0, 1)
        for name in ("attention.qkv.weight", "attention.qkv.bias", "feedforward.gate_up.weight")
    }  # fmt: skip
    layer = model.blocks[0].attention
    x = torch.randn(3, 48)
    query, key, value = layer.qkv(x).split([48, 24, 24], dim=-1)
    weight, bias = (p[orders[f"blocks.0.attention.qkv.{kind}"]].chunk(2)[1] for kind, p in layer.qkv.named_parameters())
    found = nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(found, torch.cat((query[:, 24:], key[:, 12:], value[:, 12:]), dim=-1))


@pytest.mark.parametrize(
    ("shape", "ways", "sentence"),
    [
        ({"heads": 4, "kv_heads": 1}, 2, "strategy.tensor_parallel=2 does not divide model.kv_heads=1"),
        ({"heads": 2, "width": 36}, 3, "strategy.tensor_parallel=3 does not divide model.heads=2"),
        ({"heads": 3, "width": 36, "hidden": 32}, 3, "does not divide the 32 feed-forward channels"),
        ({"positions": ALiBi()}, 2, "does not split the biases of ALiBi"),
        ({"feedforward": MixtureOfExperts(4, 2)}, 2, "splits no experts"),
    ],
)
def test_a_model_that_cannot_be_split_is_refused(refused, shape, ways, sentence):
    assert sentence in refused(parallel.check, decoder(29, **shape), ways)


def test_a_copy_without_data_takes_the_whole_weights_of_its_original():
    model = ScalarModel(decoder(29))
    shape = strategies.without_data(model)
    assert {p.device.type for p in shape.parameters()} == {"meta"}
    assert {n: p.shape for n, p in shape.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert shape.flops_per_token(16) == model.flops_per_token(16)
    shape.load_state_dict(model.state_dict(), assign=True)
    tokens = torch.randint(29, (2, 9))
    assert torch.equal(shape(tokens), model(tokens))
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_without_deepspeed_the_sentence_says_how_to_get_it(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    assert "pip install 'deepspeed>=0.19,<0.20'" in refused(strategies.ZeRO, 2)


def test_deepspeed_is_imported_only_when_it_is_selected():
    import subprocess

    code = "import sys, athanor.train, athanor.strategies as s; s.FSDP2(); s.FSDP(); print('deepspeed' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False"]
