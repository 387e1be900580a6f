"""Random faults: `make faults N=200 SEED=1`, or `python tests/faults/faults.py [--only NUMBER...]` to have some again.

Each trial draws an algorithm, a strategy and a fault from (seed, number) alone, runs `athanor train` in real processes
until the fault ends it, and the same command again. It has survived if the fault struck and was told of as it should
be, and the run then ends with the very weights, metrics and samples of one that nothing disturbed, each sample once.
"""

import argparse
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "furnace"))

from furnace_project import TRAINED, Furnace, end, only, read_json
from test_kill import assert_same

SERVER = Path(__file__).with_name("server.py")
STRATEGIES = {"single": 1, "ddp": 2, "fsdp2": 2, "deepspeed_zero2": 2, "deepspeed_zero3": 2}
KINDS = (
    "kill_rank", "kill_all", "kill_worker", "kill_saving", "kill_finishing", "terminate", "stop", "nan", "damage",
    "full", "readonly", "memory", "clock",
)  # fmt: skip
SHARING = ("fsdp2", "deepspeed_zero2", "deepspeed_zero3")  # which can save in shares, and in half of the trials do
STEPS, EVERY, VALIDATES = 8, 2, 4
SPLIT = 2  # micro-batches of a step
SETTINGS = [
    f"max_steps={STEPS}", f"checkpoint.every_n_steps={EVERY}", "checkpoint.keep=2", "logger.every_n_steps=1",
    f"validate_every_n_steps={VALIDATES}", "schedule.warmup_steps=2", "precision=32-true", "cluster.accelerator=cpu",
]  # fmt: skip
ADAMW = ["optimizer=adamw", "~optimizer.matrix_lr"]  # where the experiment has Muon
HANG_SECONDS = 20
SAID = {  # by a rank at least, and how the ranks may end; None: killed
    "terminate": ("saved at step", {143}),
    "stop": ("does not answer (stopped)", {75, -6, -9}),
    "nan": ("The training is lost at step", {2}),
    "full": ("No space left on device", {2}),
    "readonly": ("Permission denied", {2}),
    "memory": ("ran out of memory at step", {1, 2, -9}),
    "kill_worker": ("a data-loading process of rank", {1, -9}),
    "clock": ("", {0}),
}


