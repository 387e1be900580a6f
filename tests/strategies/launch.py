"""Starts `matrix.py`, and says how far what they trained lies from what one process trained."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from athanor import shares
from small import train_tokenizer

TESTS = Path(__file__).resolve().parents[1]
QUESTIONS = ["2 + 3 = ?", "三加四等于多少？", "Copy: a b c", "What?", "照抄：甲", "Which is larger, 12 or 7?"]
# (strategy, processes); what is sharded only halves with two
MATRIX = (
    ("ddp", 2), ("fsdp", 2), ("fsdp2", 2), ("fsdp2_tp", 2), ("deepspeed_zero1", 2), ("deepspeed_zero2", 2),
    ("deepspeed_zero3", 2), ("zero3_offload", 2), ("fsdp2", 4), ("fsdp2_tp", 4), ("hsdp", 4),
)  # fmt: skip
# what divides a network's layers, or rows; `test_divided.py` has more about it
DIVIDED = (
    ("pipeline", 2), ("pipeline_interleaved", 2), ("context", 2), ("pipeline", 4), ("pipeline.stages=4", 4),
    ("pipeline_interleaved", 4), ("pipeline.tensor_parallel=2", 4), ("context", 4), ("context.parts=4", 4),
    ("context.attention=ring", 2), ("context.attention=ring.parts=4", 4),
)  # fmt: skip
# whose checkpoints are exchanged: whole, in flattened pieces, in rows, in another order, whole with split states
FORMS = (
    ("single", 1), ("ddp", 2), ("fsdp", 2), ("fsdp2", 2), ("fsdp2", 4), ("fsdp2_tp", 4), ("deepspeed_zero2", 2),
    ("deepspeed_zero3", 2),
)  # fmt: skip
# whose processes can write each its share
SHARERS = (("fsdp2", 4), ("fsdp2_tp", 4), ("hsdp", 4), ("deepspeed_zero2", 2), ("deepspeed_zero3", 2))


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


class Matrix:
    """The process that trains, with a tokenizer and prompts in a folder of its own.

    Args:
        script: what it runs; of this folder.
    """

    def __init__(self, folder: Path, script: str = "matrix.py"):
        self.folder = folder
        prompts = folder / "prompts.jsonl"
        prompts.write_text("".join(json.dumps({"prompt": f"{q} {i}"}) + "\n" for i in range(8) for q in QUESTIONS))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)])}
        words = [str(TESTS / "strategies" / script), train_tokenizer(folder), str(prompts), str(folder)]
        self.process = subprocess.Popen(
            [sys.executable, *words], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, strategy: str, world: int, *only: str) -> list[dict[tuple, dict]]:
        """What each rank wrote."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(strategy, world, *only, file=self.process.stdin, flush=True)
        answer, _, said = self.process.stdout.readline().strip().partition(" ")
        assert answer == "done", "\n".join(json.loads(said)) if said else "the process died"
        output = self.folder / f"{strategy}-{world}"
        return [torch.load(output / f"{rank}.pt", weights_only=True) for rank in range(world)]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


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


class Exchange(NamedTuple):
    """Of a checkpoint that one strategy has written and another taken up.

    changed: tensors, of weights and the optimizer's states, that are other bits when they are saved again at once.
    logits: the largest difference of what the model says from what an unsharded one says with the weights written.
    loss, gradient, weights: of the next step, relative, from one process that has taken up the same; as `Difference`.
    """

    changed: int
    logits: float
    loss: float
    gradient: float
    weights: float


def written(forms: Sequence[tuple[str, int]], sharers: Sequence[tuple[str, int]]) -> list[str]:
    """Files, and folders of shares."""
    return [*(f"{name}-{world}/dpo" for name, world in forms), *(f"{name}-{world}/shares" for name, world in sharers)]


def exchanges(
    matrix: Matrix, forms: Sequence[tuple[str, int]] = FORMS, sharers: Sequence[tuple[str, int]] = SHARERS
) -> Iterator[tuple[str, str, Exchange]]:
    """(checkpoint, reader, what came of it) for what each of `forms` and `sharers` has written, by each of `forms`, of
    which `single` must be the first.
    """
    for name, world in dict.fromkeys((*forms, *sharers)):
        wanted = [word for word, among in (("save/dpo", forms), ("share/dpo", sharers)) if (name, world) in among]
        matrix(name, world, *wanted)
    writers = written(forms, sharers)
    alone: dict[tuple, dict] = {}
    for name, world in forms:
        reader = f"{name}-{world}"
        found = matrix(name, world, *(f"load/{writer}" for writer in writers))[0]
        alone = alone or found
        for writer in writers:
            ours, theirs = found["load", writer], alone["load", writer]
            again = matrix.folder / reader / f"from-{writer.replace('/', '-')}.ckpt"
            changed = changes(matrix.folder / f"{writer}.ckpt", again)
            far = float((ours["logits"] - ours["expected"]).abs().max())
            yield writer, reader, Exchange(changed, far, *difference(theirs, ours))


def changes(before: Path, after: Path) -> int:
    """Tensors and numbers of the model and its optimizer that are not the same in two checkpoints."""
    one, two = ((shares.load if path.is_dir() else torch.load)(path) for path in (before, after))
    assert one["global_step"] == two["global_step"] > 0
    assert one["state_dict"].keys() == two["state_dict"].keys()
    (one_state,), (two_state,) = one["optimizer_states"], two["optimizer_states"]
    assert [g["lr"] for g in one_state["param_groups"]] == [g["lr"] for g in two_state["param_groups"]]
    assert one_state["state"].keys() == two_state["state"].keys()
    pairs = [(weight, two["state_dict"][name]) for name, weight in one["state_dict"].items()]
    for number, entries in one_state["state"].items():
        assert entries.keys() == two_state["state"][number].keys()
        pairs += [(value, two_state["state"][number][key]) for key, value in entries.items()]
    return sum(not torch.equal(torch.as_tensor(one), torch.as_tensor(two)) for one, two in pairs)


def samples_of_steps(ranks: list[list[list[int]]], accumulation: int, replicas: int) -> list[list[int]]:
    """The samples of each optimizer step in the order of the global batch, from the micro-batches of each rank."""
    first = [ranks[replica * len(ranks) // replicas] for replica in range(replicas)]
    steps = len(first[0]) // accumulation
    return [
        [i for own in first for batch in own[step * accumulation : (step + 1) * accumulation] for i in batch]
        for step in range(steps)
    ]
