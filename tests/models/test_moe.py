"""Experts against a loop over tokens; their losses by hand; no token dropped, no loss left unread."""

import pytest
import torch
import torch.nn.functional as F

from athanor.models import moe
from athanor.models.feedforward import linear_by_group
from athanor.models.heads import ScalarModel
from athanor.models.moe import Experts, MixtureOfExperts
from athanor.models.transformer import UNREAD, Transformer, routing_metrics


def layer(width=8, hidden=16, dtype=torch.float32, **settings) -> Experts:
    torch.manual_seed(0)
    experts = Experts(width, hidden, MixtureOfExperts(**{"experts": 4, "top_k": 2, **settings})).to(dtype)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_(std=0.5)
    return experts


def one_by_one(experts: Experts, x_ND: torch.Tensor) -> torch.Tensor:
    """Every token through each of its experts, alone."""
    settings, rows = experts.settings, []
    for x in x_ND:
        logits = experts.router.weight @ x
        scores = torch.softmax(logits, 0) if settings.gate == "softmax" else torch.sigmoid(logits)
        chosen = sorted(range(settings.experts), key=lambda e: -scores[e].item())[: settings.top_k]
        total = sum(scores[e] for e in chosen) if settings.normalize else 1.0
        out = torch.zeros_like(x)
        for e in chosen:
            up = experts.up[e] @ x
            hidden = F.silu(up[: len(up) // 2]) * up[len(up) // 2 :] if experts.gated else F.relu(up) ** 2
            out = out + settings.scale * scores[e] / total * (experts.out[e] @ hidden)
        rows.append(out if experts.shared is None else out + experts.shared(x))
    return torch.stack(rows)


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"gate": "sigmoid", "scale": 2.5}, {"normalize": False, "top_k": 1}, {"top_k": 4, "shared": 2},
        {"activation": "relu2", "experts": 7, "top_k": 3}, {"width": 5, "hidden": 7},
    ],
    ids=str,
)  # fmt: skip
def test_output_and_gradient_are_those_of_single_tokens(settings):
    """The last case has sizes that a grouped product does not take."""
    experts = layer(**settings).eval()
    x = torch.randn(3, 11, experts.router.in_features, requires_grad=True)
    found, routing = experts(x)
    assert routing is None
    expected = one_by_one(experts, x.flatten(0, 1)).view_as(x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weight, inputs = torch.randn_like(x), [x, *experts.parameters()]
    slopes = [torch.autograd.grad((y * weight).sum(), inputs) for y in (found, expected)]
    for mine, other in zip(*slopes):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_by_group_with_empty_groups(dtype):
    counts = torch.tensor([0, 5, 0, 1, 0])
    x, weight = torch.randn(6, 8, dtype=dtype), torch.randn(5, 12, 8, dtype=dtype)
    expected = torch.cat((x[:5] @ weight[1].T, x[5:] @ weight[3].T))
    torch.testing.assert_close(linear_by_group(x, weight, counts), expected)


def test_all_tokens_may_go_to_one_expert():
    experts = layer(top_k=1)
    with torch.no_grad():
        experts.router.weight.zero_()
        experts.router.weight[2] = 1
    x = torch.rand(2, 50, 8)  # positive, so expert 2 always has the highest score
    found, routing = experts(x)
    torch.testing.assert_close(found, one_by_one(experts, x.flatten(0, 1)).view_as(x), atol=1e-5, rtol=1e-5)
    assert routing.load_E.tolist() == [0, 0, 100, 0]


def by_hand(experts: Experts, x_TD: torch.Tensor) -> tuple[float, float]:
    """Balance and z-loss of one sequence."""
    settings, logits = experts.settings, x_TD @ experts.router.weight.T
    scores = logits.softmax(-1) if settings.gate == "softmax" else logits.sigmoid()
    chosen = [sorted(range(settings.experts), key=lambda e: -row[e].item())[: settings.top_k] for row in scores]
    shares = scores / scores.sum(-1, keepdim=True)
    balance = 0.0
    for e in range(settings.experts):
        used = sum(e in row for row in chosen) / (len(chosen) * settings.top_k)
        balance += settings.experts * used * shares[:, e].mean().item()
    return balance, (logits.exp().sum(-1).log() ** 2).mean().item()


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
def test_losses_by_hand(gate):
    experts, x = layer(gate=gate, balance=0.3, z=0.07), torch.randn(3, 9, 8)
    rows = [by_hand(experts, row) for row in x]
    routing = experts(x)[1]
    balance, z = (sum(values) / 3 for values in zip(*rows))
    assert routing.balance.item() == pytest.approx(balance, rel=1e-5)
    assert routing.z.item() == pytest.approx(z, rel=1e-5)
    assert routing.loss.item() == pytest.approx(0.3 * balance + 0.07 * z, rel=1e-5)
    whole = layer(gate=gate, balance=1.0, balance_over="batch")(x)[1]
    assert whole.balance.item() == pytest.approx(by_hand(experts, x.flatten(0, 1))[0], rel=1e-5)
    assert abs(whole.balance.item() - balance) > 1e-3


def test_padding_does_not_count():
    experts, x = layer(balance=0.3, z=0.07), torch.randn(2, 9, 8)
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[0, 5:] = valid[1, 7:] = False
    routing = experts(x, valid)[1]
    rows = [by_hand(experts, x[0, :5]), by_hand(experts, x[1, :7])]
    assert routing.balance.item() == pytest.approx((rows[0][0] + rows[1][0]) / 2, rel=1e-5)
    assert routing.z.item() == pytest.approx((rows[0][1] + rows[1][1]) / 2, rel=1e-5)
    assert routing.load_E.sum() == 12 * 2


def test_perfect_balance_is_one():
    experts = layer(top_k=1, experts=4, width=8)
    with torch.no_grad():
        experts.router.weight.copy_(torch.eye(4, 8) * 50)
    assert experts(torch.eye(8)[None, :4])[1].balance.item() == pytest.approx(1.0)


def model(**changes) -> Transformer:
    torch.manual_seed(1)
    settings = {"experts": 4, "top_k": 2, "hidden": 16, "balance": 0.5, "z": 0.1, **changes}
    return Transformer(31, width=16, layers=2, heads=2, context=32, feedforward=MixtureOfExperts(**settings))


TOKENS = torch.randint(0, 31, (4, 12), generator=torch.Generator().manual_seed(3))


def test_the_models_loss_does_not_depend_on_the_split_of_a_batch():
    """Its value and its gradient: the mean over micro-batches of equally many rows is that of the whole."""
    whole = model().train()
    whole(TOKENS)
    loss = whole.auxiliary_loss()
    loss.backward()
    assert whole.blocks[0].feedforward.router.weight.grad.norm() > 0
    split = model().train()
    losses = []
    for part in TOKENS.split(2):
        split(part)
        losses.append(split.auxiliary_loss())
    (sum(losses) / 2).backward()
    assert loss.item() == pytest.approx(sum(losses).item() / 2, rel=1e-5)
    for mine, other in zip(whole.parameters(), split.parameters()):
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, atol=1e-6, rtol=1e-4)


