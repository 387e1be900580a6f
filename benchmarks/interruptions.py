"""A training that is interrupted 20 times in a row at random, on the local SLURM: are all samples seen, and each once?

    python benchmarks/interruptions.py [--times 20] [--seed 1]     # ten minutes; needs what slurm/local-cluster needs

Each time it is drawn how (SIGUSR1 to the job; SIGTERM to the job; a job of a higher partition that takes its node) and
when (so many steps, and parts of a second, after it has gone on). Beside the training's own records, a callback writes
down the rows of every batch that a step was made of, in a file to which all attempts add. It is held against the same
training undisturbed. Writes the tally.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks/results/interruptions.md"
sys.path[:0] = [str(REPOSITORY / "tests" / name) for name in ("slurm", "furnace")]

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from slurm_project import (  # noqa: E402
    Cluster,
    Rehearsal,
    attempts,
    begun,
    losses,
    run_of,
    wait_for_step,
    wait_until,
)

STEPS, BATCH = 1500, 8
MOST = 30  # steps until the next interruption
KINDS = {
    "USR1": "SIGUSR1, as before the end of its time",
    "TERM": "SIGTERM to the job",
    "rival": "preempted by a job of a higher partition",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="athanor-")))
    started = cluster("up", "1")
    assert started.returncode == 0, started.stderr
    try:
        tally = measure(cluster, given.times, random.Random(given.seed))
    finally:
        cluster("down")
    text = (
        "# A training interrupted in a row",
        "",
        f"`python benchmarks/interruptions.py --times {given.times} --seed {given.seed}`: {STEPS} steps of {BATCH} "
        "samples, on a SLURM of one node; how and when it is interrupted is drawn. Samples are counted by a callback "
        "that writes down the rows of each batch that a step was made of, in a file to which all attempts add.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {what} | {value} |" for what, value in tally.items()),
        "",
    )
    RESULTS.write_text("\n".join(text))
    print(RESULTS.read_text())


def measure(cluster: Cluster, times: int, chance: random.Random) -> dict[str, object]:
    folder = Path(tempfile.mkdtemp(prefix="athanor-interruptions-"))
    rehearsal = Rehearsal(folder, cluster)
    more = [f"max_steps={STEPS}", "validate_every_n_steps=750", f"global_batch_size={BATCH}",
            "allowed_targets=[counted]", "+callbacks.counted._target_=counted.Counted"]  # fmt: skip
    path = f"{REPOSITORY / 'src'}:{REPOSITORY / 'benchmarks'}"

    def send(name: str) -> tuple[str, Path, Path]:
        runs, seen = folder / name, folder / f"{name}.txt"
        number = rehearsal.sbatch(
            "slurm/train.sbatch", *rehearsal.words(runs, *more), flags=("--partition=low", "--exclusive"),
            COUNTED=str(seen), PYTHONPATH=path,
        )  # fmt: skip
        return number, runs, seen

    began = time.monotonic()
    number, runs, seen = send("disturbed")
    run, at = wait_for_step(runs, 1), 0
    done: list[tuple[str, int]] = []
    for time_ in range(times):
        wait_until(lambda time_=time_: len(attempts(run)) == time_ + 1, 300, f"attempt {time_ + 1}")
        enough = at + chance.randint(1, MOST)
        wait_until(lambda enough=enough: begun(run) >= enough, 300, f"step {enough}")
        time.sleep(chance.random() / 4)
        kind = chance.choice([*KINDS])
        if kind == "rival":
            rehearsal.sbatch("--exclusive", "--wrap=sleep 1")
        else:
            cluster.ask("scancel", f"--signal={kind}", number)
        wait_until(lambda time_=time_: int(cluster.job(number)["Restarts"]) == time_ + 1, 300, f"restart {time_ + 1}")
        at = begun(run)
        done.append((kind, at))
        print(f"{time_ + 1}: {kind} at step {at}, {time.monotonic() - began:.0f} s", flush=True)
    job = cluster.wait(number)
    took = time.monotonic() - began
    assert job["JobState"] == "COMPLETED", rehearsal.said(number)[-3000:]

    other, calm, expected = send("undisturbed")
    assert cluster.wait(other)["JobState"] == "COMPLETED", rehearsal.said(other)[-3000:]
    reference = run_of(calm)
    assert reference is not None
    assert reference.name == run.name, "the same experiment"
    counted, wanted = (file.read_text().splitlines() for file in (seen, expected))
    samples, wanted_samples = ([sample for line in lines for sample in line.split()[1:]] for lines in (counted, wanted))
    again = Counter(line.split()[0] for line in counted)
    weights, right = (load_file(folder / "model.safetensors") for folder in (run, reference))
    return {
        "interruptions": f"{len(done)}: "
        + ", ".join(f"{n} × {KINDS[k]}" for k, n in Counter(k for k, _ in done).items()),
        "at steps": ", ".join(str(step) for _, step in done),
        "attempts in the manifest": f"{len(attempts(run))}, interrupted "
        f"{sum(attempt['status'] == 'interrupted' for attempt in attempts(run))}",
        "samples seen, and by the undisturbed training": f"{len(samples):,} and {len(wanted_samples):,}",
        "the same samples in the same order": samples == wanted_samples,
        "steps lost": STEPS - len(again),
        "steps done twice": sum(n > 1 for n in again.values()),
        "losses in metrics.jsonl the same, each step once": losses(run) == losses(reference)
        and [step for step, _ in losses(run)] == list(range(1, STEPS + 1)),
        "weights torch.equal": all(torch.equal(weights[name], right[name]) for name in right)
        and weights.keys() == right.keys(),
        "minutes, of which most is waiting for SLURM and starting Python": f"{took / 60:.1f}",
    }


if __name__ == "__main__":
    main()
