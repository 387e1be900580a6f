"""How the global batch of a step is spread over ranks and micro-batches: arithmetic that needs no torch."""

from typing import NamedTuple

from athanor.errors import UserError


class BatchPlan(NamedTuple):
    """How the global batch of one optimizer step is spread: ranks, and micro-batches one after the other."""

    seed: int
    max_steps: int
    global_batch_size: int
    world_size: int = 1
    rank: int = 0
    micro_batch_size: int | None = None
    num_workers: int = 0
    detours: tuple[tuple[int, int], ...] = ()  # from a step on, so many steps of data are passed over

    @property
    def per_rank(self) -> int:
        return self.global_batch_size // self.world_size

    @property
    def micro(self) -> int:
        return self.micro_batch_size or self.per_rank

    @property
    def accumulation(self) -> int:
        return self.per_rank // self.micro

    def place(self, step: int) -> int:
        """Of the run's first sample of a step, in the order of samples."""
        return (step + sum(by for start, by in self.detours if step >= start)) * self.global_batch_size

    def check(self) -> None:
        """Raises UserError, naming the nearest global batch sizes that do divide."""
        for name in ("max_steps", "global_batch_size", "micro_batch_size"):
            if (size := getattr(self, name)) is not None and size < 1:
                raise UserError(f"{name}={size} must be at least 1.")
        unit = self.world_size * (self.micro_batch_size or 1)
        if self.global_batch_size % unit:
            below, above = self.global_batch_size // unit * unit, -(-self.global_batch_size // unit) * unit
            near = " or ".join(str(size) for size in (below, above) if size)
            raise UserError(
                f"global_batch_size={self.global_batch_size} does not divide into {self.world_size} devices x "
                f"micro_batch_size {self.micro_batch_size or 1}; the nearest that do: {near}."
            )
