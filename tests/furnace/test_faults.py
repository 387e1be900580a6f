"""A few of the faults of `make faults`, of a kind each: the run ends as if nothing had been."""

from typing import Any

import pytest

FEW = (
    ("kill_saving", "sft", "single"), ("kill_finishing", "sft", "single"), ("full", "sft", "single"),
    ("readonly", "sft", "single"), ("kill_worker", "sft", "single"), ("memory", "sft", "ddp"),
    ("kill_rank", "sft", "ddp"), ("stop", "sft", "ddp"),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "algorithm", "strategy"), FEW, ids=[kind for kind, *_ in FEW])
def test_it_survives(bench: Any, kind: str, algorithm: str, strategy: str) -> None:
    from faults import Trial

    bench.survives(Trial(1, 0, (kind,), (algorithm,), (strategy,)))
