"""The coordinate check of Yang et al. 2022 (arXiv:2203.03466, appendix D.1): after some steps of Adam no activation has
moved more, or less, because the model is wide. `benchmarks/mup.py` shows what follows: one best rate for all widths.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from athanor.models.initialisation import Initialisation, MuP, ScaledNormal
from athanor.models.norms import Norm
from athanor.models.transformer import Transformer

WIDTHS = (32, 64, 128, 256)


def moved(width: int, kind: Initialisation, **changes) -> dict[str, float]:
    """By name, the root mean square of how far each layer's output has moved after three steps."""
    torch.manual_seed(0)
    model = Transformer(64, width, layers=2, heads=width // 16, context=32, initialisation=kind, **changes)
    factors = model.learning_rate_factors
    groups = [{"params": [p], "lr": 2e-3 * factors.get(name, 1.0)} for name, p in model.named_parameters()]
    optimizer = torch.optim.Adam(groups)
    noise = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 64, (16, 32), generator=noise)
    found: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if name.endswith((".attention", ".feedforward")):
            module.register_forward_hook(lambda _, __, out, name=name: found.update({name: out}))

    def outputs() -> dict[str, torch.Tensor]:
        with torch.no_grad():
            found["logits"] = model(tokens)
        return dict(found)

    before = outputs()
    for _ in range(3):
        loss = F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = outputs()
    return {name: (after[name] - before[name]).square().mean().sqrt().item() for name in before}


def slopes(make, **changes) -> dict[str, float]:
    """Powers of the width with which the moves grow: least squares on logarithms."""
    sizes = [moved(width, make(), **changes) for width in WIDTHS]
    x = torch.log2(torch.tensor(WIDTHS, dtype=torch.float64))
    x = (x - x.mean()) / (x - x.mean()).square().sum()
    return {name: float(sum(a * math.log2(size[name]) for a, size in zip(x, sizes))) for name in sizes[0]}


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False}, {"norm": Norm(queries_and_keys=True)}], ids=str)
def test_no_activation_moves_with_the_width(changes):
    mup, standard = slopes(lambda: MuP(base_width=32), **changes), slopes(ScaledNormal, **changes)
    assert len(mup) == 5
    for name in mup:
        assert abs(mup[name]) < 0.3, name
    assert standard["logits"] > 0.6
    assert all(standard[name] > mup[name] + 0.3 for name in mup)
