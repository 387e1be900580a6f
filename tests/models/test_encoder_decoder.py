"""The encoder-decoder: as transformers' T5, causal in its targets, blind to padding and other documents, and the same
word by word from its cache as in one pass.
"""

import copy
import inspect
import json

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from test_combinations import CASES, CLOSE, SHAPE, arguments_of, distinct, make
from torch.utils.flop_counter import FlopCounterMode

from athanor import models
from athanor.algorithms.dpo import DPO
from athanor.algorithms.sft import SFT
from athanor.batches import IGNORED
from athanor.errors import UserError
from athanor.models.attention import Attention
from athanor.models.dropout import Dropout
from athanor.models.encoder_decoder import EncoderDecoder
from athanor.models.feedforward import FeedForward
from athanor.models.growing import grow
from athanor.models.heads import ScalarModel
from athanor.models.initialisation import MuP
from athanor.models.moe import MixtureOfExperts
from athanor.models.parts import node
from athanor.models.positions import Relative
from athanor.models.transformer import Transformer
from athanor.rollout import generate, pad_left, sample, uniforms


@pytest.fixture(params=CASES[::2], ids=lambda case: "-".join(map(str, case.values())))
def model(request) -> EncoderDecoder:
    return make({**arguments_of(request.param), "encoder_layers": 4}, EncoderDecoder)


def logits(model, sources, targets):
    return model(targets, source=model.encode(sources))


# --- T5 -----------------------------------------------------------------------------------------------------------


def fill(own: dict, layers: list, prefix: str, gated: bool) -> None:
    """Weights of T5's blocks under our names."""
    for number, block in enumerate(layers):
        name, (self_attention, *cross, dense) = f"{prefix}blocks.{number}", block.layer
        attention = self_attention.SelfAttention
        own[f"{name}.attention_norm.weight"] = self_attention.layer_norm.weight
        own[f"{name}.attention.qkv.weight"] = torch.cat([attention.q.weight, attention.k.weight, attention.v.weight])
        own[f"{name}.attention.out.weight"] = attention.o.weight
        for layer in cross:
            attention = layer.EncDecAttention
            own[f"{name}.cross_norm.weight"] = layer.layer_norm.weight
            own[f"{name}.cross.query.weight"] = attention.q.weight
            own[f"{name}.cross.key_value.weight"] = torch.cat([attention.k.weight, attention.v.weight])
            own[f"{name}.cross.out.weight"] = attention.o.weight
        own[f"{name}.feedforward_norm.weight"] = dense.layer_norm.weight
        wide = dense.DenseReluDense
        joined = torch.cat([wide.wi_0.weight, wide.wi_1.weight]) if gated else wide.wi.weight
        own[f"{name}.feedforward.{'gate_up' if gated else 'up'}.weight"] = joined
        own[f"{name}.feedforward.out.weight"] = wide.wo.weight


