"""The report of an ablation: one self-contained page, and the same tables as Markdown, CSV and LaTeX.

What is said is computed in athanor.sweeps (results, statistics); here it is put into words, drawings and files.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from athanor import __version__
from athanor.report import charts, formats
from athanor.runs.files import write_atomic

if TYPE_CHECKING:
    from athanor.sweeps.results import Results
    from athanor.sweeps.statistics import Level

TONES = ("pretraining", "ppo", "sft", "dpo", "reward", "other")  # the baseline's first; style.css gives them colours
DESIGNS = {
    "one_at_a_time": "one factor at a time",
    "grid": "a full grid, compared by main effects",
    "listed": "listed combinations",
}


class Curve(NamedTuple):
    """A mean over seeds with its 95% interval; bounds are None where there is only one seed."""

    label: str
    tone: str
    steps: list[int]
    means: list[float]
    lows: list[float] | None
    highs: list[float] | None


def write(results: Results, folder: Path) -> list[Path]:
    """Write report.html, report.md, report.csv, members.csv and report.tex into a folder; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {
        "report.html": page(results),
        "report.md": markdown(results),
        "report.csv": table(results),
        "members.csv": members(results),
        "report.tex": latex(results),
    }
    for name, text in made.items():
        write_atomic(folder / name, text)
    return [folder / name for name in made]


# --- the page ---------------------------------------------------------------------------------------------------------


