"""The pages of the dashboard, each made anew from the files whenever it is asked for."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import yaml
from markupsafe import Markup

from athanor import catalog, report
from athanor.cluster.jobs import end_of
from athanor.dashboard.shelf import Shelf
from athanor.errors import UserError
from athanor.report import facts, graph
from athanor.report.charts import Line, line_chart
from athanor.report.curves import PLAIN
from athanor.report.frame import fill
from athanor.report.gather import Gathered, RunView, gather

HERE = Path(__file__).parent
STATES = ("running", "finished", "interrupted", "failed")
TONES = ("ppo", "sft", "dpo", "reward", "other", "pretraining", "data", "raw")  # of the runs of a comparison, in order
MOST = len(TONES)
FIRST = ("validation/loss", "train/loss")
PANELS = 24
_composing = threading.Lock()  # Hydra composes one config at a time


class Curve(NamedTuple):
    """One metric of several runs."""

    metric: str
    svg: Markup


def overview(shelf: Shelf) -> str:
    rows, broken = shelf.rows()
    jobs, trouble = shelf.jobs()
    sweeps = [("ablation", shelf.sweeps("ablations")), ("search", shelf.sweeps("search"))]
    return _fill(
        "overview.html",
        folder=shelf.root.name,
        rows=rows,
        broken=broken,
        states=[(state, sum(row.status == state for row in rows)) for state in STATES],
        jobs=jobs,
        trouble=trouble,
        pages=[(kind, page) for kind, pages in [("pipeline", shelf.pipelines()), *sweeps] for page in pages],
        saved=list(shelf.saved()),
        role_names=facts.ROLE_NAMES,
        most=MOST,
    )


def run(shelf: Shelf, reference: str) -> str:
    """A run and all that it was made from."""
    runs, _ = shelf.runs()
    if reference not in runs:
        raise UserError(f"there is no run {reference}; it may have been removed")
    view = runs[reference]
    gathered = gather(view.directory, f"{view.name} {view.fingerprint[:8]}")
    log = view.directory / "log.txt"
    attempts = view.manifest.get("attempts")
    return _fill(
        "run.html",
        parent="page.html",
        view=view,
        view_id=reference,
        config=yaml.safe_dump(view.manifest.get("config"), sort_keys=False, allow_unicode=True, width=110),
        attempts=[attempt for attempt in attempts or () if isinstance(attempt, dict)],
        log=end_of(log).strip() if log.is_file() else "",
        nodes=_addresses(gathered, runs),
        **report.context(gathered),
    )


def pipeline(shelf: Shelf, name: str) -> str:
    if name not in [page.name for page in shelf.pipelines()]:
        raise UserError(f"there is no pipeline {name}")
    gathered = gather(shelf.root / "pipelines" / name)
    return _fill(
        "live.html", parent="page.html", nodes=_addresses(gathered, shelf.runs()[0]), **report.context(gathered)
    )


def ablation(shelf: Shelf, name: str) -> str | Path:
    """Its report as it would be now; of one that the project's files no longer describe, the page that was saved."""
    from athanor.report import ablation as shown
    from athanor.sweeps import results

    _known(shelf, "ablations", name)
    found = _sweep("ablations", name, _version())
    if found is None or found.directory.parent.parent.resolve() != shelf.root.resolve():
        return _saved(shelf, f"ablations/{name}/report.html", f"ablation={name}")
    with _composing:
        gathered = results.gather(found)
    return _fill("live.html", parent="ablation.html", nodes={}, **shown.context(gathered))


def search(shelf: Shelf, name: str) -> str | Path:
    from athanor.report import search as shown
    from athanor.sweeps import found as findings
    from athanor.sweeps import trials

    _known(shelf, "search", name)
    found = _sweep("search", name, _version())
    if found is None or found.directory.parent.parent.parent.resolve() != shelf.root.resolve():
        saved = [(path.stat().st_mtime, place) for place, path in shelf.saved().items()]
        places = [place for _, place in sorted(saved) if place.startswith(f"search/{name}/")]
        return _saved(shelf, places[-1] if places else "", f"search={name}")
    with _composing:
        gathered = findings.gather(trials.Trials(found))
    return _fill("live.html", parent="search.html", nodes={}, **shown.context(gathered))


def saved(shelf: Shelf, place: str) -> Path:
    """A page as it was written, by its place in the folder."""
    return _saved(shelf, place, place)


