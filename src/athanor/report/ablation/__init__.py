"""The report of an ablation: one self-contained page, and the same tables as Markdown, CSV and LaTeX.

What is said is computed in athanor.sweeps (results, statistics); here it is put into words (story), drawings and text.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from athanor.report.ablation.drawings import forest, panels, toned
from athanor.report.ablation.story import DESIGNS, cost, figures, findings, lede, title
from athanor.report.ablation.text import also_rows, latex, markdown, members, table
from athanor.report.frame import fill
from athanor.runs.files import write_atomic

if TYPE_CHECKING:
    from athanor.sweeps.results import Results


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


def page(results: Results) -> str:
    return fill("ablation.html", context(results))


def context(results: Results) -> dict[str, Any]:
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
        "tones": {(level.factor, level.label): tone for _, levels in by_factor for level, tone in toned(levels)},
        "forests": [(factor, forest(levels)) for factor, levels in by_factor],
        "panels": [panel for factor, levels in by_factor for panel in panels(results, factor, levels)],
        "cells": results.cells,
        "also": [[*row[:2], list(zip(row[2::2], row[3::2]))] for row in also_rows(results)],
        "also_names": list(results.also),
        "outcomes": results.outcomes,
        "costs": [(factor, [(level, cost(results, level)) for level in levels]) for factor, levels in by_factor],
        "seconds": sum(outcome.seconds for outcome in results.outcomes),
        "hardware": sorted({outcome.hardware for outcome in results.outcomes if outcome.hardware}),
        "design": DESIGNS[ablation.design],
        "comparisons": sum(not level.is_baseline for level in results.levels),
        "command": ablation.command,
        "report_command": ablation.command.replace("athanor sweep ", "athanor report ", 1),
    }
