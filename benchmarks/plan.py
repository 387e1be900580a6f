"""Memory as `athanor plan` predicts it, beside the peak of real trainings: five shapes, two optimizers, three
precisions.

    python benchmarks/plan.py [--rounds 1] [--only NAME ...]

Each training is a process of its own (`athanor train`, three steps and a validation, on the demo's shards, which are
made first if need be). On a CPU its peak is the largest resident set that the kernel saw, with what a training of next
to nothing takes subtracted, and with MALLOC_MMAP_THRESHOLD_=65536, so that glibc gives back what torch frees; `--malloc
default` leaves glibc as it is. On a GPU it is torch.cuda.max_memory_allocated.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

COMMON = ["max_steps=3", "validate_every_n_steps=3", "schedule.warmup_steps=1", "checkpoint.every_n_steps=100",
          "data.validation_samples=64"]  # fmt: skip
ADAMW = ["optimizer=adamw", "~optimizer.matrix_lr"]
NOTHING = [*ADAMW, "precision=32-true", "global_batch_size=1", "data.sequence_length=8", "data.validation_samples=1",
           "model={vocabulary_size: 2048, width: 16, layers: 1, heads: 1, kv_heads: 1, context: 512}"]  # fmt: skip


def shape(width: int, layers: int, heads: int, vocabulary: int, **more: int) -> str:
    settings = {"vocabulary_size": vocabulary, "width": width, "layers": layers, "heads": heads, "kv_heads": heads,
                "context": 512, **more}  # fmt: skip
    return "model={" + ", ".join(f"{key}: {value}" for key, value in settings.items()) + "}"


CONFIGS = {
    "base, AdamW, fp32": [*ADAMW, "precision=32-true", "global_batch_size=16", shape(384, 6, 6, 8192),
                          "+data.validation_batch_size=4"],
    "wide, AdamW, bf16-mixed": [*ADAMW, "precision=bf16-mixed", "global_batch_size=4", shape(1280, 4, 10, 8192),
                                "+data.validation_batch_size=4"],
    "deep, Muon, bf16-mixed": ["precision=bf16-mixed", "global_batch_size=4", "data.sequence_length=512",
                               shape(384, 20, 6, 4096), "+data.validation_batch_size=4"],
    "vocabulary, Muon, fp32": ["precision=32-true", "global_batch_size=8", shape(320, 4, 5, 65536),
                               "+data.validation_batch_size=32"],
    "accumulated, AdamW, bf16-true": [*ADAMW, "precision=bf16-true", "global_batch_size=16",
                                      "cluster.micro_batch_size=8", shape(768, 8, 12, 16384, kv_heads=4),
                                      "+data.validation_batch_size=4"],
}  # fmt: skip


def words(overrides: list[str]) -> list[str]:
    return ["experiment=pretrain/demo", *COMMON, *overrides]


def child(arguments: list[str]) -> None:
    """Trains, and says what the process has held at most; bytes."""
    import torch

    from athanor import cli

    assert cli.main(["train", *arguments]) == 0
    held = {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if torch.cuda.is_available():
        held["cuda"] = torch.cuda.max_memory_allocated()
    print(json.dumps(held))


def measured(overrides: list[str], malloc: str) -> dict[str, int]:
    """In a folder of runs of its own, whose inputs are those of ours."""
    from athanor import catalog

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if malloc == "mapped":
        environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
    with tempfile.TemporaryDirectory() as folder:
        for inputs in ("shards", "tokenizer", "documents", "tasks"):
            Path(folder, inputs).symlink_to(catalog.runs_root().resolve() / inputs)
        found = subprocess.run(
            [sys.executable, __file__, "--child", *words(overrides), "display=quiet"],
            env={**environment, "ATHANOR_RUNS": folder}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if found.returncode:
        raise SystemExit(found.stderr)
    return json.loads(found.stdout.splitlines()[-1])


def predicted(overrides: list[str]) -> tuple[float, str]:
    """Bytes beyond what a process holds without a model, and the phase of the peak."""
    from athanor import config
    from athanor.planning.plan import plan

    found = plan(config.load(words(overrides)[0].partition("=")[2], words(overrides)[1:]))
    return found.memory.total - found.machine.reserved, found.memory.phase


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=list(CONFIGS))
    parser.add_argument("--malloc", choices=("mapped", "default"), default="mapped")
    arguments = parser.parse_args()
    import torch

    from athanor import cli

    on_gpu = torch.cuda.is_available()
    kind = "cuda" if on_gpu else "resident"
    print(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, {kind} memory")
    assert cli.main(["prepare", "experiment=shards/demo", "--with-inputs"]) == 0
    bases = [0 if on_gpu else measured(NOTHING, arguments.malloc)[kind] for _ in range(arguments.rounds)]
    base, nothing = statistics.median(bases), 0.0 if on_gpu else predicted(NOTHING)[0]
    errors = []
    print(f"| {'training':<30} | predicted MiB | measured MiB | ratio | peak in |\n|---|---|---|---|---|")
    for name in arguments.only:
        told, phase = predicted(CONFIGS[name])
        real = statistics.median(measured(CONFIGS[name], arguments.malloc)[kind] for _ in bases) - base
        ratio = (told - nothing) / real
        errors.append(abs(ratio - 1))
        print(
            f"| {name:<30} | {(told - nothing) / 2**20:.0f} | {real / 2**20:.0f} | {ratio:.3f} | {phase} |", flush=True
        )
    if not on_gpu:
        print(f"a training of next to nothing: {base / 2**20:.0f} MiB")
    print(f"FIGURE plan_memory_error_max {max(errors):.4f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    else:
        main()
