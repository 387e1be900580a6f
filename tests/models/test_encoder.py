"""The encoder: every token sees its whole document and nothing else, padded or packed, with every exchangeable part."""

import itertools
import json

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from test_combinations import CASES, CLOSE, SHAPE, arguments_of, distinct, make
from torch.utils.flop_counter import FlopCounterMode

from athanor import models
from athanor.algorithms.pretraining import Pretraining
from athanor.algorithms.sft import SFT
from athanor.errors import UserError
from athanor.models.attention import Attention
from athanor.models.encoder import Encoder
from athanor.models.heads import ScalarModel
from athanor.models.parts import node
from athanor.models.patterns import Blocks, Strided, Window
from athanor.models.positions import ALiBi, Learned, NoPositions, Relative, Rotary, bucket_of
from athanor.models.transformer import Transformer
from athanor.rollout import generate

LENGTHS = [5, 1, 8]
DOCUMENTS = torch.cat([torch.full((1, n), i) for i, n in enumerate(LENGTHS)], 1)
POSITIONS = torch.cat([torch.arange(n) for n in LENGTHS])[None]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case.values())))
def arguments(request) -> dict:
    return arguments_of(request.param)


@torch.no_grad()
def test_packed_and_padded_documents_are_as_alone(arguments):
    model, tokens = make(arguments, Encoder), distinct(2, 14)
    alone = torch.cat([model(part) for part in tokens.split(LENGTHS, dim=1)], 1)
    packed = model(tokens, documents_BT=DOCUMENTS.expand(2, -1), positions_BT=POSITIONS.expand(2, -1))
    torch.testing.assert_close(packed, alone, **CLOSE)
    whole = model(tokens)
    assert not torch.allclose(packed[:, 6:], whole[:, 6:], atol=1e-3), "the documents do not see each other"
    for fill in (0, 17):
        padded = F.pad(tokens, (0, 3), value=fill)
        found = model(padded, documents_BT=F.pad(torch.zeros_like(tokens), (0, 3), value=-1))
        torch.testing.assert_close(found[:, :14], whole, **CLOSE)


def influence(model: Encoder, tokens: torch.Tensor, **where) -> torch.Tensor:
    """bool [T, S]: whether the state at t depends on the embedding of the token at s."""
    embedded = model.embedding(tokens).detach().requires_grad_()
    handle = model.embedding.register_forward_hook(lambda *_: embedded)
    states = model.hidden_states(tokens, **where)
    handle.remove()
    weight = torch.randn(states.shape[-1], dtype=states.dtype)
    rows = [torch.autograd.grad((states[0, t] @ weight), embedded, retain_graph=True)[0][0].norm(dim=-1)
            for t in range(tokens.shape[1])]  # fmt: skip
    return torch.stack(rows) > 1e-12


@pytest.mark.parametrize("positions", [Rotary(), Learned(), ALiBi(), Relative(), NoPositions()], ids=str)
def test_a_token_sees_all_of_its_document_before_and_after_and_nothing_else(positions):
    model = make({**SHAPE, "positions": positions}, Encoder)
    assert influence(model, distinct(1, 9)).all()
    seen = influence(model, distinct(1, 14), documents_BT=DOCUMENTS, positions_BT=POSITIONS)
    assert torch.equal(seen, DOCUMENTS[0][:, None] == DOCUMENTS[0][None])