@pytest.mark.parametrize(("kind", "tied"), [("gated-gelu", False), ("relu", True)])
@torch.no_grad()
def test_it_computes_what_t5_does(kind, tied):
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=40, d_model=24, d_kv=5, d_ff=20, num_layers=3, num_decoder_layers=2, num_heads=4,
        relative_attention_num_buckets=8, relative_attention_max_distance=20, feed_forward_proj=kind,
        tie_word_embeddings=tied, decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.T5ForConditionalGeneration(config).eval()
    for parameter in theirs.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter) / max(1, parameter.ndim - 1) / parameter.shape[-1] ** 0.5)
    gated = kind.startswith("gated")
    ours = EncoderDecoder(
        40, 24, layers=2, heads=4, context=64, encoder_layers=3, hidden=20, head_width=5, norm_eps=1e-6, start=0,
        tie_embeddings=tied, positions=Relative(8, 20), attention=Attention(scale=1.0),
        feedforward=FeedForward("geglu_tanh" if gated else "relu"),
    ).eval()  # fmt: skip
    own = {"embedding.weight": theirs.shared.weight, "encoder.embedding.weight": theirs.shared.weight}
    # a tied T5 scales its states by width^-0.5 before the embedding reads them
    own["norm.weight"] = theirs.decoder.final_layer_norm.weight * (24**-0.5 if tied else 1)
    own["encoder.norm.weight"] = theirs.encoder.final_layer_norm.weight
    for prefix, stack in (("", theirs.decoder), ("encoder.", theirs.encoder)):
        first = stack.block[0].layer[0].SelfAttention
        own[f"{prefix}position_bias.weight"] = first.relative_attention_bias.weight
        fill(own, stack.block, prefix, gated)
    if not tied:
        own["output.weight"] = theirs.lm_head.weight
    ours.load_state_dict(own)
    sources, targets = torch.randint(1, 40, (3, 33)), torch.randint(1, 40, (3, 29))
    lengths = torch.tensor([33, 20, 1])
    valid = torch.arange(33) < lengths[:, None]
    expected = theirs(input_ids=sources, attention_mask=valid.long(), decoder_input_ids=targets).logits
    states = ours.encode(sources, documents_BS=valid.long() - 1)
    found = ours(targets, source=states, source_documents_BS=valid.long() - 1, documents_BT=torch.zeros_like(targets))
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    labels = torch.where(torch.arange(29) < 20, targets, IGNORED)
    theirs_begun = theirs.prepare_decoder_input_ids_from_labels(labels)
    assert torch.equal(ours.begun(labels, torch.arange(29).expand(3, -1))[:, :20], theirs_begun[:, :20])


# --- what is seen ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_target_is_causal_and_reads_the_whole_source(model):
    sources, targets = distinct(2, 9), distinct(2, 11)
    whole = logits(model, sources, targets)
    later = targets.clone()
    later[:, 7:] = 30 - later[:, 7:]
    torch.testing.assert_close(logits(model, sources, later)[:, :7], whole[:, :7], **CLOSE)


def test_causality_and_reading_by_gradients():
    model = make({**SHAPE, "positions": Relative()}, EncoderDecoder)
    sources, targets = distinct(1, 6), distinct(1, 7)
    read = model.embedding(sources).detach().requires_grad_()
    said = model.embedding(targets).detach().requires_grad_()
    given = iter((read, said))
    handle = model.embedding.register_forward_hook(lambda *_: next(given))
    states = model.hidden_states(targets, source=model.encode(sources))
    handle.remove()
    for t in range(7):
        slopes = torch.autograd.grad(states[0, t, 0], (read, said), retain_graph=True)
        assert (slopes[0][0].norm(dim=-1) > 1e-9).all()
        assert ((slopes[1][0].norm(dim=-1) > 1e-9) == (torch.arange(7) <= t)).all()


@torch.no_grad()
def test_packed_and_padded_pairs_are_as_alone(model):
    lengths = [(5, 4), (2, 7), (8, 1)]
    pairs = [(distinct(1, s), distinct(1, t)) for s, t in lengths]
    alone = [logits(model, source, target) for source, target in pairs]

    def row(side: int, pad: int):
        numbers = torch.cat([torch.full((1, pair[side].shape[1]), d) for d, pair in enumerate(pairs)], 1)
        places = torch.cat([torch.arange(pair[side].shape[1])[None] for pair in pairs], 1)
        tokens = torch.cat([pair[side] for pair in pairs], 1)
        return F.pad(tokens, (0, pad), value=7), F.pad(numbers, (0, pad), value=-1), F.pad(places, (0, pad))

    sources, source_documents, source_positions = row(0, 3)
    targets, documents, positions = row(1, 2)
    states = model.encode(sources, documents_BS=source_documents, positions_BS=source_positions)
    packed = model(
        targets, source=states, source_documents_BS=source_documents, documents_BT=documents, positions_BT=positions
    )
    torch.testing.assert_close(packed[:, :12], torch.cat(alone, 1), **CLOSE)
    assert packed.isfinite().all()
    other = sources.clone()
    other[:, :5] = 30 - other[:, :5]
    states = model.encode(other, documents_BS=source_documents, positions_BS=source_positions)
    moved = model(
        targets, source=states, source_documents_BS=source_documents, documents_BT=documents, positions_BT=positions
    )
    assert not torch.allclose(moved[:, :4], packed[:, :4], atol=1e-4), "a target reads its own source"
    torch.testing.assert_close(moved[:, 4:12], packed[:, 4:12], **CLOSE)


