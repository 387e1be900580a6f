"""Ablations for tests to write."""

from __future__ import annotations

from typing import Any

import yaml

FACTORS = {"job.size": [1.0, 2.0], "mode": {"plain": [], "bold": ["+job.mode=bold"]}}
SMALL = {"factors": {"job.size": [1.0, 2.0]}, "seeds": [1]}  # two members, where each is a process


def ablate(project: Any, name: str = "size", **changed: object) -> Any:
    """Write an ablation; None leaves a key out."""
    text = {
        "base": "guess/tiny",
        "factors": FACTORS,
        "seeds": [1, 2],
        "metric": {"name": "loss", "better": "lower"},
    } | changed
    kept = {key: value for key, value in text.items() if value is not None}
    return project.write(
        f"experiments/ablations/{name}.yaml", "# Which size.\n" + yaml.safe_dump(kept, sort_keys=False)
    )
