"""Growing: the larger model computes what its parent does and learns with all its parts; what cannot be is refused."""

import hashlib
import json

import pytest
import torch
import torch.nn.functional as F
from test_combinations import CASES, SHAPE, arguments_of, distinct, make

from athanor import models
from athanor.errors import UserError
from athanor.models.attention import Attention
from athanor.models.encoder import Encoder
from athanor.models.feedforward import FeedForward
from athanor.models.growing import Copies, Growth, grow
from athanor.models.heads import ScalarModel
from athanor.models.initialisation import MuP
from athanor.models.moe import MixtureOfExperts
from athanor.models.norms import Norm
from athanor.models.patterns import Full, Window
from athanor.models.positions import ALiBi, Learned, Relative, Rotary, Sinusoidal
from athanor.models.transformer import Transformer

REQUESTS = [
    {"width": 48}, {"width": 72, "layers": 6}, {"layers": 5}, {"hidden": 33}, {"width": 48, "hidden": 20},
    {"width": 48, "layers": 4, "depth": "identity", "uneven": 0.9},
]  # fmt: skip


def possible(arguments: dict, request: dict) -> bool:
    wider, deeper = request.get("width", 24) > 24, request.get("layers", 2) > 2
    kind = type(arguments["positions"])
    return not (wider and kind in (ALiBi, Sinusoidal)) and not (deeper and arguments["norm"].placement == "post")


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
@pytest.mark.parametrize("case", CASES[::3], ids=lambda case: "-".join(map(str, case.values())))
@torch.no_grad()
def test_the_grown_model_is_the_same_function(case, request_):
    """Every pair of settings, in float64, where rounding leaves ten digits (rotation, routers, capped scores: five)."""
    arguments = arguments_of(case)
    parent, tokens = make(arguments), distinct(2, 12)
    if not possible(arguments, request_):
        with pytest.raises(UserError):
            grow(parent, **request_)
        return
    grown = grow(parent, **request_).eval()
    own_hidden = all(getattr(kind, "hidden", None) for kind in parent.feedforwards)
    more = sum(p.numel() for p in grown.parameters()) > sum(p.numel() for p in parent.parameters())
    assert more == (request_ != {"hidden": 33} or not own_hidden)
    assert grown.sizes.layers == request_.get("layers", 2)
    routed = any(block.routed for block in parent.blocks)
    single = routed or arguments["attention"].softcap is not None or isinstance(arguments["positions"], Rotary)
    close = 2e-5 if single else 1e-10
    torch.testing.assert_close(grown(tokens), parent(tokens), rtol=close, atol=close)


@pytest.mark.parametrize("kind", [Transformer, Encoder])
@torch.no_grad()
def test_in_single_precision_it_is_the_same_to_rounding(kind):
    torch.manual_seed(0)
    parent = kind(500, 64, layers=3, heads=4, kv_heads=2, context=64).eval()
    for parameter in parent.parameters():
        parameter.mul_(6 if parameter.ndim > 1 else 1)
    tokens = torch.randint(0, 500, (4, 64))
    expected = parent(tokens)
    found = grow(parent, width=256, layers=7, hidden=1000).eval()(tokens)
    assert expected.std() > 0.5
    assert (found - expected).abs().max() < 2e-4 * expected.std()
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


@torch.no_grad()
def test_a_cache_and_packing_work_as_before():
    grown = grow(make({**SHAPE, "kv_heads": 2}), width=48, layers=4).eval()
    tokens = distinct(2, 10)
    cache = grown.new_cache(2, 10)
    pieces = torch.cat([grown(piece, cache=cache) for piece in tokens.split([4, 1, 5], 1)], 1)
    torch.testing.assert_close(pieces, grown(tokens), rtol=1e-6, atol=1e-6)


def step(model, tokens, rate):
    loss = F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= rate * parameter.grad
            parameter.grad = None
    return loss.item()


