"""Positions, norms, activations, dropout and initialisation, each by hand or against transformers."""

import math

import pytest
import torch
import torch.nn.functional as F

from athanor.models.attention import Attention
from athanor.models.dropout import Dropout, drop_rows
from athanor.models.feedforward import FeedForward, Plain, default_hidden
from athanor.models.initialisation import He, MuP, TruncatedNormal, Xavier
from athanor.models.moe import MixtureOfExperts
from athanor.models.norms import Norm
from athanor.models.positions import ALiBi, Learned, Rotary, Sinusoidal, Waves, rotate, slopes
from athanor.models.scaling import Linear, Llama3, NTKAware, YaRN, plain
from athanor.models.transformer import Transformer

SHAPE = {"vocabulary_size": 31, "width": 24, "layers": 2, "heads": 4, "context": 64}


@pytest.mark.parametrize(
    ("scaling", "theirs"),
    [
        (Linear(3.0), {"rope_type": "linear", "factor": 3.0}),
        (YaRN(4.0, 512), {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}),
        (
            YaRN(2.0, 900, 16.0, 2.0, 1.3),
            {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 900, "beta_fast": 16.0,
             "beta_slow": 2.0, "attention_factor": 1.3},
        ),
        (
            Llama3(8.0, 256, 1.0, 4.0),
            {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 256, "low_freq_factor": 1.0,
             "high_freq_factor": 4.0},
        ),
    ],
    ids=str,
)  # fmt: skip
def test_scaled_frequencies_are_those_of_transformers(scaling, theirs):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(hidden_size=256, num_attention_heads=4, max_position_embeddings=1024,
                         rope_parameters={"rope_theta": 5000.0, **theirs})  # fmt: skip
    expected, amplitude = ROPE_INIT_FUNCTIONS[theirs["rope_type"]](config, torch.device("cpu"))
    found = scaling.frequencies(5000.0, 64)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert scaling.amplitude == pytest.approx(amplitude)
    if isinstance(scaling, YaRN):
        cos, sin = Rotary(5000.0, scaling=scaling).rotation(torch.arange(9)[None], 64, torch.float32)
        torch.testing.assert_close((cos**2 + sin**2).sqrt(), torch.full_like(cos, amplitude))


def test_ntk_interpolates_the_slowest_pair_and_not_the_fastest():
    ratio = NTKAware(4.0).frequencies(10_000.0, 32) / plain(10_000.0, 32)
    assert ratio[0].item() == pytest.approx(1.0)
    assert ratio[-1].item() == pytest.approx(1 / 4, rel=1e-5)
    assert (ratio.diff() < 0).all()


def test_partial_rotation_leaves_the_other_channels():
    x = torch.randn(1, 5, 2, 12)
    turn = Rotary(100.0, share=0.5).rotation(torch.arange(5)[None], 12, torch.float32)
    found = rotate(x, turn)
    assert torch.equal(found[..., 6:], x[..., 6:])
    alone = rotate(x[..., :6].contiguous(), Rotary(100.0).rotation(torch.arange(5)[None], 6, torch.float32))
    assert torch.equal(found[..., :6], alone)
    assert not torch.allclose(found[:, 1:, :, :6], x[:, 1:, :, :6])


def test_sinusoids_by_hand():
    found = Waves(4)(torch.tensor([[0, 7]]))
    expected = [[0.0, 1.0, 0.0, 1.0], [math.sin(7), math.cos(7), math.sin(0.07), math.cos(0.07)]]
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_alibi_by_hand():
    assert slopes(8) == [2.0**-n for n in range(1, 9)]
    assert slopes(4) == [2.0 ** (-2 * n) for n in range(1, 5)]
    assert slopes(3) == [2.0**-4, 2.0**-8, 2.0**-2]  # those of 2 heads, then the first of 4
    bias = ALiBi().bias(torch.tensor([[5]]), torch.tensor([[1, 4, 5]]), 4)
    assert bias[0, :, 0].tolist() == [[-4 * s, -1 * s, 0.0] for s in slopes(4)]


