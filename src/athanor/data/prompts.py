"""Prompts for generation in PPO, padded on the left."""

from typing import Literal, cast

import numpy as np
import torch
from torch.utils.data import Dataset

from athanor.batches import PromptBatch
from athanor.data.base import BatchPlan, Invalid, RecordData, Split
from athanor.data.chat import render_prompts
from athanor.data.formats import to_prompt
from athanor.data.order import order
from athanor.data.records import fit_lengths
from athanor.errors import UserError
from athanor.rollout import pad_left


class Prompts:
    def __init__(self, prompts: list[list[int]], pad_id: int):
        self.encoded, self.pad_id = prompts, pad_id
        self.longest = max(map(len, prompts), default=0)

    def __len__(self) -> int:
        return len(self.encoded)

    def weights(self, indices: np.ndarray) -> int:
        return len(indices)

    def batch(self, indices: np.ndarray, places: np.ndarray, normalizer: int) -> PromptBatch:
        tokens_BP, lengths_B = pad_left([self.encoded[i] for i in indices], self.pad_id)
        return PromptBatch(tokens_BP, lengths_B, torch.from_numpy(places.copy()), torch.tensor(self.longest))

    def prompts(self, count: int) -> list[list[int]]:
        return self.encoded[:count]


class Rollouts(Dataset):
    """Micro-batch m of this rank: its share of a rollout's prompts where a rollout begins, no prompts elsewhere."""

    def __init__(self, samples: Prompts, plan: BatchPlan, rollout_size: int, steps_per_rollout: int):
        self.samples, self.plan = samples, plan
        self.rollout_size, self.micro_batches = rollout_size, steps_per_rollout * plan.accumulation

    def __getitem__(self, m: int) -> PromptBatch:
        rollout, within = divmod(m, self.micro_batches)
        if within:
            none = torch.zeros(0, dtype=torch.int64)
            return PromptBatch(none[:, None], none, none, torch.tensor(self.samples.longest))
        share = self.rollout_size // self.plan.world_size
        first = rollout * self.rollout_size + self.plan.rank * share
        places = np.arange(first, first + share)
        return self.samples.batch(order(self.plan.seed, len(self.samples), first, first + share), places, share)


class PromptData(RecordData):
    """Prompts of JSON Lines files: the fields of a preference, an instruction, or just `prompt`.

    Args:
        max_new_tokens: room that a prompt must leave for its response within the model's context.
        rollout_size: prompts of one rollout, over all ranks; a multiple of the global batch size.
        epochs_per_rollout: passes over a rollout.
    """

    def __init__(
        self,
        files: list[str],
        tokenizer: str,
        max_new_tokens: int,
        rollout_size: int,
        epochs_per_rollout: int = 1,
        validation_files: list[str] | None = None,
        validation_fraction: float = 0.02,
        too_long: Literal["error", "drop"] = "error",
        invalid: Invalid = "error",
        validation_batch_size: int = 128,
        validation_samples: int | None = None,
    ):
        super().__init__(tokenizer, validation_batch_size, validation_samples)
        self.files, self.validation_files, self.validation_fraction = files, validation_files, validation_fraction
        self.too_long: Literal["error", "drop"] = too_long
        self.invalid = invalid
        self.max_new_tokens = max_new_tokens
        self.rollout_size, self.epochs_per_rollout = rollout_size, epochs_per_rollout

    def attach(self, plan: BatchPlan, context: int) -> None:
        plan.check()
        size = plan.global_batch_size
        if self.rollout_size < 1 or self.rollout_size % size:
            raise UserError(
                f"data.rollout_size={self.rollout_size} must be a multiple of global_batch_size={size}; nearest above: "
                f"{max(1, -(-self.rollout_size // size)) * size}."
            )
        if self.epochs_per_rollout < 1:
            raise UserError(f"data.epochs_per_rollout={self.epochs_per_rollout} must be at least 1.")
        super().attach(plan, context)

    @property
    def steps_per_rollout(self) -> int:
        return self.epochs_per_rollout * self.rollout_size // self.plan.global_batch_size

    def stream(self) -> Dataset:
        return Rollouts(cast(Prompts, self.train), self.plan, self.rollout_size, self.steps_per_rollout)

    def open(self, split: Split, context: int) -> Prompts:
        wheres, prompts = self.records(split, to_prompt, lambda messages: messages)
        encoded = render_prompts(prompts, self.tokenizer)
        room = context - self.max_new_tokens
        keep = fit_lengths([len(ids) for ids in encoded], wheres, room, self.too_long)
        return Prompts([encoded[i] for i in keep], self.tokenizer.pad_id)
