"""Generation with a key-value cache: samples for PPO, answers for evaluation.

Shapes: B rows, P prompt columns (padded on the left), N new columns, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from athanor.errors import UserError


class Responses(NamedTuple):
    tokens_BN: Tensor  # padded on the right with pad_id
    lengths_B: Tensor  # tokens of each response, the stop token included
    stopped_B: Tensor  # bool: ended with the stop token (not cut off)


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """tokens_BP and lengths_B of prompts of unequal length."""
    lengths_B = torch.tensor([len(prompt) for prompt in prompts])
    tokens_BP = torch.full((len(prompts), int(lengths_B.max())), pad_id)
    for row, prompt in enumerate(prompts):
        tokens_BP[row, tokens_BP.shape[1] - len(prompt) :] = torch.as_tensor(prompt)
    return tokens_BP, lengths_B


def uniforms(seeds: Sequence[Sequence[int]], tokens: int) -> Tensor:
    """float64 [B, tokens] in [0, 1): row b is a pure function of `seeds[b]`, whatever the batch it stands in."""
    import numpy as np

    return torch.from_numpy(np.stack([np.random.default_rng(list(seed)).random(tokens) for seed in seeds]))


@torch.no_grad()
def sample(
    model: nn.Module,
    tokens_BP: Tensor,
    lengths_B: Tensor,
    *,
    max_new_tokens: int,
    stop_id: int,
    pad_id: int,
    temperature: float = 0.0,
    uniforms_BN: Tensor | None = None,
) -> Responses:
    """Continues left-padded prompts, or with an encoder-decoder answers them, until `stop_id` or `max_new_tokens`.

    Greedy at temperature 0. Otherwise token n of row b is the inverse cumulative distribution at `uniforms_BN[b, n]`,
    so a row's randomness does not depend on the rows beside it.

    Raises:
        UserError: prompt and new tokens together exceed the model's context.
    """
    if getattr(model, "form", "decoder") == "encoder":
        raise UserError("An encoder fills in tokens and cannot say the next one; generate with a decoder.")
    rows, width = tokens_BP.shape
    longest, context = int(lengths_B.max()), int(model.context)  # type: ignore[arg-type]
    answers = getattr(model, "form", None) == "encoder-decoder"
    if answers and max(longest, max_new_tokens) > context:
        raise UserError(
            f"A prompt of {longest} tokens or {max_new_tokens} new ones exceed the model's context of {context}; lower "
            "max_new_tokens or drop long prompts."
        )
    if not answers and longest + max_new_tokens > context:
        raise UserError(
            f"A prompt of {longest} tokens plus {max_new_tokens} new ones exceeds the model's context of "
            f"{context}; lower max_new_tokens or drop long prompts."
        )
    if temperature > 0 and uniforms_BN is None:
        raise ValueError("sampling needs uniforms_BN")
    device = tokens_BP.device
    if uniforms_BN is not None:
        uniforms_BN = uniforms_BN.to(device)
    was_training = model.training
    model.eval()
    starts_B = width - lengths_B
    if answers:  # the prompt is read whole, and the answer has a beginning of its own
        columns = torch.arange(width, device=device)
        cache = model.read(tokens_BP, columns[None] >= starts_B[:, None], 1 + max_new_tokens)  # type: ignore[operator]
        tokens_BP, starts_B, width = torch.full_like(tokens_BP[:, :1], model.start), torch.zeros_like(starts_B), 1  # type: ignore[arg-type]
    else:
        cache = model.new_cache(rows, width + max_new_tokens)  # type: ignore[operator]
    columns = torch.arange(width + max_new_tokens, device=device)
    seen_BS = columns[None] >= starts_B[:, None]
    mask = torch.tril(torch.ones(width, width, dtype=torch.bool, device=device)) & seen_BS[:, None, None, :width]
    mask = mask | torch.eye(width, dtype=torch.bool, device=device)  # a padding query must see something
    hidden = model.hidden_states(  # type: ignore[operator]
        tokens_BP, positions_BT=(columns[None, :width] - starts_B[:, None]).clamp(min=0), mask=mask, cache=cache
    )[:, -1]
    out_BN = torch.full((rows, max_new_tokens), pad_id, device=device)
    lengths = torch.full((rows,), max_new_tokens, device=device)
    stopped = torch.zeros(rows, dtype=torch.bool, device=device)
    alive = torch.arange(rows, device=device)  # rows of the output that the cache still holds
    for n in range(max_new_tokens):
        logits_BV = model.logits(hidden).float()  # type: ignore[operator]
        if temperature > 0:
            cumulative_BV = (logits_BV.double() / temperature).softmax(-1).cumsum(-1)
            points_B1 = uniforms_BN[alive, n : n + 1] * cumulative_BV[:, -1:]  # type: ignore[index]
            token_B = torch.searchsorted(cumulative_BV, points_B1, right=True).squeeze(1)
            token_B = token_B.clamp(max=logits_BV.shape[1] - 1)
        else:
            token_B = logits_BV.argmax(-1)
        going_B = ~stopped[alive]
        out_BN[alive, n] = torch.where(going_B, token_B, pad_id)
        ended = alive[going_B & (token_B == stop_id)]
        stopped[ended], lengths[ended] = True, n + 1
        going_B = ~stopped[alive]
        left = int(going_B.sum())
        if left == 0 or n + 1 == max_new_tokens:
            break
        if left <= len(alive) // 2:  # finished rows cost as much as live ones: drop them once they are half
            keep = going_B.nonzero().squeeze(1)
            cache.keep_rows(keep)
            alive, token_B = alive[keep], token_B[keep]
        column = width + n
        hidden = model.hidden_states(  # type: ignore[operator]
            token_B[:, None],
            positions_BT=(column - starts_B[alive])[:, None],
            mask=seen_BS[alive, None, None, : column + 1],
            cache=cache,
        )[:, -1]
    model.train(was_training)
    return Responses(out_BN, lengths, stopped)


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_id: int,
    pad_id: int,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 128,
) -> list[list[int]]:
    """Responses to prompts of any length, in order, without the stop token. Sorted by length inside, so little is
    padding.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    device = next(model.parameters()).device
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        tokens_BP, lengths_B = pad_left([prompts[i] for i in part], pad_id)
        noise = uniforms([(seed, i) for i in part], max_new_tokens) if temperature > 0 else None
        responses = sample(
            model, tokens_BP.to(device), lengths_B.to(device), max_new_tokens=max_new_tokens, stop_id=stop_id,
            pad_id=pad_id, temperature=temperature, uniforms_BN=noise,
        )  # fmt: skip
        for row, i in enumerate(part):
            length = int(responses.lengths_B[row]) - int(responses.stopped_B[row])
            answers[i] = responses.tokens_BN[row, :length].tolist()
    return answers
