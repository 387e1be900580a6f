"""Every two settings of the architecture together: caching, generation, packing, causality, gradients and sizes."""

import itertools
import json
import random

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from torch.utils.flop_counter import FlopCounterMode

from athanor.models.attention import Attention
from athanor.models.dropout import Dropout
from athanor.models.feedforward import FeedForward
from athanor.models.initialisation import He, MuP, TruncatedNormal, Xavier
from athanor.models.moe import MixtureOfExperts
from athanor.models.norms import Norm
from athanor.models.parts import node
from athanor.models.patterns import Blocks, Full, Strided, Window
from athanor.models.positions import ALiBi, Learned, NoPositions, Relative, Rotary, Sinusoidal
from athanor.models.scaling import Linear, Llama3, NTKAware, YaRN
from athanor.models.transformer import Transformer
from athanor.rollout import pad_left, sample

SHAPE = {"vocabulary_size": 31, "width": 24, "layers": 2, "heads": 4, "context": 64, "hidden": 20}

OPTIONS = {
    "positions": [
        Rotary(), Rotary(theta=100.0, share=0.67), Rotary(scaling=Linear(2.0)), Rotary(scaling=NTKAware(4.0)),
        Rotary(scaling=YaRN(4.0, original_context=16, beta_fast=4.0)),
        Rotary(scaling=Llama3(8.0, original_context=8)), Learned(), Sinusoidal(), ALiBi(), NoPositions(),
        Relative(8, 20),
    ],
    "kind": ["rms", "layer", "layer with bias"],
    "placement": ["pre", "post", "sandwich"],
    "queries_and_keys": [False, True],
    "heads": [(4, 4, None), (4, 2, None), (4, 1, None), (3, 3, 10), (4, 2, 4)],
    "patterns": [
        (), [Window(3)], [Window(4), Full()], [Strided(3)], [Blocks(4, 2)], [Full(), Strided(4)],
        [Window(1), Blocks(3)],
    ],
    "bias": [False, True],
    "out_bias": [False, True],
    "softcap": [None, 2.0],
    "scale": [None, 0.7],
    "feedforward": [
        None, FeedForward("geglu", bias=True), FeedForward("gelu_tanh", bias=True, hidden=12), FeedForward("relu2"),
        MixtureOfExperts(4, 2), MixtureOfExperts(3, 3, hidden=7, gate="sigmoid", shared=1, balance_over="batch"),
        [FeedForward("geglu_tanh"), MixtureOfExperts(5, 1, activation="relu", normalize=False, shared=2, z=0.01)],
    ],
    "tie_embeddings": [True, False],
    "scale_embeddings": [False, True],
    "logit_softcap": [None, 5.0],
    "initialisation": [None, Xavier(), He(), TruncatedNormal(), MuP(base_width=12, base_head_width=3)],
}  # fmt: skip


def every_pair() -> list[dict]:
    """Few choices of one option from each list, in which any two options of two lists occur together."""
    rng, names = random.Random(0), list(OPTIONS)
    wanted = {
        (a, i, b, j)
        for a, b in itertools.combinations(names, 2)
        for i in range(len(OPTIONS[a]))
        for j in range(len(OPTIONS[b]))
    }
    found = []
    while wanted:
        best, most = {}, 0
        a, i, b, j = min(wanted)
        for _ in range(30):
            row = {name: rng.randrange(len(OPTIONS[name])) for name in names} | {a: i, b: j}
            covers = sum((x, row[x], y, row[y]) in wanted for x, y in itertools.combinations(names, 2))
            if covers > most:
                best, most = row, covers
        wanted -= {(x, best[x], y, best[y]) for x, y in itertools.combinations(names, 2)}
        found.append(best)
    return found


def arguments_of(choice: dict) -> dict:
    given = {name: OPTIONS[name][index] for name, index in choice.items()}
    kind = given.pop("kind")
    norm = Norm(kind.split()[0], kind.endswith("bias"), given.pop("placement"), given.pop("queries_and_keys"))
    attention = Attention(*(given.pop(name) for name in ("patterns", "bias", "out_bias", "softcap", "scale")))
    heads, kv_heads, head_width = given.pop("heads")
    return {**SHAPE, "heads": heads, "kv_heads": kv_heads, "head_width": head_width, "norm": norm,
            "attention": attention, **given}  # fmt: skip


