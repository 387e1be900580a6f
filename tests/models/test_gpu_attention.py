"""The kernel of GPUs against attention by masks: here by torch's own reference of it, on a GPU by the kernel itself."""

import pytest
import torch
from torch.nn.attention import flex_attention as flex

from athanor.models import gpu_attention
from athanor.models.attention import Attention
from athanor.models.patterns import Blocks, Full, Strided, Window
from athanor.models.positions import ALiBi
from athanor.models.transformer import Transformer

TOKENS = 150  # more than a block of 128, and no multiple of it
FORMS = {
    "documents": {},
    "groups": {"kv_heads": 1},
    "window": {"attention": Attention(patterns=[Window(20), Full()])},
    "strided": {"attention": Attention(patterns=[Strided(7)])},
    "blocks": {"attention": Attention(patterns=[Blocks(16, 2)])},
    "capped": {"attention": Attention(softcap=0.5)},
}


def make(device="cpu", **form):
    torch.manual_seed(3)
    model = Transformer(29, 32, 2, 2, TOKENS, **form)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # so that scores differ and a cap is felt
    return model.to(device)


def rows(packed, device="cpu"):
    torch.manual_seed(5)
    tokens = torch.randint(29, (2, TOKENS), device=device)
    if not packed:
        return tokens, {}
    starts = torch.tensor([[0, 40, 41, 133], [0, 9, 90, 149]], device=device)
    columns = torch.arange(TOKENS, device=device)
    documents = (columns[None, :, None] >= starts[:, None]).sum(-1) - 1
    return tokens, {"documents_BT": documents, "positions_BT": columns - starts.gather(1, documents)}


def states_and_gradients(model, tokens, where, seed=1):
    states = model.hidden_states(tokens, **where)
    torch.manual_seed(seed)
    model.zero_grad()
    (states.float() * torch.randn(states.shape).to(states.device)).sum().backward()
    return states.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.fixture
def by_reference(monkeypatch):
    """Torch refuses to differentiate it on a CPU, though the reference that it differentiates is there."""
    monkeypatch.setattr(gpu_attention, "serves", lambda x, channels, dropout: dropout == 0)
    monkeypatch.setattr(gpu_attention, "compiled", lambda: flex.flex_attention)
    monkeypatch.setattr(flex, "_validate_device", lambda *parts: None)
    made = []
    monkeypatch.setattr(
        gpu_attention, "attend", lambda *parts, real=gpu_attention.attend: made.append(1) or real(*parts)
    )
    return made


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_states_and_gradients_are_those_of_masks(form, packed, monkeypatch, request):
    tokens, where = rows(packed)
    expected = states_and_gradients(make(**FORMS[form]), tokens, where)
    made = request.getfixturevalue("by_reference")
    found = states_and_gradients(make(**FORMS[form]), tokens, where)
    layers = 1 if form == "window" and not packed else 2  # a layer that sees all needs no mask
    assert len(made) == (0 if form in ("documents", "groups") and not packed else layers)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-4)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize(
    "form", [{"positions": ALiBi()}, {"dropout": 0.1}], ids=["a bias of positions", "dropout of attention"]
)
def test_what_the_kernel_cannot_do_goes_by_masks(form, by_reference):
    tokens, where = rows(packed=True)
    make(**form).train().hidden_states(tokens, **where)
    assert not by_reference
    if "dropout" in form:
        with torch.no_grad():
            make(**form).eval().hidden_states(tokens, **where)
        assert by_reference


def test_generation_reads_its_cache_as_before(by_reference):
    model, (tokens, _) = make(attention=Attention(patterns=[Window(20)])).eval(), rows(packed=False)
    with torch.no_grad():
        cache = model.new_cache(2, TOKENS)
        parts = [model.hidden_states(part, cache=cache) for part in tokens.split(50, dim=1)]
        assert not by_reference
        torch.testing.assert_close(torch.cat(parts, 1), model.hidden_states(tokens), rtol=1e-4, atol=1e-4)
        assert by_reference


def test_a_cpu_is_not_served():
    assert not gpu_attention.serves(torch.zeros(1), 64, 0.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_the_kernel_itself(form, packed, monkeypatch):
    """In blocks that are compiled, as in training."""
    tokens, where = rows(packed, "cuda")
    model = make("cuda", **FORMS[form])
    for block in model.blocks:
        block.compile()
    found = states_and_gradients(model, tokens, where)
    monkeypatch.setattr(gpu_attention, "serves", lambda *parts: False)
    expected = states_and_gradients(make("cuda", **FORMS[form]), tokens, where)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-2, atol=1e-2)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=2e-2, atol=2e-2, msg=name)