def page(results: Results) -> str:
    environment = Environment(
        loader=PackageLoader("athanor.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("number", "signed", "whole", "duration", "series"):
        environment.filters[name] = getattr(formats, name)
    environment.filters["p"] = p_value
    here = Path(__file__).parent
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    context = _context(results) | {"style": Markup(style), "script": Markup(script), "version": __version__}
    return environment.get_template("ablation.html").render(context).strip() + "\n"


def _context(results: Results) -> dict[str, Any]:
    ablation = results.ablation
    factors = list(dict.fromkeys(level.factor for level in results.levels))
    by_factor = [(factor, [level for level in results.levels if level.factor == factor]) for factor in factors]
    return {
        "ablation": ablation,
        "title": title(results),
        "lede": lede(results),
        "findings": findings(results),
        "figures": figures(results),
        "factors": by_factor,
        "tones": {(level.factor, level.label): tone for _, levels in by_factor for level, tone in _toned(levels)},
        "forests": [(factor, forest(levels)) for factor, levels in by_factor],
        "panels": [panel for factor, levels in by_factor for panel in panels(results, factor, levels)],
        "cells": results.cells,
        "outcomes": results.outcomes,
        "costs": [(factor, [(level, cost(results, level)) for level in levels]) for factor, levels in by_factor],
        "seconds": sum(outcome.seconds for outcome in results.outcomes),
        "hardware": sorted({outcome.hardware for outcome in results.outcomes if outcome.hardware}),
        "design": DESIGNS[ablation.design],
        "comparisons": sum(not level.is_baseline for level in results.levels),
        "command": ablation.command,
        "report_command": ablation.command.replace("athanor sweep ", "athanor report ", 1),
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
    text = (
        f"{factors} of {ablation.base}, {DESIGNS[ablation.design]}, with {seeds} {'seed' if seeds == 1 else 'seeds'}. "
        f"Judged by {ablation.metric.name}; {ablation.metric.better} is better."
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


def p_value(p: float) -> str:
    """Three digits, never 0."""
    if not math.isfinite(p):
        return formats.MISSING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _toned(levels: Sequence[Level]) -> list[tuple[Level, str]]:
    return [
        (level, TONES[at] if at == 0 else TONES[1 + (at - 1) % (len(TONES) - 1)]) for at, level in enumerate(levels)
    ]


# --- drawings ---------------------------------------------------------------------------------------------------------


def forest(levels: Sequence[Level]) -> list[dict[str, Any]]:
    """Of each compared level: where its difference, its interval and zero lie on a common axis, as shares of it."""
    spans = [0.0]
    for level in levels:
        if level.paired and level.paired.difference.n:
            spans += [x for x in level.paired.difference[:3] if math.isfinite(x)]
    low, high = min(spans), max(spans)
    margin = 0.06 * (high - low) or 1.0
    low, high = low - margin, high + margin
    rows = []
    for level, tone in _toned(levels):
        if level.paired is None or not level.paired.difference.n:
            continue
        value, *bounds = ((x - low) / (high - low) if math.isfinite(x) else None for x in level.paired.difference[:3])
        rows.append({"level": level, "tone": tone, "at": value, "low": bounds[0], "high": bounds[1],
                     "zero": -low / (high - low)})  # fmt: skip
    return rows


class Panel(NamedTuple):
    title: str
    unit: str
    svg: Markup
    legend: list[tuple[str, str]]  # label, tone


def panels(results: Results, factor: str, levels: Sequence[Level]) -> list[Panel]:
    """The metric over the training's steps, and the training loss, of every level of a factor."""
    logged = {name for outcome in results.outcomes for name in outcome.curves}
    name = results.ablation.metric.name
    watched = [n for n in dict.fromkeys((name if name in logged else "validation/loss", "train/loss")) if n in logged]
    made = []
    for metric in watched:
        curves = [c for level, tone in _toned(levels) if (c := curve(results, level, metric, tone))]
        if svg := band_chart(curves):
            made.append(Panel(factor, metric, svg, [(c.label, c.tone) for c in curves]))
    return made


def curve(results: Results, level: Level, metric: str, tone: str) -> Curve | None:
    """A level's logged metric; None where no seed has logged it."""
    seeds, points = results.band(level, metric)
    if not points:
        return None
    steps, means = [step for step, _ in points], [mean.value for _, mean in points]
    if seeds < 2:
        return Curve(level.label, tone, steps, means, None, None)
    low = [mean.low if math.isfinite(mean.low) else mean.value for _, mean in points]
    high = [mean.high if math.isfinite(mean.high) else mean.value for _, mean in points]
    return Curve(level.label, tone, steps, means, low, high)


def band_chart(curves: Sequence[Curve]) -> Markup:
    """An SVG of means with their intervals as bands; empty without a curve."""
    if not curves:
        return Markup("")
    xs = [step for c in curves for step in c.steps]
    # The axis follows the means: an interval of two or three seeds may be wider than all that is to be seen.
    ys = [value for c in curves for value in c.means]
    reach = 0.6 * (max(ys) - min(ys))
    bounds = [b for c in curves for side in (c.lows, c.highs) if side for b in side]
    ys += [min(max(bound, min(ys) - reach), max(ys) + reach) for bound in bounds]
    ticks, low, high = charts._scale(min(ys), max(ys), log=False)
    left, right = min(xs), max(max(xs), min(xs) + 1)
    width, height = charts.WIDTH - charts.LEFT - charts.RIGHT, charts.HEIGHT - charts.TOP - charts.BOTTOM

    def px(step: float) -> float:
        return charts.LEFT + (step - left) / (right - left) * width

    def py(value: float) -> float:
        return charts.HEIGHT - charts.BOTTOM - min(1.0, max(0.0, (value - low) / (high - low))) * height

    spoken = "; ".join(f"{c.label}: from {formats.number(c.means[0])} to {formats.number(c.means[-1])}" for c in curves)
    box = f"0 0 {charts.WIDTH} {charts.HEIGHT}"
    parts = [f'<svg class="chart" viewBox="{box}" role="img" aria-label="{escape(spoken)}">']
    for tick in ticks:
        y, end = py(tick), charts.WIDTH - charts.RIGHT
        parts.append(f'<line class="grid" x1="{charts.LEFT}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}"/>')
        where = f'x="{charts.LEFT - 8}" y="{y + 3.5:.1f}" text-anchor="end"'
        parts.append(f'<text class="tick" {where}>{charts._tick(tick)}</text>')
    for step in charts._step_ticks(left, right):
        anchor = "end" if px(step) > charts.WIDTH - charts.RIGHT - 10 else "middle"
        where = f'x="{px(step):.1f}" y="{charts.HEIGHT - 9}" text-anchor="{anchor}"'
        parts.append(f'<text class="tick" {where}>{formats.count(step)}</text>')
    for c in curves:
        if c.lows and c.highs:
            there = [f"{px(x):.1f} {py(y):.1f}" for x, y in zip(c.steps, c.highs)]
            back = [f"{px(x):.1f} {py(y):.1f}" for x, y in zip(reversed(c.steps), reversed(c.lows))]
            parts.append(f'<path class="band tone-{c.tone}" d="M{"L".join(there + back)}Z"/>')
    for c in curves:
        parts.append(f'<path class="line tone-{c.tone}" d="{charts._path(c.steps, c.means, px, py)}"/>')
        at = f'cx="{px(c.steps[-1]):.1f}" cy="{py(c.means[-1]):.1f}" r="3.4"'
        parts.append(f'<circle class="end tone-{c.tone}" {at}/>')
    parts.append("</svg>")
    hover = [
        {
            "label": c.label,
            "tone": c.tone,
            "x": [round(px(x), 1) for x in c.steps],
            "y": [round(py(y), 1) for y in c.means],
            "step": c.steps,
            "value": [formats.number(y) for y in c.means],
        }
        for c in curves
    ]
    data = escape(json.dumps(hover, ensure_ascii=False, separators=(",", ":")))
    return Markup(f'<div class="plot" data-lines="{data}">{"".join(parts)}</div>')


# --- the same as text -------------------------------------------------------------------------------------------------

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
        p_value(level.p_holm),
        formats.number(found.effect),
        level.verdict,
    ]


def four(value: float) -> str:
    return formats.number(value, 4)


def markdown(results: Results) -> str:
    lines = [f"# {title(results)}", "", lede(results), ""]
    lines += [f"- {finding.text}" for finding in findings(results)]
    lines += ["", f"| {' | '.join(HEADS)} |", f"|{'---|' * len(HEADS)}"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in _row(level))} |" for level in results.levels]
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


def table(results: Results) -> str:
    """Levels as CSV, numbers in full."""
    columns = ["factor", "level", "baseline", "seeds", "missing_seeds", "mean", "mean_low", "mean_high", "difference",
               "difference_low", "difference_high", "pairs", "p", "p_holm", "effect", "verdict", "seconds"]  # fmt: skip
    rows = []
    for level in results.levels:
        mean, found = level.mean, level.paired
        row: list[Any] = [level.factor, level.label, int(level.is_baseline), len(level.values)]
        row += [" ".join(map(str, level.missing)), *mean[:3]]
        row += [*found.difference, found.p, level.p_holm, found.effect] if found else [""] * 7
        rows.append([*row, level.verdict, round(cost(results, level)[0], 3)])
    return _csv(columns, rows)


def members(results: Results) -> str:
    """Members as CSV."""
    factors = list(results.ablation.factors)
    columns = ["member", *factors, "seed", "status", results.ablation.metric.name, "seconds", "run", "note"]
    rows = [
        [o.member.number, *o.member.cell, o.member.seed, o.status, "" if o.value is None else o.value,
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
