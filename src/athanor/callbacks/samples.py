"""What the model says at each validation to the same held-out prompts: samples.jsonl."""

import json
from pathlib import Path

from lightning import Callback, Trainer
from torch import nn

from athanor.algorithms.base import Algorithm
from athanor.data.base import Data
from athanor.data.chat import END
from athanor.models import generates
from athanor.rollout import generate


class Samples(Callback):
    """Greedy continuations of `count` validation prompts; nothing for models that do not generate."""

    def __init__(self, path: Path, count: int = 4, max_new_tokens: int = 32):
        self.path, self.count, self.max_new_tokens = path, count, max_new_tokens

    def on_validation_end(self, trainer: Trainer, algorithm: Algorithm) -> None:  # type: ignore[override]
        if not (self.count and generates(algorithm.model)):
            return
        with algorithm.whole(algorithm.model) as model:
            if trainer.is_global_zero:
                self.write(trainer, algorithm, model)

    def write(self, trainer: Trainer, algorithm: Algorithm, model: nn.Module) -> None:
        data: Data = trainer.datamodule  # type: ignore[attr-defined]
        room = int(algorithm.model.context) - self.max_new_tokens  # type: ignore[arg-type]
        prompts = [p for p in data.validation.prompts(self.count) if 0 < len(p) <= room]
        if not prompts:
            return
        tokenizer = data.tokenizer
        answers = generate(
            model, prompts, max_new_tokens=self.max_new_tokens, stop_id=tokenizer.special[END],
            pad_id=tokenizer.pad_id,
        )  # fmt: skip
        with self.path.open("a", encoding="utf-8") as file:
            for prompt, answer in zip(prompts, answers):
                record = {
                    "step": trainer.global_step,
                    "prompt": tokenizer.decode(prompt),
                    "response": tokenizer.decode(answer),
                }
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