CASES = every_pair()


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case.values())))
def arguments(request) -> dict:
    return arguments_of(request.param)


def make(arguments: dict, kind: type = Transformer) -> Transformer:
    """In float64, with weights so large that every token matters to every later one that sees it."""
    torch.manual_seed(3)
    model = kind(**arguments).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 / parameter.std() if parameter.ndim > 1 else 1
            parameter.mul_(scale).add_(0.1 * torch.randn_like(parameter))
    return model


def distinct(rows: int, length: int) -> torch.Tensor:
    return torch.stack([torch.randperm(SHAPE["vocabulary_size"])[:length] for _ in range(rows)])


CLOSE = {"atol": 2e-5, "rtol": 2e-5}


@torch.no_grad()
def test_cached_packed_and_padded_are_the_whole_forward(arguments):
    model, tokens = make(arguments), distinct(3, 14)
    whole = model(tokens)
    cache = model.new_cache(3, 14)
    pieces = [model(piece, cache=cache) for piece in tokens.split([6, 1, 1, 4, 2], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, **CLOSE)

    lengths = [5, 1, 8]
    documents = torch.cat([torch.full((3, n), i) for i, n in enumerate(lengths)], dim=1)
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(3, -1)
    packed = model(tokens, documents_BT=documents, positions_BT=positions)
    alone = torch.cat([model(part) for part in tokens.split(lengths, dim=1)], 1)
    torch.testing.assert_close(packed, alone, **CLOSE)
    assert not torch.allclose(packed[:, 6:], whole[:, 6:], atol=1e-3), "the documents do not see each other"

    later = tokens.clone()
    later[:, 9:] = 30 - later[:, 9:]
    torch.testing.assert_close(model(later)[:, :9], whole[:, :9], **CLOSE)


@torch.no_grad()
def test_generation_is_that_of_a_plain_loop(arguments):
    model, prompts = make(arguments), [[1, 5, 9, 7, 4, 22], [3], [11, 4, 8]]
    tokens_BP, lengths_B = pad_left(prompts, 0)
    found = sample(model, tokens_BP, lengths_B, max_new_tokens=9, stop_id=2, pad_id=0)
    for row, prompt in enumerate(prompts):
        tokens = list(prompt)
        while len(tokens) < len(prompt) + 9 and (len(tokens) == len(prompt) or tokens[-1] != 2):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
        assert found.tokens_BN[row, : found.lengths_B[row]].tolist() == tokens[len(prompt) :]


def test_a_training_step_reaches_every_parameter(arguments):
    model, tokens = make({**arguments, "dropout": Dropout(0.1, 0.1, 0.1, 0.1, 0.1)}).train(), distinct(4, 12)
    loss = F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    extra = model.auxiliary_loss()
    assert (extra is not None) == any(block.routed for block in model.blocks)
    (loss if extra is None else loss + extra).backward()
    for name, parameter in model.named_parameters():
        # a softmax over equal sums: a key's bias, and that of its norm, shifts all scores of a query alike
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_it_is_written_down_and_built_again(arguments):
    model, tokens = make(arguments), distinct(2, 8)
    text = json.dumps({"_target_": "athanor.models.transformer.Transformer", **model.arguments}, default=node)
    again = instantiate(json.loads(text), _convert_="all").double().eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(tokens), model(tokens))
    assert json.dumps(again.arguments, default=node) == json.dumps(model.arguments, default=node)


