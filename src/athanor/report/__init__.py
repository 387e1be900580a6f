"""One self-contained page about a pipeline or some runs: what was made, from what, how well it does, how to redo it.

`write` reads run directories (gather), derives sentences, tables and drawings (story, facts, tables, curves, graph)
and fills page.html (frame). The page loads nothing: style, script and drawings are inside it. All text is escaped.
"""

import os
from pathlib import Path
from typing import Any

from athanor.report import curves, facts, graph, story, tables
from athanor.report.frame import fill
from athanor.report.gather import DATA_ROLES, Gathered, gather


def write(source, path, title: str | None = None) -> Path:
    """Writes the report of `source` to `path` (a file, or a directory in which it becomes report.html).

    Args:
        source: a pipeline's directory, a run directory, a mapping step -> run directory, or an iterable of run
            directories or Run objects; the runs that those were made from are found through their manifests.

    Raises:
        UserError: `source` names no run.
    """
    path = Path(path)
    if path.is_dir() or not path.suffix:
        path = path / "report.html"
    page = render(gather(source, title))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
    return path


def render(gathered: Gathered) -> str:
    """The page as text."""
    return fill("page.html", context(gathered))


def context(gathered: Gathered) -> dict[str, Any]:
    trained, evaluated = gathered.trained, [run for run in gathered.trained if run.evaluations]
    judges = [run for run in evaluated if run.role == "reward"]
    policies = [run for run in evaluated if run.role != "reward"]
    columns, rows = tables.comparison(gathered, policies)
    judge_columns, judge_rows = tables.comparison(gathered, judges)
    sampled, samples = tables.samples(policies)
    if not samples:
        sampled, samples = tables.samples(trained, tables.said_in_training)
    headline_metric = "exact_match" if any(tables.find(run, "exact_match") for run in policies) else None
    return {
        "report": gathered,
        "lede": story.lede(gathered, policies),
        "findings": story.findings(gathered, policies),
        "figures": story.key_figures(gathered, policies, judges),
        "lineage": graph.draw(facts.lineage_nodes(gathered)),
        "columns": columns,
        "rows": rows,
        "judge_columns": judge_columns,
        "judge_rows": judge_rows,
        "baseline": next((row.run for row in rows if row.is_baseline), None),
        "scale": [(row.run, tables.find(row.run, headline_metric)) for row in rows] if headline_metric else [],
        "by_family": tables.breakdown(policies, "exact_match", "family"),
        "by_level": tables.breakdown(policies, "exact_match", "level"),
        "sampled": sampled,
        "samples": samples,
        "losses": [(run, panel) for run in trained if (panel := curves.loss_panel(run))],
        "panels": [(run, panel) for run in trained for panel in curves.panels(run)],
        "diagnoses": [(run, seen) for run in trained if (seen := story.diagnosis(run))],
        "others": [(run, made) for run in trained if (made := curves.others(run))],
        "cleaned": [(run, found) for run in gathered.runs if (found := facts.cleaning_of(run))],
        "tokenizers": [(run, found) for run in gathered.of("tokenizer") if (found := run.read("tokenizer.json"))],
        "shards": [(run, found) for run in gathered.of("shards") if (found := run.read("shards.json"))],
        "times": facts.times(gathered),
        "total_seconds": sum(run.seconds or 0 for run in gathered.runs),
        "environment": facts.environment_of(gathered),
        "languages": tables.LANGUAGES,
        "data_roles": DATA_ROLES,
        "role_names": facts.ROLE_NAMES,
        "verdicts": [(run, found) for run in gathered.runs if (found := run.read("reproduce.json"))],
    }