class Trial:
    """What a (seed, number) stands for."""

    def __init__(
        self,
        seed: int,
        number: int,
        kinds: Sequence[str] = KINDS,
        algorithms: Sequence[str] = TRAINED,
        strategies: Sequence[str] = tuple(STRATEGIES),
    ):
        chance = random.Random(f"{seed}/{number}")
        self.seed, self.number = seed, number
        self.kind = chance.choice(kinds)
        self.algorithm = chance.choice(algorithms)
        self.strategy = chance.choice([name for name in strategies if self.kind != "stop" or STRATEGIES[name] > 1])
        self.world = STRATEGIES[self.strategy]
        self.fault = self.draw(chance)
        # the last draw, so that those before it are what they were
        self.sharded = chance.random() < 0.5 and self.strategy in SHARING and self.kind != "full"
        if self.sharded and self.kind == "kill_saving":  # rank 0 has fewer such operations to do
            most = {"write": 15, "fsync": 4, "replace": 2, "unlink": 1}[self.fault["operation"]]
            self.fault["number"] = 1 + (self.fault["number"] - 1) % most

    def __str__(self) -> str:
        where = " ".join(f"{key}={value}" for key, value in self.fault.items() if key != "kind")
        strategy = self.strategy + "+shares" * self.sharded
        return f"{self.number:4} {self.kind:14} {self.algorithm:8} {strategy:22} {where}"

    @property
    def kept(self) -> int:
        """The step from which it must at least go on: of the checkpoint before the one that may be being written."""
        if self.kind == "kill_saving":
            return self.fault["step"] - EVERY
        if self.kind == "kill_finishing":
            return STEPS - EVERY
        if self.kind in ("kill_rank", "kill_all", "stop"):
            return max(0, ((self.fault["step"] - 1) // EVERY - 2) * EVERY)
        return 0

    def draw(self, chance: random.Random) -> dict[str, Any]:
        kind, fault = self.kind, {"kind": self.kind, "rank": chance.randrange(self.world)}
        if kind == "kill_saving":
            operation, most = chance.choice([("write", 60), ("fsync", 4), ("replace", 2), ("unlink", 2)])
            steps = (6,) if operation == "unlink" else (2, 4, 6)
            return fault | {"operation": operation, "number": chance.randint(1, most), "step": chance.choice(steps)}
        if kind == "kill_finishing":
            return fault | {"operation": chance.choice(["save", "saved", "discard"])}
        if kind in ("full", "readonly"):
            return fault | {"step": chance.choice((2, 4))}  # of which all ranks hear before the end
        if kind == "nan":
            return fault | {"step": chance.randint(1, STEPS)}
        places = ["backward", "update", "end"]
        places += ["forward"] if kind != "damage" else []
        places += ["validating"] if kind not in ("memory", "damage") else []
        places += ["starting"] if kind not in ("memory", "damage", "kill_worker") else []
        place = chance.choice(places)
        first, last = (STEPS - 1, STEPS) if kind == "damage" else (1, STEPS)  # two checkpoints there must be
        if kind in ("terminate", "kill_worker"):
            last = STEPS - 2  # later a signal finds the training at its end
        step = {"starting": 0, "validating": VALIDATES}.get(place) or chance.randint(first, last)
        step = 0 if place == "starting" else step
        fault |= {"place": place, "step": step, "micro": chance.randrange(SPLIT)}
        if kind.startswith("kill_") and kind != "kill_worker":
            fault["delay"] = chance.choice([0.0, chance.uniform(0, 0.05)])
        if kind == "damage":
            fault |= {"how": chance.choice(["flip", "flip", "cut", "flip_hash", "no_hash"]), "at": chance.random()}
        if kind == "clock":
            fault["by"] = chance.choice([-1, 1]) * chance.choice([3.0, 3600.0, 86400.0 * 400])
        return fault


class Bench:
    """A project, a process that forks trainings, and the undisturbed run of each algorithm and strategy."""

    def __init__(self, furnace: Furnace, folder: Path):
        self.furnace, self.folder = furnace, folder
        self.references: dict[tuple[str, str], Path] = {}
        self.said = (folder / "server.txt").open("w")
        environment = {name: value for name, value in furnace.environment.items() if not name.startswith("SLURM_")}
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER)], cwd=furnace.folder, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, start_new_session=True,
        )  # fmt: skip
        self.answer()

    def answer(self) -> str:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise RuntimeError((self.folder / "server.txt").read_text()[-3000:])
        return line

    def close(self) -> None:
        end(self.process)
        self.said.close()

    def launch(self, words: list[str], world: int, folder: Path, fault: Any = None, **more: Any) -> dict[str, Any]:
        self.begin(words, world, folder, fault, **more)
        return json.loads(self.answer())

    def begin(self, words: list[str], world: int, folder: Path, fault: Any = None, **more: Any) -> None:
        """Starts the ranks; `answer` waits for their end."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "group").unlink(missing_ok=True)  # of those that were there before
        task = {"words": words, "world": world, "fault": fault, "folder": str(folder), "seconds": 180, **more}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()

    def killed(self, words: list[str], folder: Path, reached: Callable[[], bool]) -> None:
        """Starts a training, and kills it by SIGKILL as soon as it is where it should be."""
        assert self.process.stdout is not None
        self.begin(words, 1, folder)
        while not reached():
            ended, _, _ = select.select([self.process.stdout], [], [], 0.002)
            assert not ended, f"it ended by itself: {self.answer()} {tail(folder)}"
        os.killpg(int((folder / "group").read_text()), signal.SIGKILL)
        assert json.loads(self.answer())["codes"] == [-signal.SIGKILL], tail(folder)

    def words(self, algorithm: str, strategy: str, runs: Path, *more: str) -> list[str]:
        world = STRATEGIES[strategy]
        own = [*SETTINGS, *(ADAMW if algorithm != "ppo" else []), f"strategy={strategy}", f"cluster.devices={world}"]
        own += [f"cluster.micro_batch_size={8 // world // SPLIT}"]
        own += ["+strategy.persistence_threshold=0"] if strategy == "deepspeed_zero3" else []
        return self.furnace.command(algorithm, runs, *own, *more)

    def reference(self, algorithm: str, strategy: str) -> Path:
        """The folder of the undisturbed run, with what its ranks saw."""
        if (algorithm, strategy) not in self.references:
            folder = self.folder / f"{algorithm}-{strategy}"
            made = self.launch(self.words(algorithm, strategy, folder / "runs"), STRATEGIES[strategy], folder)
            assert made["codes"] == [0] * STRATEGIES[strategy], tail(folder)
            for rank in range(STRATEGIES[strategy]):
                assert [micro for micro, _ in lineage(folder, rank)] == [*range(STEPS * SPLIT)]
            self.references[algorithm, strategy] = folder
        return self.references[algorithm, strategy]

    def survives(self, trial: Trial) -> None:
        """Raises AssertionError if it does not."""
        reference = self.reference(trial.algorithm, trial.strategy)
        folder = self.folder / f"{trial.seed}-{trial.number}"
        more = ["cluster.num_workers=1"] if trial.kind == "kill_worker" else []
        more += [f"cluster.hang_seconds={HANG_SECONDS}"] if trial.kind == "stop" else []
        more += ["checkpoint.sharded=true"] if trial.sharded else []
        words = self.words(trial.algorithm, trial.strategy, folder / "runs", *more)
        ended = self.launch(
            words, trial.world, folder, trial.fault, **({"patience": 120} if trial.kind == "stop" else {})
        )
        assert (folder / "struck").exists(), f"it did not strike: {ended} {tail(folder)}"
        said = "".join(path.read_text() for path in sorted(folder.glob("said-*.txt")))
        sentence, codes = SAID.get(trial.kind, ("", None))
        assert sentence in said, f"nobody said {sentence!r}: {ended} {tail(folder)}"
        if codes is not None:
            assert set(ended["codes"]) <= codes, f"{ended} {tail(folder)}"
        assert not ended["forced"], f"it hung: {ended} {tail(folder)}"
        if trial.kind == "stop":
            assert f"rank {trial.fault['rank']} does not answer (stopped)" in said
            for rank in range(trial.world):
                stacks = (only(folder / "runs") / "watch" / f"{rank}.txt").read_text()
                assert "most recent call first" in stacks, f"no stacks of rank {rank}"
        if trial.kind == "memory":
            assert "cluster.micro_batch_size=" in said or "cluster.recompute=full" in said
        if trial.kind == "damage":
            harm(only(folder / "runs") / "checkpoints", trial.fault)
        for checkpoints in folder.glob("runs/*/*/*/checkpoints"):
            checkpoints.chmod(0o755)
        again = self.launch(words, trial.world, folder)
        assert again["codes"] == [0] * trial.world, f"again: {again} {tail(folder)}"
        if trial.kind == "damage":
            assert "is damaged; resuming from" in "".join(p.read_text() for p in folder.glob("said-*.txt"))
        assert_same(only(folder / "runs"), only(reference / "runs"))
        manifest = read_json(only(folder / "runs") / "manifest.json")
        assert manifest["status"] == "finished"
        *before, last = manifest["attempts"]
        assert not before or last["from_step"] >= trial.kept, manifest["attempts"]
        for rank in range(trial.world):
            assert lineage(folder, rank) == lineage(reference, rank), f"rank {rank} saw other samples"
        shutil.rmtree(folder)


def lineage(folder: Path, rank: int) -> list[list[Any]]:
    """(micro-batch, hash) in the order in which the final weights have seen them: what was done after the checkpoint
    that a later attempt went on from is not among them.
    """
    kept: list[list[Any]] = []
    for line in (folder / f"seen-{rank}.jsonl").read_text().splitlines():
        micro, digest = json.loads(line)
        while kept and kept[-1][0] >= micro:
            kept.pop()
        kept.append([micro, digest])
    return kept


def harm(checkpoints: Path, fault: dict[str, Any]) -> None:
    """To the newest one; there is one before it."""
    _, path = sorted(checkpoints.glob("step-*.ckpt"))[-2:]
    if fault["how"] == "no_hash":
        path.with_suffix(".sha256").unlink()
        return
    target = path.with_suffix(".sha256") if fault["how"] == "flip_hash" else path
    if target.is_dir():
        parts = sorted(target.iterdir())
        target = parts[int(fault["at"] * 1000) % len(parts)]
    content = bytearray(target.read_bytes())
    place = int(fault["at"] * len(content))
    if fault["how"] == "cut":
        del content[place:]
    else:
        content[place] ^= 1 << (place % 8)
    target.write_bytes(content)


def tail(folder: Path) -> str:
    return "\n".join(f"[{path.name}] {path.read_text()[-1500:]}" for path in sorted(folder.glob("said-*.txt")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, nargs="+", metavar="NUMBER", help="these trials of the seed")
    parser.add_argument("--minutes", type=float, help="begin no further trial after so many")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    arguments = parser.parse_args()
    began, tried, survived = time.monotonic(), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as temporary:
        for name in ("project", "faults"):
            (Path(temporary) / name).mkdir()
        furnace = Furnace(Path(temporary) / "project")
        made = furnace.run("pipeline", "experiment=pipelines/tiny", timeout=900)
        assert made.code == 0, made.err
        bench = Bench(furnace, Path(temporary) / "faults")
        print(f"ready after {time.monotonic() - began:.0f} s", flush=True)
        for number in arguments.only or range(arguments.count):
            if arguments.minutes and time.monotonic() - began > 60 * arguments.minutes:
                break
            trial, since = Trial(arguments.seed, number, arguments.kinds), time.monotonic()
            tried[trial.kind] += 1
            try:
                bench.survives(trial)
                survived[trial.kind] += 1
                print(f"{trial}  survived, {time.monotonic() - since:.1f} s", flush=True)
            except Exception as error:
                print(f"{trial}  LOST: {type(error).__name__}: {error}", flush=True)
        bench.close()
    print(f"\n{'fault':16} {'tried':>6} {'survived':>9}")
    for kind in sorted(tried):
        print(f"{kind:16} {tried[kind]:6} {survived[kind]:9}")
    print(f"seed {arguments.seed}, {(time.monotonic() - began) / 60:.1f} min")
    print(f"FIGURE faults_tried {tried.total()}\nFIGURE faults_survived {survived.total()}")
    raise SystemExit(tried != survived)


if __name__ == "__main__":
    main()