def test_two_passes_before_the_loss_is_read_are_averaged():
    network = model().train()
    losses = []
    for part in TOKENS.split(2):
        network(part)
        losses.append(network.auxiliary_loss().item())
    network(TOKENS[:2])
    network(TOKENS[2:])
    assert network.auxiliary_loss().item() == pytest.approx(sum(losses) / 2, rel=1e-6)
    assert network.auxiliary_loss() is None


def test_only_training_passes_leave_a_loss():
    network = model()
    network.eval()(TOKENS)
    with torch.no_grad():
        network.train()(TOKENS)
    assert network.auxiliary_loss() is None
    assert network.routing_counts() == {}


def test_a_loss_that_no_one_reads_is_an_error():
    network = model().train()
    for _ in range(UNREAD):
        network(TOKENS[:1, :2])
    with pytest.raises(RuntimeError, match="no one has asked for their auxiliary_loss"):
        network(TOKENS[:1, :2])


def test_the_load_is_counted_over_passes():
    network = model(top_k=1).train()
    found = []
    for part in TOKENS.split(2):
        network(part)
        found.append(network.routing_counts())
    network(TOKENS[:2])
    network(TOKENS[2:])
    both = network.routing_counts()
    assert both.keys() == {0, 1}
    for place in both:
        torch.testing.assert_close(both[place], found[0][place] + found[1][place])
        assert both[place][3:].sum() == TOKENS.numel()
    metrics = routing_metrics({1: torch.tensor([3.0, 5.0, 2.0, 6.0, 2.0, 0.0, 0.0])})
    assert metrics == {"moe/balance": 1.5, "moe/z": 2.5, "moe/fullest": 3.0, "moe/load/1/0": 0.75,
                       "moe/load/1/1": 0.25, "moe/load/1/2": 0.0, "moe/load/1/3": 0.0}  # fmt: skip
    assert routing_metrics({}) == {}


def test_the_balance_loss_balances():
    """From a router that sends everything to one expert, only the loss leads away."""

    def fullest(balance: float) -> float:
        network = model(balance=balance, z=0.0, top_k=1).train()
        with torch.no_grad():
            network.embedding.weight += 0.05  # what all tokens have in common, and expert 0 asks for
            for block in network.blocks:
                block.feedforward.router.weight[0] += 0.1
        optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
        for _ in range(40):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(TOKENS)[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
            (loss + network.auxiliary_loss()).backward()
            optimizer.step()
        network.routing_counts()
        network(TOKENS)
        return routing_metrics(network.routing_counts())["moe/fullest"]

    assert fullest(1.0) < 2 < 2.5 < fullest(0.0)


def test_a_scalar_model_passes_its_trunks_loss_on():
    reward = ScalarModel(model()).train()
    reward(TOKENS)
    assert reward.auxiliary_loss().item() > 0
    assert set(reward.routing_counts()) == {0, 1}


def test_autocast_computes_experts_low_and_the_router_in_float32(monkeypatch):
    experts, x = layer(), torch.randn(2, 6, 8)
    seen = []
    monkeypatch.setattr(moe, "linear_by_group", lambda x, *rest: seen.append(x.dtype) or linear_by_group(x, *rest))
    exact, _ = experts(x)
    with torch.autocast("cpu", torch.bfloat16):
        found, routing = experts(x)
        assert experts.scores(x.flatten(0, 1))[0].dtype == torch.float32
    assert seen == [torch.float32] * 2 + [torch.bfloat16] * 2
    assert routing.loss.dtype == torch.float32
    torch.testing.assert_close(found.float(), exact, atol=0.1, rtol=0.1)
