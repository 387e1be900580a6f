"""What happened besides the results: cleaning, time and speed, the environment, and who was made from whom."""

from pathlib import Path
from typing import Any

from athanor.report import formats, graph
from athanor.report.gather import DATA_ROLES, Gathered, RunView
from athanor.report.tables import LANGUAGES, find

ROLE_NAMES = {
    "documents": "Documents",
    "tasks": "Tasks",
    "questions": "Questions",
    "tokenizer": "Tokenizer",
    "vocabularies": "Vocabulary sweep",
    "shards": "Token shards",
    "pretraining": "Pretraining",
    "sft": "SFT",
    "reward": "Reward model",
    "dpo": "DPO",
    "ppo": "PPO",
    "evaluation": "Evaluation",
}


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
        {"sources": [(name, documents, bytes)], "languages": [(language, documents)], "start", "end", "most",
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
        (LANGUAGES.get(language, language), n.get("documents") if isinstance(n, dict) else n)
        for language, n in (found.get("languages") or {}).items()
    ]
    start = steps[0]["in"] if steps else sum(documents or 0 for _, documents, _ in sources)
    end = steps[-1]["out"] if steps else start
    most = max([start, *(step["out"] for step in steps)], default=start)  # a mixture may repeat documents
    return {"sources": sources, "languages": languages, "steps": steps, "start": start, "end": end, "most": most}


def lineage_nodes(gathered: Gathered) -> list[graph.Node]:
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
        score = find(run, "exact_match") or find(run, "preference_accuracy")
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
