"""Starts the processes of `matrix.py`, and says how far what they trained lies from what one process trained."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from small import train_tokenizer

TESTS = Path(__file__).resolve().parents[1]
QUESTIONS = ["2 + 3 = ?", "三加四等于多少？", "Copy: a b c", "What?", "照抄：甲", "Which is larger, 12 or 7?"]
# (strategy, processes); what is sharded only halves with two
MATRIX = (
    ("ddp", 2), ("fsdp", 2), ("fsdp2", 2), ("fsdp2_tp", 2), ("deepspeed_zero1", 2), ("deepspeed_zero2", 2),
    ("deepspeed_zero3", 2), ("zero3_offload", 2), ("fsdp2", 4), ("fsdp2_tp", 4), ("hsdp", 4),
)  # fmt: skip


class Difference(NamedTuple):
    """Of a training from the same in one process, relative.

    loss: the largest of |loss - loss'| over the steps by the largest |loss|.
    gradient: the largest of |norm - norm'| / norm over the steps.
    weights: at the end, the largest of ||weights - weights'|| / ||weights|| over the tensors.
    """

    loss: float
    gradient: float
    weights: float


def bound(strategy: str) -> float:
    return 1e-4 if "zero" in strategy else 1e-5


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(words: list[str], world: int, timeout: float = 1200) -> None:
    """`python words` in so many processes of one training; raises AssertionError with what the failing one said."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment |= {
        "WORLD_SIZE": str(world), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)]),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        said = [open(Path(folder) / str(rank), "w+") for rank in range(world)]  # noqa: SIM115
        processes = [
            subprocess.Popen([sys.executable, *words], env={**environment, "LOCAL_RANK": str(rank)}, stdout=out,
                             stderr=subprocess.STDOUT)
            for rank, out in enumerate(said)
        ]  # fmt: skip
        try:
            for process in processes:
                process.wait(timeout)
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.wait()
            for out in said:
                out.seek(0)
            texts = [out.read()[-3000:] for out in said]
            for out in said:
                out.close()
        codes = [process.returncode for process in processes]
        assert not any(codes), "\n".join(f"rank {r} ended with {c}: {t}" for r, (c, t) in enumerate(zip(codes, texts)))


def material(folder: Path) -> tuple[str, str]:
    """A tokenizer and prompts in a folder."""
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{q} {i}"}) + "\n" for i in range(8) for q in QUESTIONS))
    return train_tokenizer(folder), str(prompts)


def outcomes(strategy: str, world: int, folder: Path, tokenizer: str, prompts: str) -> list[dict[tuple, dict]]:
    """What `matrix.py` wrote, of each rank."""
    output = folder / f"{strategy}-{world}"
    output.mkdir()
    run([str(TESTS / "strategies" / "matrix.py"), strategy, tokenizer, prompts, str(output)], world)
    return [torch.load(output / f"{rank}.pt", weights_only=True) for rank in range(world)]


def difference(expected: dict[str, Any], found: dict[str, Any]) -> Difference:
    losses, others = (torch.tensor([v for _, v in x["metrics"]["train/loss"]]) for x in (expected, found))
    norms, others_norms = (torch.tensor([v for _, v in x["metrics"]["train/grad_norm"]]) for x in (expected, found))
    assert losses.shape == others.shape
    assert expected["weights"].keys() == found["weights"].keys()
    far = [
        float((found["weights"][name].double() - weight.double()).norm() / weight.double().norm())
        for name, weight in expected["weights"].items()
    ]
    return Difference(
        float((losses - others).abs().max() / losses.abs().max()),
        float(((norms - others_norms).abs() / norms).max()),
        max(far),
    )


def samples_of_steps(ranks: list[list[list[int]]], accumulation: int, replicas: int) -> list[list[int]]:
    """The samples of each optimizer step in the order of the global batch, from the micro-batches of each rank."""
    first = [ranks[replica * len(ranks) // replicas] for replica in range(replicas)]
    steps = len(first[0]) // accumulation
    return [
        [i for own in first for batch in own[step * accumulation : (step + 1) * accumulation] for i in batch]
        for step in range(steps)
    ]
