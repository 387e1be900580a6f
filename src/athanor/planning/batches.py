"""Batches of the right shape for an algorithm, without data, and how large they are unless one says otherwise."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from athanor.algorithms.base import Algorithm
from athanor.algorithms.ppo import PPO
from athanor.batches import PackedBatch, PreferenceBatch, PromptBatch, SupervisedBatch
from athanor.data.plan import BatchPlan
from athanor.errors import UserError
from athanor.planning.errors import NoPlanError

KINDS = {
    "athanor.data.pretraining.PretrainingData": "rows",
    "athanor.data.instructions.InstructionData": "conversations",
    "athanor.data.preferences.PreferenceData": "pairs",
    "athanor.data.prompts.PromptData": "prompts",
}
VALIDATION_ROWS = {"rows": 32, "conversations": 64, "pairs": 64, "prompts": 128}  # the data modules' own defaults


class Shape(NamedTuple):
    """Of the batches of a device.

    Args:
        length: tokens of a row, padding included.
        labelled: share of the positions that have a label.
        validation: rows of a validation batch; 0 where there is none.
        new_tokens, rollout: tokens that PPO generates in a row, and the rows of a rollout over all devices.
    """

    kind: str
    length: int
    labelled: float
    validation: int
    new_tokens: int = 0
    rollout: int = 0


def shape_of(config: dict[str, Any], context: int, length: int | None) -> Shape:
    """The largest batches that the experiment can meet: rows as long as the context (or `length`), all labelled.

    Raises:
        UserError: a length beyond the context, or a data module that is none of athanor's.
    """
    data = config["data"]
    kind = KINDS.get(data["_target_"])
    if kind is None:
        raise NoPlanError(f"there is no plan for batches of {data['_target_']}; there is for {', '.join(KINDS)}")
    if kind == "rows":
        if length not in (None, data["sequence_length"]):
            raise UserError(f"--length {length} contradicts data.sequence_length={data['sequence_length']}; set that")
        length = int(data["sequence_length"])
    length = length or min(context, data.get("max_length") or context)
    if not 2 <= length <= context:
        raise UserError(f"rows of {length} tokens do not fit the model's context of 2 to {context}")
    validation = data.get("validation_batch_size") or VALIDATION_ROWS[kind]
    if (limit := data.get("validation_samples")) is not None:
        validation = min(validation, limit)
    if kind != "prompts":
        return Shape(kind, length, 1.0, validation)
    new = config["algorithm"]["max_new_tokens"]
    if new >= length:
        raise UserError(f"algorithm.max_new_tokens={new} leaves no room for a prompt in rows of {length} tokens")
    return Shape(kind, length, new / length, validation, new, data["rollout_size"])


def ids(*sizes: int) -> Tensor:
    return torch.zeros(sizes, dtype=torch.int64)


def batch(kind: str, rows: int, length: int) -> Any:
    one = torch.ones(())
    if kind == "rows":
        return PackedBatch(ids(rows, length), ids(rows, length), ids(rows, length), ids(rows, length), one)
    if kind == "conversations":
        return SupervisedBatch(ids(rows, length), ids(rows, length), one)
    sides = [(ids(rows, length), ids(rows, length), ids(rows)) for _ in range(2)]
    return PreferenceBatch(*sides[0], *sides[1], one)


def training(algorithm: Algorithm, config: dict[str, Any], shape: Shape, plan: BatchPlan) -> Any:
    if isinstance(algorithm, PPO):
        return PromptBatch(ids(0, 1), ids(0), ids(0), ids())
    return batch(shape.kind, plan.micro, shape.length)


def validating(algorithm: Algorithm, shape: Shape) -> Any:
    return None if isinstance(algorithm, PPO) else batch(shape.kind, shape.validation, shape.length)