# --- generation ------------------------------------------------------------------------------------------------------


def said(model, prompt: list[int], most: int, stop: int = 2) -> list[int]:
    tokens = [model.start]
    while len(tokens) <= most and (len(tokens) == 1 or tokens[-1] != stop):
        tokens.append(int(logits(model, torch.tensor([prompt]), torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[1:]


@torch.no_grad()
def test_generation_is_that_of_a_plain_loop(model):
    prompts = [[1, 5, 9, 7, 4, 22], [3], [11, 4, 8]]
    found = sample(model, *pad_left(prompts, 0), max_new_tokens=9, stop_id=2, pad_id=0)
    for row, prompt in enumerate(prompts):
        assert found.tokens_BN[row, : found.lengths_B[row]].tolist() == said(model, prompt, 9)


@torch.no_grad()
def test_finished_rows_leave_the_cache_and_the_source_is_read_once():
    model, calls = make({**SHAPE, "positions": Relative()}, EncoderDecoder), []
    for block in model.blocks:
        block.cross.key_value.register_forward_hook(lambda *_: calls.append(1))
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(3, 31, (n,), generator=generator).tolist() for n in (3, 9, 1, 5, 7, 2)]
    expected = [said(model, prompt, 12) for prompt in prompts]
    stop = expected[0][3]  # some rows meet it early, so that the others go on without them
    ends = [said(model, prompt, 12, stop) for prompt in prompts]
    assert len({len(answer) for answer in ends}) > 1
    calls.clear()
    found = generate(model, prompts, max_new_tokens=12, stop_id=stop, pad_id=0)
    assert found == [answer[:-1] if answer[-1] == stop else answer for answer in ends]
    assert len(calls) == 2, "one product of keys and values a layer"


@torch.no_grad()
def test_samples_follow_the_distribution_and_do_not_depend_on_their_neighbours():
    model = make(SHAPE, EncoderDecoder)
    tokens, lengths = pad_left([[5, 6, 7]] * 4000, 0)
    drawn = sample(
        model, tokens, lengths, max_new_tokens=1, stop_id=2, pad_id=0, temperature=2.0,
        uniforms_BN=uniforms([(1, i) for i in range(4000)], 1),
    ).tokens_BN[:, 0]  # fmt: skip
    expected = (logits(model, tokens[:1], torch.tensor([[1]]))[0, 0] / 2).softmax(-1)
    torch.testing.assert_close(torch.bincount(drawn, minlength=31) / 4000, expected.float(), atol=0.03, rtol=0)
    alone = generate(model, [[5, 6, 7], [9]], max_new_tokens=6, stop_id=2, pad_id=0, temperature=1.0, batch_size=1)
    together = generate(model, [[5, 6, 7], [9]], max_new_tokens=6, stop_id=2, pad_id=0, temperature=1.0)
    assert alone == together


def test_too_long_for_the_context_is_an_error():
    model = make(SHAPE, EncoderDecoder)
    with pytest.raises(UserError, match="prompt of 65 tokens or 4 new ones exceed the model's context of 64"):
        generate(model, [[5] * 65], max_new_tokens=4, stop_id=2, pad_id=0)
    assert len(generate(model, [[5] * 64], max_new_tokens=64, stop_id=-1, pad_id=0)[0]) == 64


# --- the model as a whole ---------------------------------------------------------------------------------------------


def test_a_training_step_reaches_every_parameter(model):
    model = copy.deepcopy(model).train()
    model.dropout.p = 0.1
    logits(model, distinct(4, 12), distinct(4, 9)).logsumexp(-1).sum().backward()
    routed = [block.routed for block in (*model.blocks, *model.encoder.blocks)]
    assert (model.auxiliary_loss() is not None) == any(routed)
    assert set(model.routing_counts()) == {i for i, r in enumerate([*routed[2:], *routed[:2]]) if r}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_it_is_written_down_and_built_again(model, tmp_path):
    text = json.dumps({"_target_": "athanor.models.encoder_decoder.EncoderDecoder", **model.arguments}, default=node)
    again = instantiate(json.loads(text), _convert_="all").double().eval()
    again.load_state_dict(model.state_dict())
    sources, targets = distinct(2, 8), distinct(2, 5)
    assert torch.equal(logits(again, sources, targets), logits(model, sources, targets))
    models.save(model, tmp_path)  # the shared embedding once
    from safetensors import safe_open

    with safe_open(str(tmp_path / models.WEIGHTS), "pt") as file:
        assert len([name for name in file.keys() if name.endswith("embedding.weight") and "position" not in name]) == 1  # noqa: SIM118


def test_it_takes_every_argument_of_a_transformer():
    ours, theirs = (inspect.signature(kind.__init__).parameters for kind in (EncoderDecoder, Transformer))
    assert [str(p) for p in ours.values()][: len(theirs)] == [str(p) for p in theirs.values()]
    assert list(ours)[len(theirs) :] == ["encoder_layers", "start"]


def test_both_halves_begin_as_their_initialisation_says():
    torch.manual_seed(0)
    settings = {"width": 128, "layers": 4, "encoder_layers": 2, "heads": 8, "tie_embeddings": False}
    model = EncoderDecoder(500, context=8, initialisation=MuP(base_width=32), **settings)
    torch.manual_seed(1)
    model.reset_parameters()
    factors = model.learning_rate_factors
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == 1).all(), name
            assert name not in factors
            continue
        table = name in ("embedding.weight", "output.weight")
        depth = (2 * (2 if name.startswith("encoder") else 4)) ** 0.5 if name.endswith("out.weight") else 1
        assert parameter.std().item() == pytest.approx(0.02 / depth / (1 if table else 2), rel=0.05), name
        assert factors.get(name, 1.0) == (1 if table else 0.25), name


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False, "kv_heads": 2, "encoder_layers": 1}])
def test_flops_are_those_that_run(changes):
    model = EncoderDecoder(400, 64, layers=3, heads=4, context=128, positions=Relative(), **changes).eval()
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        logits(model, torch.zeros(1, 96, dtype=torch.long), torch.zeros(1, 40, dtype=torch.long))
    causal = 4 * 3 * 64 * 40 * 40  # torch counts the whole square
    assert model.flops(96, 40) == pytest.approx(3 * (counter.get_total_flops() - causal / 2), rel=0.01)


