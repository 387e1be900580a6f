"""A training that is interrupted 20 times in a row at random, on the local SLURM: are all samples seen, and each once?

    python benchmarks/interruptions.py [--times 20] [--seed 1]     # 10 to 20 minutes; needs slurm/local-cluster

The training has two ranks, each on a node of its own. Each time it is drawn how (see KINDS), which of the two, and when
(so many steps, and parts of a second, after it has gone on). Beside the training's own records, a callback writes down
the rows of every batch that a step was made of, in a file for each rank to which all attempts add. It is held against
the same training undisturbed. What is told to stop saves itself and may do no step
again; what is killed, or loses its node, goes on from its last checkpoint, and may do again what came after it, which
is then not in the lineage of the weights. Writes the tally.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import signal
import subprocess
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
    TWO_NODES,
    Cluster,
    Rehearsal,
    attempts,
    begun,
    losses,
    run_of,
    wait_for_step,
    wait_until,
)

STEPS, BATCH, CHECKPOINT = 800, 8, 10
MOST = 20  # steps until the next interruption
KINDS = {
    "power": "a node without power: slurmd and all processes killed",
    "KILL": "SIGKILL of a rank",
    "down": "a node set down",
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
    started = cluster("up", "2")
    assert started.returncode == 0, started.stderr
    try:
        found = measure(cluster, given.times, random.Random(given.seed))
    finally:
        cluster("down")
    text = (
        "# A training interrupted in a row",
        "",
        f"`python benchmarks/interruptions.py --times {given.times} --seed {given.seed}`: {STEPS} steps of {BATCH} "
        f"samples by DDP on two nodes, a checkpoint every {CHECKPOINT}; how, where and when it is interrupted is "
        "drawn. Samples are counted by a callback that writes down the rows of each batch that a step was made of, in "
        "a file for each rank to which all attempts add. The lineage of the weights is what is left of it when every "
        "step that was done again takes the place of the one before, and of what came after that.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {what} | {value} |" for what, value in found.items()),
        "",
    )
    RESULTS.write_text("\n".join(text))
    print(RESULTS.read_text())


def measure(cluster: Cluster, times: int, chance: random.Random) -> dict[str, object]:
    folder = Path(tempfile.mkdtemp(prefix="athanor-interruptions-"))
    rehearsal = Rehearsal(folder, cluster)
    more = [
        *TWO_NODES, f"max_steps={STEPS}", f"validate_every_n_steps={STEPS // 2}", f"global_batch_size={BATCH}",
        f"checkpoint.every_n_steps={CHECKPOINT}", "allowed_targets=[counted]",
        "+callbacks.counted._target_=counted.Counted",
    ]  # fmt: skip
    path = f"{REPOSITORY / 'src'}:{REPOSITORY / 'benchmarks'}"

    def send(name: str) -> tuple[str, Path, Path]:
        runs, seen = folder / name, folder / f"{name}.txt"
        number = rehearsal.sbatch(
            "slurm/train.sbatch", *rehearsal.words(runs, *more), flags=("--nodes=2", "--partition=low", "--exclusive"),
            COUNTED=str(seen), PYTHONPATH=path, ATHANOR_RETRIES=str(times),
        )  # fmt: skip
        return number, runs, seen

    began = time.monotonic()
    number, runs, seen = send("disturbed")
    run, at, known = wait_for_step(runs, 1), 0, 0
    done: list[tuple[str, int]] = []
    for time_ in range(times):
        wait_until(lambda known=known: len(attempts(run)) > known, 300, f"the attempt after {known}")
        enough = at + chance.randint(1, MOST)
        wait_until(lambda enough=enough: begun(run) >= enough, 300, f"step {enough}")
        time.sleep(chance.random() / 4)
        kind = [*KINDS][time_ % len(KINDS)] if time_ < len(KINDS) else chance.choice([*KINDS])  # each at least once
        interrupt(kind, cluster, rehearsal, number, chance.randrange(2))
        at, known = begun(run), len(attempts(run))
        done.append((kind, at))
        print(f"{time_ + 1}: {kind} at step {at}, {time.monotonic() - began:.0f} s", flush=True)
    job = cluster.wait(number)
    assert job["JobState"] == "COMPLETED", rehearsal.said(number)[-3000:]

    other, calm, expected = send("undisturbed")
    assert cluster.wait(other)["JobState"] == "COMPLETED", rehearsal.said(other)[-3000:]
    reference = run_of(calm)
    assert reference is not None
    return tally(run, reference, seen, expected, done)


def tally(run: Path, reference: Path, seen: Path, expected: Path, done: list[tuple[str, int]]) -> dict[str, object]:
    """What came of it, from what both trainings left.

    Args:
        seen, expected: where `counted.Counted` wrote, without the rank.
        done: how it was interrupted, and at which step.
    """
    assert reference.name == run.name, "the same experiment"
    found = [lineage(Path(f"{seen}.{rank}").read_text().splitlines()) for rank in range(2)]
    wanted = [Path(f"{expected}.{rank}").read_text().splitlines() for rank in range(2)]
    kept = Counter(line.split()[0] for final, _ in found for line in final)
    samples, wanted_samples = (
        [sample for lines in ranks for line in lines for sample in line.split()[1:]]
        for ranks in ([final for final, _ in found], wanted)
    )
    again, made = found[0][1], attempts(run)
    told = {after["from_step"] for before, after in itertools.pairwise(made) if saved(before)}
    weights, right = (load_file(folder / "model.safetensors") for folder in (run, reference))
    return {
        "interruptions": f"{len(done)}: "
        + ", ".join(f"{n} × {KINDS[k]}" for k, n in Counter(k for k, _ in done).items()),
        "at steps": ", ".join(f"{step} {kind}" for kind, step in done),
        "attempts in the manifest": f"{len(made)}: {sum(map(saved, made))} saved when told to stop, "
        f"{len(made) - 1 - sum(map(saved, made))} ended without, 1 finished",
        "samples in the lineage, and of the undisturbed training": f"{len(samples):,} and {len(wanted_samples):,}",
        "the same samples in the same order": samples == wanted_samples,
        "steps lost by a rank": sum(kept[str(step)] < 2 for step in range(1, STEPS + 1)),
        "steps twice in the lineage of a rank": sum(n > 2 for n in kept.values()),
        f"steps done again, at most {CHECKPOINT} after a sudden end": f"{sum(n for _, n in again)}: "
        + ", ".join(str(n) for _, n in again),
        "of these after an end that it was told of": sum(n for step, n in again if step - 1 in told),
        "losses in metrics.jsonl the same, each step once": losses(run) == losses(reference)
        and [step for step, _ in losses(run)] == list(range(1, STEPS + 1)),
        "weights torch.equal": all(torch.equal(weights[name], right[name]) for name in right)
        and weights.keys() == right.keys(),
        "minutes, of which most is waiting for SLURM and starting Python": "{:.1f}".format(
            (made[-1]["finished"] - made[0]["started"]) / 60
        ),
    }


def saved(attempt: dict[str, object]) -> bool:
    """Whether an attempt was told to stop and had the time to save itself."""
    return attempt["status"] == "interrupted" and not attempt.get("died")


def interrupt(kind: str, cluster: Cluster, rehearsal: Rehearsal, number: str, rank: int) -> None:
    """End the job's attempt in that way, at that rank if it is one; returns when SLURM has taken it back, and all nodes
    are up.
    """
    node, restarts = f"node{rank + 1}", int(cluster.job(number)["Restarts"])
    if kind == "KILL":  # the job goes on with another task
        for process in cluster.processes(number, rank):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return
    if kind == "rival":
        rehearsal.sbatch("--exclusive", f"--nodelist={node}", "--wrap=sleep 1")
    elif kind == "down":
        cluster.ask("scontrol", "update", f"nodename={node}", "state=down", "reason=rehearsal")
    elif kind == "power":
        cluster.kill_node(node)
    else:
        cluster.ask("scancel", f"--signal={kind}", number)
    wait_until(lambda: int(cluster.job(number)["Restarts"]) == restarts + 1, 300, f"the restart after {kind}")
    if kind == "down":
        with contextlib.suppress(subprocess.CalledProcessError):  # it has come back by itself
            cluster.ask("scontrol", "update", f"nodename={node}", "state=resume")
    elif kind == "power":
        raised = cluster("up", "2")
        assert raised.returncode == 0, raised.stderr


def lineage(counted: list[str]) -> tuple[list[str], list[tuple[int, int]]]:
    """The lines that led to the weights; and of each time that it went back the step, and how many were done again."""
    final: list[str] = []
    again = []
    for line in counted:
        step = int(line.split()[0])
        stale = sum(int(before.split()[0]) >= step for before in final[-2 * CHECKPOINT - MOST :])
        if stale:
            again.append((step, stale))
            del final[-stale:]
        final.append(line)
    return final, again


if __name__ == "__main__":
    main()
