"""The tables of an ablation as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from athanor.report import formats
from athanor.report.ablation.story import cost, findings, lede, title

if TYPE_CHECKING:
    from athanor.evaluation.statistics import Interval
    from athanor.sweeps.results import Results
    from athanor.sweeps.statistics import Level

TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "±": r"$\pm$",
    "–": "--",
    "<": "$<$",
    ">": "$>$",
} | {character: f"\\{character}" for character in "&%$#_{}"}
HEADS = (
    "Factor",
    "Level",
    "Seeds",
    "Mean",
    "95% interval",
    "Difference",
    "95% interval",
    "p (Holm)",
    "Effect",
    "Verdict",
)


def _row(level: Level) -> list[str]:
    """The cells of HEADS, as a person reads them."""

    def interval(found: Any, show: Any) -> str:
        return f"{show(found.low)} to {show(found.high)}" if math.isfinite(found.low) else formats.MISSING

    n = len(level.values)
    seeds = f"{n} of {n + len(level.missing)}" if level.missing else str(n)
    own = [level.factor, level.label, seeds, formats.number(level.mean.value, 4), interval(level.mean, four)]
    if level.paired is None:
        return [*own, "", "", "", "", "baseline"]
    found = level.paired
    return [
        *own,
        formats.signed(found.difference.value),
        interval(found.difference, formats.signed),
        formats.p_value(level.p_holm),
        formats.number(found.effect),
        level.verdict,
    ]


def four(value: float) -> str:
    return formats.number(value, 4)


def markdown(results: Results) -> str:
    lines = [f"# {title(results)}", "", lede(results), ""]
    lines += [f"- {finding.text}" for finding in findings(results)]
    lines += ["", f"| {' | '.join(HEADS)} |", f"|{'---|' * len(HEADS)}"]
    lines += [f"| {' | '.join(map(_piped, _row(level)))} |" for level in results.levels]
    if results.also:
        heads = [text for name in results.also for text in (name, "difference")]
        lines += [
            "",
            "Also measured, without a verdict: mean and 95% interval, and the difference to the baseline.",
            "",
        ]
        lines += [f"| Factor | Level | {' | '.join(map(_piped, heads))} |", f"|{'---|' * (2 + len(heads))}"]
        lines += [f"| {' | '.join(map(_piped, row))} |" for row in also_rows(results)]
    seconds = sum(outcome.seconds for outcome in results.outcomes)
    lines += [
        "",
        _small_print(results),
        "",
        f"Computing: {formats.duration(seconds)}.",
        "",
        f"`{results.ablation.command}`",
    ]
    return "\n".join(lines) + "\n"


def also_rows(results: Results) -> list[list[str]]:
    """Of every level: factor, label, and of each further metric mean and difference with their intervals."""
    rows = []
    for levels in zip(*results.also.values()):
        row = [levels[0].factor, levels[0].label]
        for level in levels:
            found = level.paired.difference if level.paired else None
            row += [_with_interval(level.mean, four), _with_interval(found, formats.signed) if found else ""]
        rows.append(row)
    return rows


def _with_interval(found: Interval, show: Callable[[float], str]) -> str:
    return show(found.value) + (f" ({show(found.low)} to {show(found.high)})" if math.isfinite(found.low) else "")


def _piped(cell: str) -> str:
    return cell.replace("|", r"\|")


def table(results: Results) -> str:
    """Levels as CSV, numbers in full."""
    columns = ["factor", "level", "baseline", "seeds", "missing_seeds", "mean", "mean_low", "mean_high", "difference",
               "difference_low", "difference_high", "pairs", "p", "p_holm", "effect", "verdict", "seconds"]  # fmt: skip
    columns += [f"{name}{of}" for name in results.also for of in ("", "_low", "_high", "_difference")]
    rows = []
    for at, level in enumerate(results.levels):
        mean, found = level.mean, level.paired
        row: list[Any] = [level.factor, level.label, int(level.is_baseline), len(level.values)]
        row += [" ".join(map(str, level.missing)), *mean[:3]]
        row += [*found.difference, found.p, level.p_holm, found.effect] if found else [""] * 7
        row += [level.verdict, round(cost(results, level)[0], 3)]
        for other in (levels[at] for levels in results.also.values()):
            row += [*other.mean[:3], other.paired.difference.value if other.paired else ""]
        rows.append(row)
    return _csv(columns, rows)


def members(results: Results) -> str:
    """Members as CSV."""
    factors = list(results.ablation.factors)
    columns = [
        "member",
        *factors,
        "seed",
        "status",
        results.ablation.metric.name,
        *results.also,
        "seconds",
        "run",
        "note",
    ]
    rows = [
        [o.member.number, *o.member.cell, o.member.seed, o.status, "" if o.value is None else o.value,
         *(o.also.get(name, "") for name in results.also),
         round(o.seconds, 3), f"{o.member.target.name}/{o.member.target.fingerprint}", o.note]
        for o in results.outcomes
    ]  # fmt: skip
    return _csv(columns, rows)


def _csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in row])
    return text.getvalue()


def latex(results: Results) -> str:
    """A table for a paper; needs booktabs."""
    heads = ["Factor", "Level", r"$n$", "Mean", r"$\Delta$ to baseline", r"$p_{\mathrm{Holm}}$", "Verdict"]
    lines = [r"% \usepackage{booktabs}", r"\begin{tabular}{llrllrl}", r"\toprule", " & ".join(heads) + r" \\"]
    before = None
    for level in results.levels:
        factor, label, seeds, mean, interval, difference, bounds, p, _, _ = _row(level)
        lines += [r"\midrule"] if level.factor != before else []
        short = "baseline" if level.is_baseline else re.split(r"[;:(]", level.verdict)[0].strip()
        cells = [factor if factor != before else "", label, seeds, _bracketed(mean, interval)]
        cells += [_bracketed(difference, bounds), p, short]
        lines.append(" & ".join(map(_tex, cells)) + r" \\")
        before = level.factor
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *(f"% {x}" for x in [_small_print(results)])]) + "\n"


def _bracketed(value: str, interval: str) -> str:
    return f"{value} [{interval.replace(' to ', ', ')}]" if interval not in ("", formats.MISSING) else value


def _tex(text: str) -> str:
    return "".join(TEX.get(character, character) for character in text)


def _small_print(results: Results) -> str:
    count = sum(not level.is_baseline for level in results.levels)
    return (
        f"{results.ablation.metric.name}, {results.ablation.metric.better} is better. Intervals: 95%, Student's t over "
        f"seeds, not corrected. Differences: to the baseline, paired by seed. p: paired t-test, Holm-corrected over "
        f"{count} {'comparison' if count == 1 else 'comparisons'}. Effect: mean difference in standard deviations of "
        "the difference between seeds, Hedges-corrected."
    )