def test_dropout_and_experts_work_in_both_halves():
    model = EncoderDecoder(
        **SHAPE, dropout=Dropout(0.2, 0.2, 0.2, 0.2, 0.2), feedforward=MixtureOfExperts(4, 2)
    ).train()
    torch.manual_seed(0)
    sources, targets = distinct(2, 8), distinct(2, 5)
    assert not torch.allclose(logits(model, sources, targets), logits(model, sources, targets))
    assert model.auxiliary_loss().item() > 0
    assert len(model.routing_counts()) == 4


def test_what_continues_a_row_refuses_an_encoder_decoder():
    model = EncoderDecoder(**SHAPE)
    for consumer in (
        lambda: SFT(model, None, None),
        lambda: DPO(Transformer(**SHAPE), None, None, reference=model, beta=0.1),
        lambda: ScalarModel(model),
    ):
        with pytest.raises(UserError, match="is an encoder-decoder, which reads a prompt apart from its answer"):
            consumer()
    with pytest.raises(UserError, match="only decoders and encoders can be grown"):
        grow(model, width=48)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"start": 31}, "model.start=31 must be below model.vocabulary_size=31"),
        ({"encoder_layers": 0}, "model.encoder_layers=0 must be at least 1"),
        ({"heads": 5}, "model.width=24 must be an even multiple of model.heads=5"),
        ({"feedforward": [FeedForward(), FeedForward("relu")], "encoder_layers": 3}, "must divide model.layers=3"),
    ],
)
def test_what_cannot_be_is_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        EncoderDecoder(**{**SHAPE, **changes})