def compare(shelf: Shelf, references: Sequence[str]) -> str:
    """Runs side by side: their curves, their last values, where their science differs, what they were made from."""
    runs, _ = shelf.runs()
    references = list(dict.fromkeys(references))
    if missing := [reference for reference in references if reference not in runs]:
        raise UserError(f"there is no run {missing[0]}; it may have been removed")
    if not 1 <= len(references) <= MOST:
        raise UserError(f"choose between 1 and {MOST} runs to compare, not {len(references)}")
    chosen = [(runs[reference], tone) for reference, tone in zip(references, TONES)]
    gathered = gather([view.directory for view, _ in chosen])
    metrics = [view.manifest.get("metrics") or {} for view, _ in chosen]
    names = list(dict.fromkeys(name for found in metrics for name in found))
    return _fill(
        "compare.html",
        chosen=chosen,
        curves=curves(chosen),
        values=[(name, [found.get(name) for found in metrics]) for name in names],
        differing=differences([view.science for view, _ in chosen]),
        lineage=graph.draw(facts.lineage_nodes(gathered)),
        nodes=_addresses(gathered, runs),
        role_names=facts.ROLE_NAMES,
    )


def curves(chosen: Sequence[tuple[RunView, str]]) -> list[Curve]:
    """A chart for each metric that one of the runs logged twice or more: losses first, then what most runs have."""
    have: dict[str, int] = {}
    for view, _ in chosen:
        for metric, (steps, _values) in view.metrics.items():
            have[metric] = have.get(metric, 0) + (len(steps) > 1)
    order = sorted(
        have, key=lambda metric: (metric not in FIRST, metric in FIRST and FIRST.index(metric), -have[metric])
    )
    made = []
    for metric in [metric for metric in order if have[metric]][:PANELS]:
        lines = [
            Line(label(view), tone, *view.metrics[metric], style(metric))
            for view, tone in chosen
            if metric in view.metrics
        ]
        made.append(Curve(metric, line_chart(lines, log=metric.endswith("loss"))))
    return made


def style(metric: str) -> str:
    seldom = metric.startswith("validation/") or metric.rsplit("/", 1)[-1] in PLAIN
    return "plain" if seldom else "smooth"


def label(view: RunView) -> str:
    return f"{view.name} {view.fingerprint[:6]}"


def differences(sciences: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str | None]]]:
    """Keys of science, dotted, whose values are not the same everywhere; None where there is no such key."""
    flat = [dict(_flat(science)) for science in sciences]
    keys = dict.fromkeys(key for found in flat for key in found)
    rows = [(key, [found.get(key) for found in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _flat(value: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def message(text: str, title: str = "Not here") -> str:
    return _fill("message.html", text=text, title=title)


def address(view: RunView) -> str:
    return f"/run/{quote(view.name)}/{quote(view.fingerprint)}"


def _addresses(gathered: Gathered, runs: Mapping[str, RunView]) -> dict[str, str]:
    """Where the nodes of a lineage lead to, by fingerprint."""
    return {v.fingerprint: address(v) for v in gathered.runs if f"{v.name}/{v.fingerprint}" in runs}


def _fill(template: str, *, parent: str = "frame.html", **context: Any) -> str:
    live = Markup((HERE / "live.js").read_text(encoding="utf-8"))
    shared = {"parent": parent, "live": live, "address": address, "label": label, "nodes": {}, "quote": quote}
    return fill(template, {**shared, "urlencode": urlencode, **context}, HERE)


def _sweep(kind: str, name: str, version: int) -> Any:
    """The ablation or search of a name, or of a name and overrides as its folder has them; None if there is none."""
    with _composing:
        return _composed(kind, name, version)


@lru_cache(maxsize=32)
def _composed(kind: str, name: str, _version: int) -> Any:
    from athanor.sweeps import ablation, search

    load = ablation.load if kind == "ablations" else search.load
    if any(entry.name == f"{kind}/{name}" for entry in catalog.entries("sweep")):
        return load(name)
    if kind != "ablations":
        return None
    name, *given = name.split(",")
    try:
        found = load(name, given)
        return found if found.directory.name == ",".join([name, *given]) else None
    except UserError:  # an override that a folder's name does not hold in full
        return None


def _version() -> int:
    """Changes whenever a config or an experiment does."""
    folders = (catalog.source() / "configs", catalog.source() / "experiments")
    return max((path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")), default=0)


def _known(shelf: Shelf, kind: str, name: str) -> None:
    if name not in (names := [page.name for page in shelf.sweeps(kind)]):
        raise UserError(f"there is no {kind.removesuffix('s')} {name!r}{catalog.suggest(name, names)}")


def _saved(shelf: Shelf, place: str, what: str) -> Path:
    if (path := shelf.saved().get(place)) is None:
        raise UserError(f"no page of {what} is saved, and nothing here says how to make it")
    return path