@pytest.mark.parametrize("kind", [Learned(), Sinusoidal()])
def test_added_positions_tell_where_a_token_stands(kind):
    """Scores know no order, so a model with one kind of token sees only what is added."""
    torch.manual_seed(0)
    model = Transformer(**SHAPE, positions=kind).eval()
    same = torch.full((1, 6), 3)
    assert not torch.allclose(model.hidden_states(same)[0, 1], model.hidden_states(same)[0, 4], atol=1e-4)
    moved = model.hidden_states(same[:, :1], positions_BT=torch.tensor([[4]]))
    assert not torch.allclose(moved, model.hidden_states(same[:, :1]), atol=1e-4)


CURVES = {
    "relu": lambda z: max(z, 0.0), "relu2": lambda z: max(z, 0.0) ** 2, "silu": lambda z: z / (1 + math.exp(-z)),
    "gelu": lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2,
    "gelu_tanh": lambda z: z * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2,
}  # fmt: skip
GATES = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_tanh", "reglu": "relu"}


@pytest.mark.parametrize("activation", [*CURVES, *GATES])
def test_activations_by_hand(activation):
    curve = CURVES[GATES.get(activation, activation)]
    layer = FeedForward(activation, bias=True, hidden=2).module(Transformer(**SHAPE).sizes._replace(width=2), 0.0)
    first = layer.gate_up if activation in GATES else layer.up
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1], [2, -1]])[: len(first.weight)])
        first.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4])[: len(first.bias)])
        layer.out.weight.copy_(torch.tensor([[1.0, 10.0], [0.0, 1.0]]))
        layer.out.bias.copy_(torch.tensor([0.0, 5.0]))
    a, b = 1.5, -0.5
    ups = [a + b + 0.3, 2 * a - b + 0.4] if activation in GATES else [1.0, 1.0]
    hidden = [curve(a + 0.1) * ups[0], curve(b + 0.2) * ups[1]]
    expected = torch.tensor([hidden[0] + 10 * hidden[1], hidden[1] + 5])
    torch.testing.assert_close(layer(torch.tensor([[[a, b]]]))[0, 0], expected)


def test_default_channels():
    assert [default_hidden(96, kind) for kind in ("swiglu", "geglu", "gelu", "relu2")] == [256, 256, 384, 384]
    assert isinstance(Transformer(**SHAPE, feedforward=FeedForward("gelu")).blocks[0].feedforward, Plain)


def test_placements_of_the_norm_by_hand():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 24)
    for placement in ("pre", "post", "sandwich"):
        model = Transformer(**SHAPE, norm=Norm("layer", bias=True, placement=placement)).eval()
        block = model.blocks[0]
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        turn = model.positions.rotation(torch.arange(5)[None], 6, torch.float32)
        found = block(x, turn, None, None, 0)[0]
        y = x
        for name, branch in (
            ("attention", lambda z, block=block, turn=turn: block.attention(z, turn, None)),
            ("feedforward", block.feedforward),
        ):
            norm = getattr(block, f"{name}_norm")
            if placement == "pre":
                y = y + branch(norm(y))
            elif placement == "post":
                y = norm(y + branch(y))
            else:
                y = y + getattr(block, f"{name}_post_norm")(branch(norm(y)))
        torch.testing.assert_close(found, y)


def test_normalised_queries_and_keys_forget_their_length():
    """Scaling the projection of the queries or of the keys changes nothing; without the norm it does."""
    tokens = torch.arange(12)[None]
    for normed in (True, False):
        torch.manual_seed(0)
        model = Transformer(**SHAPE, norm=Norm(queries_and_keys=normed)).eval()
        with torch.no_grad():
            for block in model.blocks:
                block.attention.qkv.weight *= 20
        before = model(tokens)
        with torch.no_grad():
            for block in model.blocks:
                block.attention.qkv.weight[:48] *= 3  # queries and keys, not values
        assert torch.allclose(model(tokens), before, atol=1e-4) == normed


