"""The page of a search: how its values fell, what mattered, every trial; and its trials as CSV."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from athanor.report import formats
from athanor.report.frame import fill
from athanor.report.search.drawings import curves, history, slices
from athanor.runs.files import write_atomic

if TYPE_CHECKING:
    from athanor.sweeps.found import Found, Outcome

SAMPLERS = {
    "grid": "every point of a grid",
    "random": "random points",
    "tpe": "a tree-structured Parzen estimator",
    "gp": "a Gaussian process",
    "cmaes": "CMA-ES",
}
PRUNERS = {"none": "Nothing is pruned", "median": "Pruned by the median rule", "hyperband": "Pruned by Hyperband"}


def write(found: Found, folder: Path) -> list[Path]:
    """Write report.html and trials.csv into a folder; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {"report.html": page(found), "trials.csv": table(found)}
    for name, text in made.items():
        write_atomic(folder / name, text)
    return [folder / name for name in made]


def page(found: Found) -> str:
    return fill("search.html", context(found))


def table(found: Found) -> str:
    """Trials as CSV, numbers in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = list(found.search.space)
    writer.writerow(["trial", "state", *keys, found.search.metric.name, "pruned_at", "seconds", "runs", "note"])
    for one in found.outcomes:
        point = [one.point.get(key, "") for key in keys]
        value, at = ("" if one.value is None else one.value), ("" if one.pruned_at is None else one.pruned_at)
        writer.writerow([one.number, one.state, *point, value, at, one.seconds, " ".join(one.runs), one.note])
    return text.getvalue()


def context(found: Found) -> dict[str, Any]:
    search, best = found.search, found.best
    counts = {state: sum(o.state == state for o in found.outcomes) for state in ("complete", "pruned", "fail")}
    open_ = max(search.trials, len(found.outcomes)) - sum(counts.values())
    seconds = sum(outcome.seconds for outcome in found.outcomes)
    figures = [(str(counts["complete"]), "trials complete", f"of {max(search.trials, len(found.outcomes))}")]
    if best:
        spread = f"mean of seeds {formats.series([str(s) for s in search.seeds])}" if len(search.seeds) > 1 else ""
        figures.insert(
            0, (formats.number(best.value, 4), f"best {search.metric.name}", f"trial {best.number} {spread}")
        )
    if search.pruner["name"] != "none":
        saved = [o for o in found.outcomes if o.pruned_at is not None]
        figures.append((str(len(saved)), "pruned", "stopped before their last step"))
    figures.append((formats.duration(seconds), "of computing", "failed attempts included"))
    said = []
    if found.importance:
        first = next(iter(found.importance))
        said.append(("", f"{first} matters most: {100 * found.importance[first]:.0f}% of the importance."))
    if best:
        said += [("remedy", text) for text in _edges(found, best)]
    if counts["fail"]:
        said.append(("bad", f"{counts['fail']} trials failed; the same command begins them again."))
    if open_ > 0:
        said.append(("remedy", f"{open_} trials are yet to end; this page is of what there is."))
    return {
        "search": search,
        "title": search.description.rstrip(".") or search.name,
        "lede": f"{SAMPLERS[search.sampler['name']].capitalize()} over {formats.series(list(search.space))}, "
        f"{search.metric.better} {search.metric.name} being better. {PRUNERS[search.pruner['name']]}.",
        "figures": figures,
        "findings": said,
        "best": best,
        "values": found.values,
        "best_name": found.best_name,
        "best_command": found.best_command if best else "",
        "history": history(found),
        "slices": [(key, found.importance.get(key), svg) for key, svg in slices(found) if svg],
        "curves": curves(found),
        "outcomes": sorted(found.outcomes, key=lambda outcome: _rank(found, outcome)),
    }


def _rank(found: Found, outcome: Outcome) -> tuple[int, float, int]:
    """Complete ones by value, then pruned ones, then the rest."""
    sign = 1 if found.search.metric.better == "lower" else -1
    places = {"complete": 0, "pruned": 1}
    return places.get(outcome.state, 2), sign * (outcome.value or 0.0), outcome.number


def _edges(found: Found, best: Outcome) -> list[str]:
    """What to widen: the best point within a twentieth of a range's end."""
    said = []
    for key, part in found.search.space.items():
        if hasattr(part, "labels"):
            continue
        value = float(best.point[key])
        share = (
            math.log(value / part.low) / math.log(part.high / part.low)
            if part.log
            else (value - part.low) / (part.high - part.low)
        )
        if not 0.05 <= share <= 0.95:
            end = "lower" if share < 0.5 else "upper"
            said.append(f"The best {key}, {value:.4g}, is near the {end} end of its range: the best may lie beyond.")
    return said