@pytest.mark.parametrize(
    ("pattern", "seen"),
    [
        (Window(3), lambda a, b: b - a < 3),
        (Strided(3), lambda a, b: b - a < 3 or (b - a) % 3 == 0),
        (Blocks(4, 2), lambda a, b: a // 4 == b // 4 or a % 4 >= 2),
    ],
    ids=["window", "strided", "blocks"],
)
def test_a_pattern_holds_in_both_directions(pattern, seen):
    model = make({**SHAPE, "layers": 1, "attention": Attention(patterns=[pattern])}, Encoder)
    found = influence(model, distinct(1, 13))
    for t, s in itertools.product(range(13), repeat=2):
        assert bool(found[t, s]) == seen(min(t, s), max(t, s)), (t, s)


@torch.no_grad()
def test_order_and_direction_matter_where_positions_say_them():
    tokens = distinct(1, 9)
    for positions, matters in ((Rotary(), True), (Relative(), True), (ALiBi(), False), (NoPositions(), False)):
        model = make({**SHAPE, "positions": positions}, Encoder)
        mirrored = model(tokens.flip(1)).flip(1)
        assert (not torch.allclose(mirrored, model(tokens), atol=1e-6)) == matters, positions


def test_buckets_are_those_of_t5():
    theirs = pytest.importorskip("transformers.models.t5.modeling_t5").T5Attention._relative_position_bucket
    distances = torch.arange(-2000, 2001)
    for both_ways, (buckets, farthest) in itertools.product(
        (True, False), ((32, 128), (8, 20), (64, 300), (4, 9), (32, 1000))
    ):
        found = bucket_of(distances, buckets, farthest, both_ways)
        assert torch.equal(found, theirs(distances, both_ways, buckets, farthest)), (both_ways, buckets, farthest)
        assert set(found.tolist()) == set(range(buckets)) - ({buckets // 2} if both_ways else set())


def test_every_bucket_of_each_head_is_learnt():
    for kind in (Encoder, Transformer):
        model, tokens = make({**SHAPE, "positions": Relative(8, 20)}, kind), distinct(2, 30)
        (model(tokens) * torch.randn(31)).sum().backward()
        slopes = model.position_bias.weight.grad
        idle = {4} if kind is Encoder else set()  # distance 0 is before
        for bucket in range(8):
            assert (slopes[bucket].abs().min() > 0) == (bucket not in idle), (kind, bucket)


def test_a_training_step_reaches_every_parameter(arguments):
    model, tokens = make(arguments, Encoder).train(), distinct(4, 12)
    model(tokens).logsumexp(-1).sum().backward()
    assert (model.auxiliary_loss() is not None) == any(block.routed for block in model.blocks)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_it_is_written_down_and_built_again(arguments):
    model, tokens = make(arguments, Encoder), distinct(2, 8)
    text = json.dumps({"_target_": "athanor.models.encoder.Encoder", **model.arguments}, default=node)
    again = instantiate(json.loads(text), _convert_="all").double().eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(tokens), model(tokens))


def test_padding_counts_in_no_routers_loss():
    from athanor.models.moe import MixtureOfExperts

    found = []
    for pad in (0, 5):
        model = make({**SHAPE, "feedforward": MixtureOfExperts(4, 2, balance=1.0)}, Encoder).train()
        torch.manual_seed(1)
        tokens = F.pad(distinct(2, 9), (0, pad), value=3)
        documents = F.pad(torch.zeros(2, 9, dtype=torch.long), (0, pad), value=-1)
        model(tokens, documents_BT=documents)
        found.append(model.auxiliary_loss().item())
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_flops_are_those_that_run():
    model = Encoder(vocabulary_size=400, width=64, layers=3, heads=4, context=128, positions=Relative()).eval()
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(torch.zeros(1, 128, dtype=torch.long))
    assert model.flops_per_token(128) == pytest.approx(3 * counter.get_total_flops() / 128, rel=0.005)


def test_what_needs_the_next_token_refuses_an_encoder():
    model = Encoder(**SHAPE)
    for consumer in (
        lambda: SFT(model, None, None), lambda: Pretraining(model, None, None), lambda: ScalarModel(model),
    ):  # fmt: skip
        with pytest.raises(UserError, match="Encoder is an encoder, which fills in tokens and cannot say the next one"):
            consumer()
    with pytest.raises(UserError, match=r"is a decoder, .* model must be an encoder here"):
        models.require_form(Transformer(**SHAPE), "encoder", "model")
    assert not models.generates(model)
    with pytest.raises(UserError, match="fills in tokens"):
        generate(model, [[1, 2]], max_new_tokens=2, stop_id=2, pad_id=0)


@pytest.mark.parametrize("kind", [Transformer, Encoder])
def test_learned_distances_are_learnt_in_bfloat16_too(kind, monkeypatch):
    """Whatever kernel the processor gets: one that makes no gradient of what is added to the scores must not be it."""
    monkeypatch.setattr("athanor.models.cpu_attention.TILES", False)
    model, tokens = kind(**SHAPE, positions=Relative(8, 20)).train(), distinct(2, 30)
    with torch.autocast("cpu", torch.bfloat16):
        (model(tokens).float() * torch.randn(31)).sum().backward()
    assert model.position_bias.weight.grad.abs().max() > 0
