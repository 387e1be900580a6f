"""Which logged metrics are drawn together, for each kind of training."""

from typing import NamedTuple

from markupsafe import Markup

from athanor.report.charts import Bound, Line, line_chart
from athanor.report.formats import number
from athanor.report.gather import RunView
from athanor.report.story import kl_limit


class Panel(NamedTuple):
    title: str
    unit: str
    svg: Markup
    legend: list[tuple[str, str, str]]  # label, tone, "line" or "marks"
    last: str


class Plan(NamedTuple):
    title: str
    unit: str
    curves: tuple[tuple[str, str, str], ...]  # metric, label, style
    log: bool = False
    zero: bool = False
    bounded: bool = False
    most: float | None = None


TRAIN, VALIDATION = "training", "validation"
LOSS = Plan(
    "Loss", "nats", (("train/loss", TRAIN, "smooth"), ("validation/loss", VALIDATION, "marked")), log=True
)  # fmt: skip
ACCURACY = Plan(
    "Pairs ranked right",
    "share",
    (("train/accuracy", TRAIN, "smooth"), ("validation/accuracy", VALIDATION, "marked")),
    most=1.0,
)
MARGIN = Plan(
    "Margin, chosen over rejected",
    "",
    (("train/margin", TRAIN, "smooth"), ("validation/margin", VALIDATION, "marked")),
    zero=True,
)
REWARD = Plan(
    "Learned reward", "mean score", (("ppo/reward", "rollouts", "smooth"), ("validation/reward", "greedy", "marked"))
)
KL = Plan(
    "KL to the reference",
    "nats a response",
    (("ppo/kl", "rollouts", "smooth"), ("validation/kl", "greedy", "marked")),
    zero=True,
    bounded=True,
)
PLANS = {"reward": (ACCURACY, MARGIN), "dpo": (ACCURACY, MARGIN), "ppo": (REWARD, KL)}
PLAIN = ("lr", "kl_coefficient")


def loss_panel(run: RunView) -> Panel | None:
    return _panel(run, LOSS._replace(unit="") if run.role == "ppo" else LOSS)  # PPO's is no likelihood


def panels(run: RunView) -> list[Panel]:
    """What matters for this kind of training beside its loss."""
    return [made for plan in PLANS.get(run.role, ()) if (made := _panel(run, plan))]


def others(run: RunView, most: int = 18) -> list[Panel]:
    """Everything else that was logged, one metric a panel."""
    used = {metric for plan in (LOSS, *PLANS.get(run.role, ())) for metric, _, _ in plan.curves}
    left = [name for name, (steps, _) in run.metrics.items() if name not in used and len(steps) > 1]
    plans = [
        Plan(name, "", ((name, name, "plain" if name.rsplit("/", 1)[-1] in PLAIN else "smooth"),))
        for name in left[:most]
    ]
    return [made for plan in plans if (made := _panel(run, plan))]


def _panel(run: RunView, plan: Plan) -> Panel | None:
    lines = [
        Line(label, run.role, *run.metrics[metric], style)
        for metric, label, style in plan.curves
        if metric in run.metrics
    ]
    limit = kl_limit(run) if plan.bounded else None
    bound = Bound(f"{limit[0]} {number(limit[1])}", limit[1]) if limit is not None else None
    svg = line_chart(lines, bound=bound, log=plan.log, zero=plan.zero, most=plan.most)
    if not svg:
        return None
    legend = [(line.label, line.tone, "marks" if line.style == "marked" else "line") for line in lines]
    return Panel(plan.title, plan.unit, svg, legend if len(lines) > 1 else [], number(lines[-1].values[-1]))
