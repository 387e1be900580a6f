"""One self-contained page about a pipeline or some runs: what was made, from what, how well it does, how to redo it.

`write` reads run directories (gather), derives tables and drawings (tables, curves, graph) and fills page.html. The
page loads nothing: style, script and drawings are inside it. All text that comes from runs is escaped.
"""

import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from athanor import __version__
from athanor.report import curves, formats, graph, tables
from athanor.report.gather import DATA_ROLES, Gathered, RunView, gather

LANGUAGE_TAGS = {"zh": "zh-Hans"}


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
    environment = Environment(
        loader=PackageLoader("athanor.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("number", "measure", "signed", "whole", "count", "size", "duration", "date", "series", "shorten"):
        environment.filters[name] = getattr(formats, name)
    environment.filters["lang"] = lambda language: LANGUAGE_TAGS.get(language, language or "und")
    folder = Path(__file__).parent
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    context = _context(gathered) | {"style": Markup(style), "script": Markup(script), "version": __version__}
    return environment.get_template("page.html").render(context).strip() + "\n"


def _context(gathered: Gathered) -> dict[str, Any]:
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
        "lede": lede(gathered, policies),
        "findings": tables.findings(gathered, policies),
        "figures": key_figures(gathered, policies, judges),
        "lineage": graph.draw(_nodes(gathered)),
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
        "others": [(run, made) for run in trained if (made := curves.others(run))],
        "cleaned": [(run, found) for run in gathered.runs if (found := cleaning_of(run))],
        "tokenizers": [(run, found) for run in gathered.of("tokenizer") if (found := run.read("tokenizer.json"))],
        "shards": [(run, found) for run in gathered.of("shards") if (found := run.read("shards.json"))],
        "times": times(gathered),
        "total_seconds": sum(run.seconds or 0 for run in gathered.runs),
        "environment": environment_of(gathered),
        "languages": tables.LANGUAGES,
        "data_roles": DATA_ROLES,
        "role_names": ROLE_NAMES,
        "verdicts": [(run, found) for run in gathered.runs if (found := run.read("reproduce.json"))],
    }


def lede(gathered: Gathered, policies: list[RunView]) -> str:
    """What was trained, from what, and the result, in a sentence or two."""
    parts = []
    models = [run for run in gathered.trained if run.role != "reward"] or gathered.trained
    size = next((run.parameters for run in models if run.parameters), None)
    read = [found for run in gathered.of("documents") if (found := cleaning_of(run))]
    documents = sum(found["start"] for found in read)
    if models:
        what = f"A language model of {formats.count(size)} parameters" if size else "A language model"
        of = f" from {documents:,} documents" if documents else ""
        time = formats.duration(sum(run.seconds or 0 for run in gathered.runs))
        stages = formats.series(list(dict.fromkeys(STAGE_WORDS.get(run.role, run.role) for run in gathered.trained)))
        parts.append(f"{what}, made{of} in {time}: {stages}.")
    elif documents:
        parts.append(
            f"{documents:,} documents, prepared in {formats.duration(sum(r.seconds or 0 for r in gathered.runs))}."
        )
    scored = [(run, found) for run in policies if (found := tables.find(run, "exact_match"))]
    if scored:
        best, top = max(scored, key=lambda pair: pair[1]["value"])
        share = formats.measure(top["value"], "fraction")
        sentence = f"{best.label} answers {share} of {top.get('n', 0):,} held-out questions"
        baseline = tables.baseline_of(gathered, best)
        first = next((found for run, found in scored if run.role == "pretraining"), None)
        against = []
        if baseline is not None and baseline is not best and (found := tables.find(baseline, "exact_match")):
            against.append(f"{formats.measure(found['value'], 'fraction')} after {baseline.label} alone")
        if first is not None and best.role != "pretraining":
            against.append(f"{formats.measure(first['value'], 'fraction')} after pretraining")
        parts.append(sentence + (f", against {formats.series(against)}." if against else "."))
    return " ".join(parts)


ROLE_NAMES = {
    "documents": "Documents",
    "tasks": "Tasks",
    "questions": "Questions",
    "tokenizer": "Tokenizer",
    "shards": "Token shards",
    "pretraining": "Pretraining",
    "sft": "SFT",
    "reward": "Reward model",
    "dpo": "DPO",
    "ppo": "PPO",
    "evaluation": "Evaluation",
}
STAGE_WORDS = {
    "pretraining": "pretraining",
    "sft": "supervised fine-tuning",
    "reward": "a reward model",
    "dpo": "DPO",
    "ppo": "PPO",
}


def key_figures(gathered: Gathered, policies: list[RunView], judges: list[RunView]) -> list[tuple[str, str, str]]:
    """(value, what it is, detail) for the top of the page."""
    made = []
    scored = [(run, found) for run in policies if (found := tables.find(run, "exact_match"))]
    if scored:
        best, top = max(scored, key=lambda pair: pair[1]["value"])
        low, high = (formats.measure(top[side], "fraction") for side in ("low", "high"))
        made.append((formats.measure(top["value"], "fraction"), f"exact match, {best.label}", f"{low} to {high}"))
        baseline = tables.baseline_of(gathered, best)
        gap = (
            tables.difference(best, baseline, "exact_match") if baseline is not None and baseline is not best else None
        )
        if gap is not None and baseline is not None:
            low, high = (formats.signed(side, "fraction") for side in gap[1:3])
            made.append((formats.signed(gap.value, "fraction"), f"points over {baseline.label}", f"{low} to {high}"))
    for run in judges[:1]:
        if found := tables.find(run, "preference_accuracy"):
            low, high = (formats.measure(found[side], "fraction") for side in ("low", "high"))
            made.append(
                (formats.measure(found["value"], "fraction"), "pairs the reward model ranks right", f"{low} to {high}")
            )
    for run in gathered.of("ppo")[:1]:
        kl, bound = tables.mean_kl(run), tables.kl_bound(run)
        if kl is not None:
            detail = f"bound {formats.number(bound)}" if bound is not None else "end of training"
            made.append((formats.number(kl, 2), f"nats of KL a response, {run.label}", detail))
    tokens = sum(row["tokens"] or 0 for row in times(gathered))
    if tokens:
        made.append((formats.count(tokens), "tokens trained on", f"{len(gathered.trained)} trainings"))
    made.append(
        (
            formats.duration(sum(run.seconds or 0 for run in gathered.runs)),
            "for all runs together",
            f"{len(gathered.runs)} runs",
        )
    )
    return made


def times(gathered: Gathered) -> list[dict[str, Any]]:
    """Time, steps, tokens and speed of each run."""
    rows = []
    for run in gathered.runs:
        speeds = run.metrics.get("train/tokens_per_second", ([], []))[1]
        speed = sorted(speeds)[len(speeds) // 2] if speeds else None
        steps = max((at[-1] for at, _ in run.metrics.values()), default=None)
        rows.append(
            {
                "run": run,
                "steps": steps,
                "tokens": run.tokens,
                "speed": speed,
                "mfu": run.last("train/mfu"),
                "seconds": run.seconds,
            }
        )
    return rows


def environment_of(gathered: Gathered) -> dict[str, Any]:
    """Where it ran. Facts that differ between the runs are given once each."""

    def distinct(pick) -> list:
        return list(dict.fromkeys(value for run in gathered.runs if (value := pick(run.manifest))))

    def hardware(key: str):
        return lambda manifest: (manifest.get("hardware") or {}).get(key)

    gpus: list[str] = []
    for run in gathered.runs:
        for gpu in (run.manifest.get("hardware") or {}).get("gpus") or []:
            name = gpu.get("name", str(gpu)) if isinstance(gpu, dict) else str(gpu)
            if name not in gpus:
                gpus.append(name)
    facts = [
        ("Processor", [str(v) for v in distinct(hardware("cpu"))]),
        ("Cores", [str(v) for v in distinct(hardware("cores"))]),
        ("Memory", [formats.size(v) if isinstance(v, (int, float)) else str(v) for v in distinct(hardware("memory"))]),
        ("GPU", gpus),
        ("Python", [str(v) for v in distinct(hardware("python"))]),
        ("Platform", [str(v) for v in distinct(hardware("platform"))]),
        ("Commit", [str(v)[:12] for v in distinct(lambda m: (m.get("code") or {}).get("commit"))]),
    ]
    packages: dict[str, dict[str, None]] = {}
    for run in gathered.runs:
        for name, version in (run.manifest.get("packages") or {}).items():
            packages.setdefault(name, {})[str(version)] = None
    return {
        "facts": [(name, values) for name, values in facts if values],
        "packages": [(name, list(versions)) for name, versions in sorted(packages.items())],
        "modified": any((run.manifest.get("code") or {}).get("diff_sha256") for run in gathered.runs),
        "started": min(
            (run.manifest["started"] for run in gathered.runs if run.manifest.get("started")), default=None, key=str
        ),
    }


def cleaning_of(run: RunView) -> dict[str, Any] | None:
    """What cleaning.json of a run says, in lists ready to be shown; None where it has none.

    Returns:
        {"sources": [(name, documents, bytes)], "languages": [(language, documents)], "start", "end",
         "steps": [{"name", "in", "out", "dropped": [(reason, documents, examples)], "counts": [(what, documents)]}]}
    """
    found = run.read("cleaning.json")
    if not isinstance(found, dict):
        return None
    steps = [
        {
            "name": step.get("name", ""),
            "in": step.get("in", 0),
            "out": step.get("out", 0),
            "dropped": [
                (reason, n, [str(text) for text in (step.get("samples") or {}).get(reason) or []])
                for reason, n in sorted((step.get("dropped") or {}).items(), key=lambda pair: -pair[1])
                if n
            ],
            "counts": [(what, n) for what, n in (step.get("counts") or {}).items() if n],
        }
        for step in found.get("steps") or []
    ]
    sources = [(name, s.get("documents"), s.get("bytes")) for name, s in (found.get("sources") or {}).items()]
    languages = [
        (tables.LANGUAGES.get(language, language), n.get("documents") if isinstance(n, dict) else n)
        for language, n in (found.get("languages") or {}).items()
    ]
    start = steps[0]["in"] if steps else sum(documents or 0 for _, documents, _ in sources)
    end = steps[-1]["out"] if steps else start
    return {"sources": sources, "languages": languages, "steps": steps, "start": start, "end": end}


def _nodes(gathered: Gathered) -> list[graph.Node]:
    """Nodes of the lineage: raw files, runs (evaluations as the badge of the model they measured), missing inputs."""
    nodes: dict[str, graph.Node] = {}
    for run in gathered.runs:
        if run.kind == "evaluate" and any(run in other.evaluations for other in gathered.trained):
            continue
        for parent in run.parents:
            if parent.fingerprint in nodes or gathered.find(parent.fingerprint):
                continue
            if parent.kind == "run":
                hint = f"{parent.run_name}/{parent.fingerprint}: not found on this disk"
                nodes[parent.fingerprint] = graph.Node(
                    parent.fingerprint, parent.run_name, parent.fingerprint[:8], "absent", "raw", (), "", hint, "absent"
                )
            else:
                octets = formats.size(sum(file.get("bytes") or 0 for file in parent.files))
                listed = "\n".join(Path(str(file.get("path", ""))).name for file in parent.files[:12])
                more = f"\n… {len(parent.files)} files in all" if len(parent.files) > 12 else ""
                nodes[parent.fingerprint] = graph.Node(
                    parent.fingerprint, parent.name, parent.fingerprint[:8], octets, "raw", (), "", listed + more
                )
        score = tables.find(run, "exact_match") or tables.find(run, "preference_accuracy")
        tone = "data" if run.role in DATA_ROLES else run.role
        hint = f"{run.name}/{run.fingerprint}\n{run.status}, {formats.duration(run.seconds)}"
        nodes[run.fingerprint] = graph.Node(
            key=run.fingerprint,
            name=run.name,
            mark=run.fingerprint[:8],
            note=graph.note(run.seconds),
            tone=tone,
            parents=tuple(parent.fingerprint for parent in run.parents),
            badge=formats.measure(score["value"], score.get("unit")) if score else "",
            hint=hint,
            status=run.status,
        )
    return list(nodes.values())