@pytest.mark.parametrize("masked", [False, True])
def test_capped_scores_by_hand(masked):
    torch.manual_seed(0)
    model = Transformer(**SHAPE, kv_heads=2, attention=Attention(softcap=1.5))
    attention = model.blocks[0].attention
    query, key, value = torch.randn(2, 4, 5, 6) * 3, torch.randn(2, 2, 5, 6) * 3, torch.randn(2, 2, 5, 6)
    mask = torch.rand(2, 1, 5, 5).gt(0.5) | torch.eye(5, dtype=torch.bool) if masked else None
    found = attention.capped(query, key, value, mask, not masked, 0.0, None, True)
    for b in range(2):
        for h in range(4):
            scores = 1.5 * torch.tanh(query[b, h] @ key[b, h // 2].T / math.sqrt(6) / 1.5)
            allowed = mask[b, 0] if masked else torch.ones(5, 5).tril().bool()
            expected = scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ value[b, h // 2]
            torch.testing.assert_close(found[b, h], expected)


def test_capped_logits_and_scaled_embeddings():
    torch.manual_seed(0)
    model = Transformer(**SHAPE, logit_softcap=0.1, scale_embeddings=True)
    hidden = torch.randn(3, 24)
    plain_logits = hidden @ model.embedding.weight.T
    torch.testing.assert_close(model.logits(hidden), 0.1 * torch.tanh(plain_logits / 0.1))
    scaled = Transformer(**SHAPE)
    with torch.no_grad():
        scaled.load_state_dict(model.state_dict())
        scaled.embedding.weight *= math.sqrt(24)
    torch.testing.assert_close(scaled.hidden_states(torch.arange(9)[None]), model.hidden_states(torch.arange(9)[None]))


@pytest.mark.parametrize("place", ["embedding", "attention", "residual", "hidden", "depth"])
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_each_dropout_acts_and_only_in_training(place, softcap):
    torch.manual_seed(0)
    model = Transformer(**SHAPE, dropout=Dropout(**{place: 0.5}), attention=Attention(softcap=softcap))
    tokens = torch.arange(12).view(2, 6)
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_stochastic_depth_drops_whole_rows_and_keeps_the_mean():
    torch.manual_seed(0)
    found = drop_rows(torch.ones(20_000, 2, 3), 0.25)
    per_row = found.flatten(1)
    assert (per_row == per_row[:, :1]).all()
    assert set(per_row[:, 0].tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert per_row.mean().item() == pytest.approx(1.0, abs=0.02)
    depths = [block.depth for block in Transformer(**SHAPE, dropout=Dropout(depth=0.3)).blocks]
    assert depths == pytest.approx([0.15, 0.3])


WIDE = {"vocabulary_size": 300, "width": 128, "layers": 2, "heads": 4, "kv_heads": 2, "context": 8, "hidden": 96,
        "tie_embeddings": False}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "deviations"),
    [
        # of embedding, output, queries, keys, gate, end of a branch
        (
            Xavier(0.05),
            (0.05, (2 / 428) ** 0.5, (2 / 256) ** 0.5, (2 / 192) ** 0.5, (2 / 224) ** 0.5, (2 / 224) ** 0.5),
        ),
        (He(0.05), (0.05, (2 / 128) ** 0.5, (2 / 128) ** 0.5, (2 / 128) ** 0.5, (2 / 128) ** 0.5, (2 / 96) ** 0.5)),
        (TruncatedNormal(0.03), (0.03, 0.03, 0.03, 0.03, 0.03, 0.015)),
        (MuP(0.03, base_width=32), (0.03, 0.03, 0.015, 0.015, 0.015, 0.0075)),
        (MuP(0.03, base_width=128), (0.03, 0.03, 0.03, 0.03, 0.03, 0.015)),
    ],
    ids=str,
)
def test_initialisation(kind, deviations):
    torch.manual_seed(0)
    model = Transformer(**WIDE, initialisation=kind, norm=Norm("layer", bias=True), attention=Attention(bias=True))
    block = model.blocks[0]
    found = (model.embedding.weight, model.output.weight, block.attention.qkv.weight[:128],
             block.attention.qkv.weight[128:192], block.feedforward.gate_up.weight[:96],
             block.feedforward.out.weight)  # fmt: skip
    for weight, deviation in zip(found, deviations):
        factor = 0.9866 if isinstance(kind, TruncatedNormal) else 1  # what cutting at 3 leaves
        assert weight.std().item() == pytest.approx(deviation * factor, rel=0.03)
        if isinstance(kind, TruncatedNormal):
            assert weight.abs().max() <= 3 * deviation
    assert all((p == (0 if name.endswith("bias") else 1)).all() for name, p in model.named_parameters() if p.ndim < 2)


def test_experts_are_initialised_each_as_a_matrix():
    torch.manual_seed(0)
    model = Transformer(**WIDE, feedforward=MixtureOfExperts(3, 1), initialisation=Xavier())
    experts = model.blocks[0].feedforward
    assert experts.up.shape == (3, 192, 128)
    for matrix in experts.up:
        assert matrix.std().item() == pytest.approx((2 / (192 + 128)) ** 0.5, rel=0.03)
    assert experts.router.weight.std().item() == pytest.approx((2 / 131) ** 0.5, rel=0.15)


def steps(width: int, initialisation, rate: float, count: int) -> tuple[float, float]:
    """(size of the last states, loss) after some steps of Adam on a task of copying, at a width."""
    torch.manual_seed(0)
    model = Transformer(16, width=width, layers=2, heads=width // 16, context=16, initialisation=initialisation)
    factors = model.learning_rate_factors
    groups = [{"params": [p], "lr": rate * factors.get(name, 1.0)} for name, p in model.named_parameters()]
    optimizer = torch.optim.Adam(groups)
    noise = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(count):
        half = torch.randint(0, 16, (16, 8), generator=noise)
        tokens = torch.cat((half, half), 1)
        loss = F.cross_entropy(model(tokens)[:, 7:-1].flatten(0, 1), tokens[:, 8:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        logits = model(tokens)
    return logits.abs().mean().item(), sum(losses[-5:]) / 5


def test_mup_logits_do_not_grow_with_the_width():
    """The coordinate check of Yang et al. 2022, appendix D.1, after few steps at a high rate."""
    grown = {}
    for name, kind in (("standard", None), ("mup", MuP(base_width=32))):
        sizes = [steps(width, kind, 0.01, 4)[0] for width in (32, 256)]
        grown[name] = sizes[1] / sizes[0]
    assert grown["mup"] < 1.6
    assert grown["standard"] > 2 * grown["mup"]


def test_mup_at_its_base_is_the_default():
    one, other = (Transformer(**WIDE, initialisation=kind) for kind in (None, MuP(base_width=128)))
    assert other.learning_rate_factors == {}
    other.load_state_dict(one.state_dict())
    tokens = torch.arange(8)[None]
    assert torch.equal(one(tokens), other(tokens))


def test_mup_factors_are_on_the_hidden_matrices():
    kind = MuP(base_width=32, base_head_width=8)
    model = Transformer(**WIDE, initialisation=kind, feedforward=[FeedForward(), MixtureOfExperts(3, 1)])
    factors = model.learning_rate_factors
    expected = {name for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim > 1}
    assert set(factors) == expected
    assert set(factors.values()) == {0.25}
    assert model.logit_scale == 0.25
    assert model.blocks[0].attention.scale == pytest.approx(8**0.5 / 32)