def test_sizes_by_hand(arguments):
    model = Transformer(**arguments)
    width, heads, kv_heads = 24, arguments["heads"], arguments["kv_heads"]
    channels = arguments["head_width"] or width // heads
    norm, attention = arguments["norm"], arguments["attention"]

    def norm_size(of: int) -> int:
        return of * (2 if norm.bias else 1)

    rows = (heads + 2 * kv_heads) * channels
    shared = rows * width + attention.bias * rows + heads * channels * width + attention.out_bias * width
    shared += norm.queries_and_keys * 2 * norm_size(channels)
    shared += (4 if norm.placement == "sandwich" else 2) * norm_size(width)
    kinds = arguments["feedforward"]
    total = active = 0
    for layer in range(2):
        kind = (kinds[layer] if isinstance(kinds, list) else kinds) or FeedForward()
        hidden = kind.hidden or SHAPE["hidden"]
        matrices = 3 if kind.activation.endswith(("glu", "glu_tanh")) else 2
        one = matrices * width * hidden
        if isinstance(kind, MixtureOfExperts):
            common = kind.experts * width + kind.shared * one
            total, active = total + common + kind.experts * one, active + common + kind.top_k * one
        else:
            one += kind.bias * (width + (matrices - 1) * hidden)
            total, active = total + one, active + one
    table = 31 * width
    rest = 2 * shared + (norm.placement != "post") * norm_size(width)
    places = {Learned: 64 * width, Relative: 8 * heads}.get(type(arguments["positions"]), 0)
    tables = table * (1 if arguments["tie_embeddings"] else 2) + places
    assert sum(p.numel() for p in model.parameters()) == total + rest + tables
    assert model.active_parameters == active + rest + tables

    patterns = attention.patterns or [Full()]
    seen = sum(patterns[layer % len(patterns)].pairs(50) for layer in range(2)) / 50
    expected = 6 * (active + rest + table) + 12 * heads * channels * seen
    assert model.flops_per_token(50) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": Learned(), "norm": Norm("layer", bias=True), "feedforward": FeedForward("gelu", bias=True)},
        {"head_width": 32, "kv_heads": 1, "attention": Attention(softcap=30.0)},
        {"feedforward": MixtureOfExperts(4, 2, hidden=33, shared=1), "tie_embeddings": False},
    ],
    ids=["gpt-2", "wide heads", "experts"],
)
def test_flops_are_those_that_run(changes):
    shape = {"vocabulary_size": 400, "width": 64, "layers": 3, "heads": 4, "context": 128}
    model, tokens = Transformer(**{**shape, **changes}).eval(), torch.zeros(1, 128, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(tokens, mask=torch.ones(1, 1, 128, 128, dtype=torch.bool))
    attention = 4 * 3 * 4 * changes.get("head_width", 16) * 128 * 128
    counted = 3 * (counter.get_total_flops() - attention / 2) / 128
    assert model.flops_per_token(128) == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize(
    "pattern", [Full(), Window(1), Window(5), Window(200), Strided(1), Strided(7), Blocks(8), Blocks(10, 3)], ids=str
)
def test_pairs_of_a_pattern_are_counted(pattern):
    """Up to a share that vanishes with the length: the estimate leaves out terms linear in it."""
    place = torch.arange(160)
    allowed = (
        pattern.allows(place[:, None], place[None, :]).tril() if pattern != Full() else torch.ones(160, 160).tril()
    )
    assert allowed.diagonal().all()
    assert pattern.pairs(160) == pytest.approx(allowed.sum().item(), abs=1.01 * 160)
    assert pattern.reaches(160) == (pattern in (Full(), Window(200)))
    assert all(allowed[n - 1, :n].all() for n in range(1, 161) if pattern.reaches(n))


SEEN = {
    Window(3): [[6, 7, 8], [0, 1]],
    Strided(3): [[2, 5, 6, 7, 8], [0, 1]],
    Blocks(4, 2): [[2, 3, 6, 7, 8], [0, 1]],
    Blocks(3): [[2, 5, 6, 7, 8], [0, 1]],
}


@pytest.mark.parametrize(("pattern", "seen"), SEEN.items(), ids=lambda x: str(x))
def test_what_a_pattern_sees_by_hand(pattern, seen):
    place = torch.arange(9)
    for query, expected in zip((8, 1), seen):
        allowed = pattern.allows(torch.tensor(query), place) & (place <= query)
        assert allowed.nonzero().flatten().tolist() == expected
    model = make({**SHAPE, "layers": 1, "attention": Attention(patterns=[pattern])})
    tokens = distinct(1, 9)
    states = model.hidden_states(tokens)
    for column in range(9):
        other = tokens.clone()
        other[0, column] = (other[0, column] + 1) % 31
        moved = (model.hidden_states(other)[0, 8] - states[0, 8]).abs().max() > 1e-9
        assert bool(moved) == (column in seen[0]), column


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (lambda: {"heads": 5}, "model.width=24 must be an even multiple of model.heads=5, or model.head_width"),
        (lambda: {"heads": 5, "positions": ALiBi()}, "model.width=24 must be a multiple of model.heads=5"),
        (lambda: {"head_width": 5}, "rotates 5, which must be an even number"),
        (lambda: {"positions": Rotary(share=0.2)}, "model.positions.share=0.2 of 6 channels of a head rotates 1"),
        (lambda: {"positions": Rotary(share=1.5)}, r"model.positions.share=1.5 must lie in \(0, 1\]"),
        (lambda: {"positions": Rotary(theta=5.0), "rope_theta": 7.0}, "model.rope_theta=7.0 and model.positions.theta"),
        (lambda: {"positions": Learned(), "rope_theta": 7.0}, "rope_theta=7.0 is of no use with .* Learned"),
        (lambda: {"positions": Sinusoidal(), "width": 27, "heads": 3}, "model.width=27 must be even"),
        (lambda: {"positions": Rotary(scaling=YaRN(2.0, 16))}, "model.context=64 exceeds .*16 times factor=2.0 is 32"),
        (lambda: {"positions": Rotary(scaling=Linear(0.5))}, "scaling.factor=0.5 must be at least 1"),
        (lambda: {"norm": Norm(bias=True)}, "model.norm.bias=true needs model.norm.kind=layer"),
        (lambda: {"norm": Norm(placement="middle")}, "model.norm.placement=middle"),
        (lambda: {"attention": Attention(patterns=[Full()] * 3)}, "model.attention.patterns has 3 entries"),
        (lambda: {"attention": Attention(patterns=[Window(0)])}, "Window.size=0"),
        (lambda: {"attention": Attention(patterns=[Blocks(4, 5)])}, "Blocks.summary=5 must lie between 1 and size=4"),
        (lambda: {"attention": Attention(softcap=0.0)}, "model.attention.softcap=0.0"),
        (lambda: {"attention": Attention(scale=0.0)}, "model.attention.scale=0.0"),
        (lambda: {"positions": Relative(30)}, "model.positions.buckets=30 must be a multiple of 4"),
        (lambda: {"positions": Relative(32, 16)}, "model.positions.farthest=16 must exceed half"),
        (lambda: {"feedforward": MixtureOfExperts(4, 5)}, "top_k=5 exceeds model.feedforward.experts=4"),
        (lambda: {"feedforward": [FeedForward()] * 4}, "model.feedforward has 4 entries, which must divide"),
        (lambda: {"feedforward": []}, "model.feedforward has 0 entries"),
        (lambda: {"feedforward": FeedForward("tanh")}, "model.feedforward.activation=tanh must be one of swiglu"),
        (lambda: {"dropout": Dropout(hidden=1.0)}, "model.dropout.hidden=1.0"),
        (lambda: {"layers": 0}, "model.layers=0 must be at least 1"),
        (lambda: {"kv_heads": 0}, "model.kv_heads=0 must be at least 1"),
        (lambda: {"logit_softcap": -1.0}, "model.logit_softcap=-1.0"),
        (lambda: {"initialisation": MuP(base_width=0)}, "model.initialisation.base_width=0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_built(changes, match, monkeypatch):
    def built(*_, **__):
        raise AssertionError("something was built")

    monkeypatch.setattr(torch.nn, "Embedding", built)
    monkeypatch.setattr(torch.nn, "Linear", built)
    with pytest.raises(ValueError, match=match):
        Transformer(**{**SHAPE, **changes()})
