"""What the demo learns, over seeds: exact match on held-out questions, paired differences, reward accuracy, PPO's KL.

    .venv/bin/python benchmarks/learning.py [key=value ...] [--seeds 1 2 3]

Runs the pipelines `demo` and `demo-control` with `seed=N` for each seed, finished runs skipped, and reads the results.
`seed` reaches every training; the generated questions and their held-out split stay those of `tasks/demo`. Settings are
chosen on `development.jsonl`, never on the held-out questions that this reports.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from athanor import catalog, pipeline
from athanor.evaluation.statistics import Interval, interval, paired_difference

PIPELINES = ("pipelines/demo", "pipelines/demo-control")
BASELINES = ("sft", "control")


def results(directory: Path) -> dict[str, dict]:
    """model -> results.json of each evaluation step of a pipeline."""
    steps = json.loads((directory / "pipeline.json").read_text("utf-8"))["steps"]
    return {
        step.removeprefix("evaluate_"): json.loads((directory / run / "results.json").read_text("utf-8"))
        for step, run in steps.items()
        if step.startswith("evaluate_")
    }


def figure(name: str, value: float | Interval) -> None:
    if isinstance(value, float):
        print(f"FIGURE {name} {value:.4f}")
    else:
        print(f"FIGURE {name} {value.value:.4f}  (95% interval {value.low:.4f} to {value.high:.4f}, n={value.n})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        overrides = [*([f"seed={seed}"] if seed != 1 else []), *arguments.overrides]
        started = time.perf_counter()
        measured: dict[str, dict] = {}
        for name in PIPELINES:
            command = [sys.executable, "-m", "athanor", "pipeline", f"experiment={name}", *overrides]
            subprocess.run(command, check=True, cwd=catalog.project())
            measured |= results(pipeline.load(name, overrides).directory)
        print(f"FIGURE seed{seed}_seconds {time.perf_counter() - started:.1f}")
        answers = {
            step: found["per_item"]["exact_match"]
            for step, found in measured.items()
            if "exact_match" in found["per_item"]
        }
        for step, mine in answers.items():
            figure(f"seed{seed}_{step}_exact_match", interval(mine["values"]))
            for name in BASELINES:
                base = answers[name]
                assert mine["ids"] == base["ids"]
                if step != name:
                    figure(
                        f"seed{seed}_{step}_exact_match_minus_{name}", paired_difference(mine["values"], base["values"])
                    )
        for step, found in measured.items():
            for record in found["metrics"]:
                if not record["slice"] and record["name"] != "exact_match":
                    figure(f"seed{seed}_{step}_{record['name']}", record["value"])


if __name__ == "__main__":
    main()
