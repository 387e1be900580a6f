"""The model under evaluation: loaded once, its answers generated once however many tasks ask for them."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from athanor.data.chat import END
from athanor.data.records import fit_lengths
from athanor.errors import UserError
from athanor.functional import token_logps
from athanor.models import FORMS, form_of
from athanor.rollout import generate
from athanor.runs.store import open_run
from athanor.train import load_model

LOGITS = 2**25
"""Most logits held at once, in numbers: 128 MiB of float32."""
ACTIVATIONS = 4096
"""What a token costs a model without logits, in numbers, roughly."""


class Subject:
    """A finished training run with its tokenizer.

    `answers` is for language models only; a reward model has `reward` and no logits.

    Args:
        run: directory of the training run.
        report: called with (done, total) of the work at hand.
    """

    def __init__(self, run: str, device: str = "cpu", report: Callable[[int, int], None] = lambda done, total: None):
        source = open_run(run)
        self.name, self.fingerprint = source.name, source.fingerprint
        self.tokenizer_hash = source.manifest["outputs"].get("tokenizer.model", {}).get("sha256")
        self.model, self.tokenizer = load_model(run, device)
        self.device, self.report = device, report
        self._answers: dict[tuple, list[list[int]]] = {}

    @property
    def context(self) -> int:
        return int(self.model.context)  # type: ignore[arg-type]

    def require_language_model(self, task: str, forms: Sequence[str] = ("decoder",)) -> None:
        """Raises UserError unless the model is of one of the forms, for a task so called."""
        if (own := form_of(self.model)) == "reward model":
            raise UserError(
                f"{self.name} is a reward model and cannot do {task}; leave that task out or name a language model"
            )
        if own not in forms:
            raise UserError(
                f"{self.name} is {FORMS[own]}, and cannot do {task}; leave that task out or name a run that is "
                f"{' or '.join(FORMS[form].partition(',')[0] for form in forms)}"
            )

    def require_tokenizer_of(self, run: str, what: str) -> None:
        """Raises UserError where the training run `run` reads text in other tokens than this model."""
        other = open_run(run).manifest["outputs"].get("tokenizer.model", {}).get("sha256")
        if other != self.tokenizer_hash:
            raise UserError(
                f"{what} ({run}) and {self.name} were trained with different tokenizers, so that the one cannot read "
                "the other's tokens; name a run with the same tokenizer"
            )

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        batch_size: int = 128,
    ) -> list[list[int]]:
        """A response to each prompt, without <|end|>, greedy at temperature 0; one of `max_new_tokens` was cut off."""
        key = (tuple(map(tuple, prompts)), max_new_tokens, temperature, seed)
        if key not in self._answers:
            given: list[list[int]] = []
            order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
            for start in range(0, len(order), batch_size):
                part = order[start : start + batch_size]
                given += generate(
                    self.model,
                    [prompts[i] for i in part],
                    max_new_tokens=max_new_tokens,
                    stop_id=self.tokenizer.special[END],
                    pad_id=self.tokenizer.pad_id,
                    temperature=temperature,
                    seed=seed + start,
                    batch_size=batch_size,
                )
                self.report(len(given), len(prompts))
            self._answers[key] = [given[place] for place in sorted(range(len(order)), key=order.__getitem__)]
        return self._answers[key]

    def conversations(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], max_new_tokens: int
    ) -> list[tuple[list[int], int]]:
        """(tokens, length of the prompt) of each: prompt, answer, and <|end|> where the answer was not cut off."""
        end = [self.tokenizer.special[END]]
        return [
            ([*prompt, *answer, *(end if len(answer) < max_new_tokens else [])], len(prompt))
            for prompt, answer in zip(prompts, answers)
        ]

    def fitting(self, lengths: Sequence[int], names: Sequence[str], room: int) -> list[int]:
        """Indices of the sequences that leave `room` tokens in the model's context; UserError where none does."""
        keep = fit_lengths(lengths, names, self.context - room, "drop")
        if not keep:
            raise UserError(
                f"no prompt leaves room for {room} new tokens in the context of {self.context} tokens of {self.name}; "
                "lower max_new_tokens"
            )
        return keep


@torch.no_grad()
def batched(
    rows: Sequence[Sequence[int]], pad_id: int, device: str, width: int, report: Callable[[int, int], None]
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """(indices, tokens_BT, lengths_B) of rows of like length, padded on the right, long ones first.

    Args:
        width: numbers a token costs (the vocabulary for logits); bounds the rows of a batch.
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    start = 0
    while start < len(order):
        longest = max(1, len(rows[order[start]]))
        part = order[start : start + max(1, LOGITS // (width * longest))]
        tokens_BT = torch.full((len(part), longest), pad_id)
        for row, i in enumerate(part):
            tokens_BT[row, : len(rows[i])] = torch.as_tensor(rows[i])
        lengths_B = torch.tensor([len(rows[i]) for i in part])
        yield part, tokens_BT.to(device), lengths_B.to(device)
        start += len(part)
        report(start, len(order))


@torch.no_grad()
def next_token_logps(model: nn.Module, tokens_BT: Tensor) -> Tensor:
    """log p(token t + 1 | tokens up to t) at position t, float32 [B, T - 1], nats."""
    return token_logps(model(tokens_BT[:, :-1]), tokens_BT[:, 1:])


@torch.no_grad()
def rewards(judge: nn.Module, rows: Sequence[Sequence[int]], starts: Sequence[int], subject: Subject) -> list[float]:
    """The reward model's score of each sequence, whose response begins at its `start`."""
    scores = [0.0] * len(rows)
    pad_id = subject.tokenizer.pad_id
    for part, tokens_BT, lengths_B in batched(rows, pad_id, subject.device, ACTIVATIONS, subject.report):
        starts_B = torch.tensor([starts[i] for i in part], device=tokens_BT.device)
        for i, score in zip(part, judge.reward(tokens_BT, lengths_B, starts_B).tolist()):  # type: ignore[operator]
            scores[i] = score
    return scores
