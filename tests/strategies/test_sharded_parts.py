"""What the strategies are made of, without processes: rows of joined matrices, copies without data, refusals."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from athanor import strategies
from athanor.algorithms.pretraining import Pretraining
from athanor.batches import IGNORED, SupervisedBatch
from athanor.context import ContextParallel
from athanor.models import parallel
from athanor.models.attention import Attention
from athanor.models.heads import ScalarModel
from athanor.models.moe import MixtureOfExperts
from athanor.models.patterns import Window
from athanor.models.positions import ALiBi, Relative
from athanor.stages import Pipeline
from small import decoder, optimizer, steady


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


def training(model: nn.Module, kind: type = Pretraining, **more) -> Any:
    return kind(model, optimizer(0.1), steady(), **more)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ({}, "The model has 2 layers, too few for 4 stages; lower strategy.stages"),
        ({"layers": 4, "feedforward": MixtureOfExperts(4, 2)}, "do not see each other's experts"),
        ({"layers": 4, "positions": Relative()}, "one learnt position bias"),
    ],
)
def test_a_model_that_has_no_stages_is_refused(refused, shape, sentence):
    assert sentence in refused(Pipeline(4).check, 4, training(decoder(29, **shape)))
    Pipeline(4).check(8, training(decoder(29, layers=4)))


def test_processes_that_do_not_divide_are_refused(refused):
    algorithm = training(decoder(29))
    assert "strategy.stages=2 does not divide the 3 processes" in refused(Pipeline(2).check, 3, algorithm)
    assert "strategy.parts=2 does not divide the 3 processes" in refused(ContextParallel(2).check, 3, algorithm)
    assert "at least 2" in refused(Pipeline, 1)
    assert "at least 2" in refused(ContextParallel, 1)


@pytest.mark.parametrize(
    "shape", [{"positions": ALiBi()}, {"feedforward": MixtureOfExperts(4, 2)}, {"attention": Attention([Window(4)])}]
)
def test_rows_that_cannot_be_shared_are_refused(refused, shape):
    assert "choose strategy=fsdp2" in refused(ContextParallel(2).check, 2, training(decoder(29, **shape)))
    ContextParallel(2).check(4, training(decoder(29)))


@pytest.mark.parametrize("length", [16, 13, 1])
def test_parts_of_a_row_are_all_of_it_and_have_as_much_to_look_back_at(length):
    rows = torch.arange(2 * length).view(2, length)
    batch = SupervisedBatch(rows, rows + 1, torch.tensor(7))
    cut, earlier = [], []
    for part in range(2):
        strategy = ContextParallel(2)
        strategy.cluster_environment = SimpleNamespace(global_rank=lambda part=part: part)
        cut.append(strategy.cut(batch))
        earlier.append(int(strategy.columns.sum()))
    assert earlier[0] == earlier[1]
    assert cut[0].normalizer == 7
    labels = torch.cat([one.labels_BT for one in cut], dim=1)
    assert sorted(labels[labels != IGNORED].tolist()) == (batch.labels_BT).flatten().tolist()
    for one in cut:
        kept = one.labels_BT != IGNORED
        assert torch.equal(one.tokens_BT[kept] + 1, one.labels_BT[kept])


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
