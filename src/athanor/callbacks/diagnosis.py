"""Says at every validation, and at the end, what the curves look like so far: the run's diagnosis.json."""

import json
import math
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer

from athanor.algorithms.base import Algorithm
from athanor.algorithms.dpo import DPO
from athanor.algorithms.pretraining import Pretraining
from athanor.algorithms.reward import RewardModeling
from athanor.algorithms.sft import SFT
from athanor.diagnosis import diagnose
from athanor.runs.context import METRICS, curves
from athanor.runs.files import write_json

NAME = "diagnosis.json"


class Diagnosis(Callback):
    """Nothing for algorithms whose loss says nothing, as PPO's."""

    def __init__(self, directory: Path):
        self.directory = directory

    def on_validation_end(self, trainer: Trainer, algorithm: Algorithm) -> None:  # type: ignore[override]
        self.write(trainer, algorithm)

    def on_train_end(self, trainer: Trainer, algorithm: Algorithm) -> None:  # type: ignore[override]
        self.write(trainer, algorithm)

    def write(self, trainer: Trainer, algorithm: Algorithm) -> None:
        guess = chance(algorithm)
        path = self.directory / METRICS
        if guess is None or not trainer.is_global_zero or not path.exists():
            return
        logged = curves(map(json.loads, path.read_text("utf-8").splitlines()))
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        seen = trainer.global_step * data.plan.global_batch_size / len(data.train)

        def loss(part: str) -> tuple[list[int], list[float]]:
            """That of the pairs alone, where likelihood is added to it."""
            return logged.get(f"{part}/preference_loss") or logged.get(f"{part}/loss") or ([], [])

        train, validation = loss("train"), loss("validation")
        write_json(self.directory / NAME, diagnose(train, validation, chance=guess, epochs=seen))


def chance(algorithm: Algorithm) -> float | None:
    """The loss of an even guess, nats; None where the loss is no likelihood."""
    if isinstance(algorithm, (Pretraining, SFT)):
        return math.log(algorithm.model.vocabulary_size)  # type: ignore[arg-type]
    return math.log(2) if isinstance(algorithm, (RewardModeling, DPO)) else None