@pytest.mark.parametrize("placement", ["pre", "sandwich"])
def test_copies_part_in_training(placement):
    """After two steps no two copies of a channel, head or neuron are alike any more; without the unequal shares they
    would be for ever.
    """
    torch.manual_seed(0)
    parent = make({**SHAPE, "norm": Norm(placement=placement), "positions": Learned()})
    grown, tokens = grow(parent, width=48, heads=8), distinct(8, 20)
    embedding = grown.embedding.weight
    assert torch.equal(embedding[:, :24], embedding[:, 24:])
    losses = [step(grown, tokens, 0.01) for _ in range(12)]
    assert losses[-1] < losses[0] - 0.05
    for name, weight in grown.named_parameters():
        if weight.ndim == 2:
            for half in weight.chunk(2, 1):
                assert half.isfinite().all()
            first, second = weight.chunk(2, 1)
            assert (first - second).abs().max() > 1e-5, name
    gate, up = grown.blocks[0].feedforward.gate_up.weight.chunk(2)
    for rows in (gate, up, grown.blocks[0].attention.qkv.weight[:48]):
        assert (rows[: len(rows) // 2] - rows[len(rows) // 2 :]).abs().max() > 1e-5


@pytest.mark.parametrize("changes", [{}, {"norm": Norm(placement="sandwich")}, {"norm": Norm("layer", bias=True),
    "attention": Attention(out_bias=True), "feedforward": FeedForward("gelu", bias=True)},
    {"feedforward": MixtureOfExperts(3, 2, shared=1)}], ids=["pre", "sandwich", "biases", "experts"])  # fmt: skip
def test_new_blocks_are_silent_and_learn(changes):
    parent, tokens = make({**SHAPE, **changes}), distinct(4, 16)
    grown = grow(parent, layers=4).train()
    states = [torch.zeros(0)]
    handles = [
        block.register_forward_hook(lambda _, given, out: states.extend((given[0], out[0]))) for block in grown.blocks
    ]
    with torch.no_grad():
        grown(tokens)
    for handle in handles:
        handle.remove()
    moves = [(after - before).abs().max().item() for before, after in zip(states[1::2], states[2::2])]
    assert moves[1] == moves[3] == 0
    assert min(moves[0], moves[2]) > 0.01
    F.cross_entropy(grown(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for layer in (1, 3):
        ends = [(name, p) for name, p in grown.blocks[layer].named_parameters() if not p.any()]
        assert len(ends) >= 2
        for name, parameter in ends:
            assert parameter.grad.abs().max() > 1e-6, name
            assert parameter.grad.abs().max() < 1e3, name


def test_every_layer_keeps_the_pattern_and_kind_of_the_one_it_copies():
    parts = {
        "attention": Attention(patterns=[Window(3), Full()]),
        "feedforward": [FeedForward("relu"), MixtureOfExperts(3, 1)],
    }
    grown = grow(make({**SHAPE, **parts}), layers=5)
    assert grown.patterns == [Window(3)] * 3 + [Full()] * 2
    assert [block.routed for block in grown.blocks] == [False] * 3 + [True] * 2


def test_a_repeated_stack_is_the_parent_twice():
    parent, tokens = make(SHAPE), distinct(2, 9)
    grown = grow(parent, layers=4, depth="stack").eval()
    for layer in range(4):
        for name, weight in grown.blocks[layer].state_dict().items():
            assert torch.equal(weight, parent.blocks[layer % 2].state_dict()[name])
    assert not torch.allclose(grown(tokens), parent(tokens), atol=1e-3), "it promises nothing"


@torch.no_grad()
def test_noise_breaks_the_function_by_as_much_as_it_says():
    parent, tokens = make(SHAPE), distinct(2, 9)
    moved = [(grow(parent, width=48, noise=n).eval()(tokens) - parent(tokens)).abs().mean() for n in (0.0, 1e-4, 1e-2)]
    assert moved[0] < 1e-6 < moved[1] < moved[2] / 10


def test_shares_add_up_and_lie_where_they_should():
    growth = Growth(make(SHAPE), Transformer(**{**SHAPE, "width": 48}), uneven=0.4)
    copies = Copies.of(50, 20)  # some three times, some twice
    shares = growth.read(torch.ones(7, 20, dtype=torch.float64), copies)
    sums = torch.zeros(7, 20, dtype=torch.float64).index_add(1, copies.source, shares)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=1e-12, atol=0)
    counts = torch.bincount(copies.source)[copies.source]
    assert ((shares * counts - 1).abs() < 0.4).all()
    assert (shares * counts - 1).abs().max() > 0.2
    assert shares.std(0).min() > 0.01, "each weight has shares of its own"


def test_a_head_is_copied_with_its_keys():
    growth = Growth(make({**SHAPE, "heads": 6, "kv_heads": 2}), Transformer(**{**SHAPE, "width": 48, "head_width": 4,
        "heads": 24, "kv_heads": 4}), 0.5)  # fmt: skip
    assert growth.kv_heads.source.tolist() == [0, 1, 0, 1]
    assert growth.heads.source.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5] * 2


@torch.no_grad()
def test_the_scale_of_logits_under_mup_is_kept():
    arguments = {**SHAPE, "initialisation": MuP(base_width=12), "scale_embeddings": True}
    tokens = distinct(2, 9)
    for tie in (True, False):
        parent = make({**arguments, "tie_embeddings": tie})
        grown = grow(parent, width=96).eval()
        assert grown.logit_scale == parent.logit_scale / 4
        torch.testing.assert_close(grown(tokens), parent(tokens), rtol=1e-6, atol=1e-6)


def test_from_a_finished_run(tmp_path):
    parent = Transformer(**SHAPE, dropout=0.3)
    directory = tmp_path / "pretrain/tiny/0123456789abcdef"
    directory.mkdir(parents=True)
    models.save(parent, directory)
    outputs = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        for path in directory.iterdir()
    }
    manifest = {"format": 1, "name": "pretrain/tiny", "kind": "train", "fingerprint": directory.name, "inputs": {},
                "status": "finished", "outputs": outputs, "overrides": [], "started": 0.0}  # fmt: skip
    (directory / "manifest.json").write_text(json.dumps(manifest))
    torch.manual_seed(1)
    first = grow(str(directory), width=48, layers=3, dropout=0.0)
    torch.manual_seed(1)
    again = grow(str(directory), width=48, layers=3)
    assert again.arguments["dropout"] == 0.3
    assert first.arguments["dropout"] == 0.0
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters())), "a function of the seed"
    tokens = distinct(2, 9)
    torch.testing.assert_close(first.eval()(tokens), parent.eval()(tokens), rtol=1e-5, atol=1e-5)
    rebuilt = Transformer(**first.arguments).eval()
    rebuilt.load_state_dict(first.state_dict())
    assert torch.equal(rebuilt(tokens), first(tokens))


