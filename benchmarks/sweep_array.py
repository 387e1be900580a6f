"""An ablation of 24 members as one array `%4` on the local SLURM, three members SIGKILLed, nobody watching.

    python benchmarks/sweep_array.py      # some minutes; needs what slurm/local-cluster needs; writes the tally

Members are the light jobs of tests/slurm/array_jobs.py (40 steps of a tenth of a second, saved at each), so what is
measured is the machinery: what is sent, killed, begun again, reported, and not sent twice.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks/results/sweep-array.md"
sys.path[:0] = [str(REPOSITORY / "tests" / name) for name in ("slurm", "furnace")]

from array_project import Bench  # noqa: E402
from slurm_project import Cluster, wait_until  # noqa: E402

KILLED = (2, 11, 24)  # one of the first, one of the middle, and the last, whose job has the whole array's number


def main() -> None:
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="athanor-")))
    started = cluster("up", "2")
    assert started.returncode == 0, started.stderr
    try:
        tally = measure(cluster)
    finally:
        cluster("down")
    lines = [f"| {what} | {value} |" for what, value in tally.items()]
    RESULTS.write_text(
        "\n".join(
            (
                "# An ablation as a job array",
                "",
                "`python benchmarks/sweep_array.py`: 8 sizes, 3 seeds, `--at-once 4`, on a SLURM of two nodes that "
                "share two busy cores. Members are light jobs, not trainings.",
                "",
                "| | |",
                "|---|---|",
                *lines,
                "",
            )
        )
    )
    print(RESULTS.read_text())


def measure(cluster: Cluster) -> dict[str, object]:
    bench = Bench(Path(tempfile.mkdtemp(prefix="athanor-sweep-")), cluster, sizes=8, seeds=3)
    began = time.monotonic()
    sent = bench.submit("--at-once", "4")  # a process that has ended before the first member begins
    assert sent.code == 0, sent.err
    numbers = {key: number for number, key in re.findall(r"^job (\d+)\S* +(\w+)$", sent.out, re.MULTILINE)}
    array, most = numbers["members"], 0
    before = {}
    for number in KILLED:
        wait_until(lambda number=number: bench.step(number) >= 3, 1200, f"member {number}")
        most = max(most, len(cluster.ask("squeue", "--noheader", "--states=R", f"--jobs={array}").splitlines()))
        before[number] = bench.step(number)
        bench.kill(f"{array}_{number}")
    wait_until(lambda: not cluster.ask("squeue", "--noheader", f"--jobs={numbers['report']}"), 1200, "the report")
    took = time.monotonic() - began

    begun = Counter(line[-1] for line in bench.executions if line[0] != "data")
    from_step = {number: [int(line[1]) for line in bench.executions if line[-1] == str(number)] for number in KILLED}
    rows = (bench.runs / "ablations/size/members.csv").read_text().splitlines()[1:]
    right = sum(f",{size + seed / 10 + 0.25:g}" in row for row, (seed, size) in zip(
        rows, ((seed, size) for seed in range(1, 4) for size in range(1, 9))))  # fmt: skip
    again = bench.submit()
    assert all(from_step[number][1] >= before[number] for number in KILLED), from_step
    return {
        "members finished": f"{sum(status == 'finished' for status in bench.statuses().values())} of 24",
        "killed with SIGKILL": ", ".join(f"{n} after step {before[n]}" for n in KILLED),
        "went on from": ", ".join(f"{n} at step {from_step[n][1]}" for n in KILLED),
        "begun once": sum(begun[str(number)] == 1 for number in range(1, 25) if number not in KILLED),
        "begun twice": sorted(int(number) for number, times in begun.items() if times == 2),
        "shared input made": f"{sum(line[0] == 'data' for line in bench.executions)} time",
        "seen running at once, at most": most,
        "rows of members.csv with the value that the design says": f"{right} of {len(rows)}",
        "the same command again": f"exit code {again.code}: {again.out.splitlines()[0]}",
        "minutes": f"{took / 60:.1f}",
    }


if __name__ == "__main__":
    main()
