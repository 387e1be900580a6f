"""Searches for tests to write."""

from __future__ import annotations

from typing import Any

import yaml

SPACE = {"job.x": {"float": [0.0, 0.9]}, "job.kind": ["flat", "deep"]}


def look_for(project: Any, name: str = "valley", **changed: object) -> Any:
    """Write a search; None leaves a key out."""
    text = {
        "base": "valley/tiny",
        "space": SPACE,
        "metric": {"name": "loss", "better": "lower"},
        "sampler": "random",
        "trials": 4,
    } | changed
    kept = {key: value for key, value in text.items() if value is not None}
    return project.write(
        f"experiments/search/{name}.yaml", "# Where the valley is.\n" + yaml.safe_dump(kept, sort_keys=False)
    )