@pytest.mark.parametrize(
    ("changes", "request_", "match"),
    [
        ({}, {"width": 12}, "model.width=12 is smaller than the parent's 24; a model can only grow"),
        ({}, {"layers": 1}, "model.layers=1 is smaller than the parent's 2"),
        ({}, {"hidden": 19}, "model.hidden=19 is smaller than the parent's 20"),
        (
            {},
            {"width": 36},
            "model.width=36 must be a multiple of the parent's 24, so that each is copied equally often",
        ),
        ({}, {"heads": 6}, "model.heads=6 must be a multiple of the parent's 4"),
        ({"kv_heads": 2}, {"heads": 8, "kv_heads": 8}, "model.heads=8 is 2 times the parent's and model.kv_heads=8 4"),
        ({"positions": ALiBi()}, {"width": 48}, "ALiBi gives heads other slopes when there are more; keep model.heads"),
        ({"positions": Sinusoidal()}, {"width": 48}, "Sinusoidal has no copies of channels; model.width cannot grow"),
        ({"norm": Norm(placement="post")}, {"layers": 4}, "placement=post does something even with silent branches"),
        (
            {},
            {"layers": 3, "depth": "stack"},
            "model.layers=3 must be a multiple of the parent's 2 for model.depth=stack",
        ),
        ({}, {"width": 48, "uneven": 0.0}, "model.uneven=0.0 must lie between 0 and 1, or copies would stay alike"),
        ({}, {"noise": -1.0}, "model.noise=-1.0 must not be negative"),
        ({}, {"depth": "up"}, "model.depth=up must be identity or stack"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changes, request_, match):
    with pytest.raises(UserError, match=match):
        grow(Transformer(**{**SHAPE, **changes}), **request_)


def test_another_family_is_refused():
    with pytest.raises(UserError, match=r"ScalarModel is a reward model, .* only decoders and encoders can be grown"):
        grow(ScalarModel(Transformer(**SHAPE)), width=48)


def test_heads_may_stay_where_their_slopes_must():
    parent, tokens = make({**SHAPE, "positions": ALiBi()}), distinct(2, 9)
    grown = grow(parent, width=48, heads=4).eval()
    torch.testing.assert_close(grown(tokens), parent(tokens), rtol=1e-9, atol=1e-9)


def test_learned_distances_go_with_their_heads():
    parent, tokens = make({**SHAPE, "kv_heads": 2, "positions": Relative(8, 20)}), distinct(2, 20)
    grown = grow(parent, width=48, heads=16, kv_heads=4).eval()
    torch.testing.assert_close(grown(tokens), parent(tokens), rtol=1e-9, atol=1e-9)
