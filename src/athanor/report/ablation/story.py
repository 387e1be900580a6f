"""What an ablation says, in words and single figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from athanor.report import formats

if TYPE_CHECKING:
    from athanor.sweeps.results import Results
    from athanor.sweeps.statistics import Level

DESIGNS = {
    "one_at_a_time": "one factor at a time",
    "grid": "a full grid, compared by main effects",
    "listed": "listed combinations",
}


def title(results: Results) -> str:
    """The ablation's own sentence, else its name."""
    return results.ablation.description.rstrip(".") or results.ablation.name


def lede(results: Results) -> str:
    """What was varied, how often, and by what it is judged."""
    ablation = results.ablation
    done = sum(outcome.value is not None for outcome in results.outcomes)
    seeds = len(ablation.seeds)
    factors = formats.series([f"{factor} ({len(levels)} levels)" for factor, levels in ablation.factors.items()])
    changed = f" with {', '.join(ablation.overrides)}" if ablation.overrides else ""
    measured = f" as {ablation.measure['experiment']} measures it" if ablation.measure else ""
    of = "" if not ablation.seed_inputs else ", each of the trainings it starts from, too"
    text = (
        f"{factors} of {ablation.base}{changed}; {DESIGNS[ablation.design]}; {seeds} "
        f"{'seed' if seeds == 1 else 'seeds'}{of}. Judged by {ablation.metric.name}{measured}; "
        f"{ablation.metric.better} is better."
    )
    left = len(results.outcomes) - done
    if left:
        text += f" {left} of {len(results.outcomes)} members {'has' if left == 1 else 'have'} no value yet."
    return text


class Finding(NamedTuple):
    text: str
    tone: str


def findings(results: Results) -> list[Finding]:
    """A sentence for each comparison, what is clear first; then what went wrong."""
    compared = [level for level in results.levels if not level.is_baseline]
    compared.sort(key=lambda level: {"good": 0, "bad": 1}.get(level.tone, 2))
    found = []
    for level in compared:
        name = level.label if level.factor == "combination" else f"{level.factor} {level.label}"
        assert level.paired is not None
        difference = level.paired.difference
        shown = f", {formats.signed(difference.value)} to the baseline" if level.tone else ""
        found.append(Finding(f"{name}: {level.verdict}{shown}.", level.tone))
    diverged = [outcome for outcome in results.outcomes if outcome.status == "finished" and outcome.value is None]
    if diverged:
        names = "; ".join(outcome.member.title for outcome in diverged)
        found.append(Finding(f"Without a finite value, and left out of every mean: {names}. Mind that a level whose "
                             "failures are left out looks better than it is.", "bad"))  # fmt: skip
    if failed := [outcome for outcome in results.outcomes if outcome.status == "failed"]:
        found.append(Finding(f"Failed: {'; '.join(outcome.member.title for outcome in failed)}.", "bad"))
    return found


def figures(results: Results) -> list[tuple[str, str, str]]:
    """(value, what, detail) for the masthead."""
    outcomes = results.outcomes
    done = sum(outcome.value is not None for outcome in outcomes)
    made = [
        (f"{done} of {len(outcomes)}", "members measured", f"{len(results.ablation.cells)} for each seed"),
        (str(len(results.ablation.seeds)), "seeds", ", ".join(map(str, results.ablation.seeds))),
    ]
    if best := best_of(results):
        made.append((formats.number(best.mean.value), "best mean", f"{best.factor} {best.label}"))
    seconds = sum(outcome.seconds for outcome in outcomes)
    if done:
        made.append((formats.duration(seconds), "of computing", f"{formats.duration(seconds / done)} a member"))
    return made


def best_of(results: Results) -> Level | None:
    """The level of the best mean among those with a value for every seed."""
    whole = [level for level in results.levels if level.values and not level.missing]
    sign = 1 if results.ablation.metric.better == "lower" else -1
    return min(whole, key=lambda level: sign * level.mean.value, default=None)


def cost(results: Results, level: Level) -> tuple[float, float | None]:
    """Seconds of a level's members, all together and for one that has its value."""
    own = results.of(level)
    done = [outcome.seconds for outcome in own if outcome.value is not None]
    return sum(outcome.seconds for outcome in own), (sum(done) / len(done) if done else None)
