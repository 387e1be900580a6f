"""Mathematics used by two or more algorithms.

Shapes: B rows, T tokens, V vocabulary. Log-probabilities and entropies are in nats. Nothing here averages: reductions
are the caller's, by the global count of valid terms.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from athanor.batches import IGNORED


def computing_dtype(x: Tensor) -> torch.dtype:
    """Of matrix products with `x`: autocast's, where it is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of `values` where `mask` holds; masked-out values may be anything, infinities and NaN too."""
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device)).sum()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` holds; 0 where it holds nowhere."""
    return masked_sum(values, mask) / mask.sum().clamp(min=1)


def masked_whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """(values - mean) / std over `mask` (population variance, floor 1e-8); masked-out entries become 0.

    Args:
        shift_mean: if false the mean is added back, so that only the scale changes (rewards in Ziegler et al. 2019).
    """
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(mask, whitened, torch.zeros_like(whitened))


def cross_entropy_sum(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """-sum log p(label) over the positions whose label is not IGNORED; nats, float32 scalar."""
    return F.cross_entropy(
        logits_BTV.flatten(0, -2).float(), labels_BT.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def token_logps(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """log p(label) of each position, float32 [B, T]; 0 where the label is IGNORED.

    `logits_BTV[:, t]` must be the prediction *of* `labels_BT[:, t]` (the labels are already shifted).
    """
    logps = -F.cross_entropy(
        logits_BTV.flatten(0, -2).float(), labels_BT.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return logps.view_as(labels_BT)


def up_to_last_label(labels_BT: Tensor) -> Tensor:
    """bool [B, T]: the tokens that a labelled position reads. False in rows' padding."""
    return (labels_BT != IGNORED).flip(-1).cumsum(-1).flip(-1) > 0


LOGITS = {"cpu": 2**24, "cuda": 2**27}
"""Logits that may exist at once, by device."""


def labelled_logps(hidden_BTD: Tensor, labels_BT: Tensor, to_logits: Callable[[Tensor], Tensor]) -> Tensor:
    """As `token_logps`, from hidden states: logits [N, V] are made for the N labelled positions only, and where
    these are many, for a block of them at a time, and again in the backward pass.
    """
    mask_BT = labels_BT != IGNORED
    hidden_ND, labels_N = hidden_BTD[mask_BT], labels_BT[mask_BT]

    def logps(hidden_ND: Tensor, labels_N: Tensor) -> Tensor:
        return token_logps(to_logits(hidden_ND), labels_N)

    with torch.no_grad():
        vocabulary = to_logits(hidden_ND[:0]).shape[-1]
    logps_N = torch.cat(by_blocks(logps, vocabulary, hidden_ND, labels_N))
    return torch.zeros(labels_BT.shape, device=logps_N.device).masked_scatter(mask_BT, logps_N)


def by_blocks(function: Callable[..., Any], vocabulary: int, *rows: Tensor) -> list[Any]:
    """What `function`, which makes logits [n, vocabulary], says of each block of n rows; where there are several, it is
    called again in the backward pass, so that logits of only one exist at a time. It must draw no random numbers.
    """
    block = max(1, LOGITS.get(rows[0].device.type, 2**27) // vocabulary)
    if len(rows[0]) <= block:
        return [function(*rows)]
    if torch.is_grad_enabled():
        function = partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)
    return [function(*parts) for parts in zip(*(x.split(block) for x in rows))]


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, eq. 16) over right-padded responses.

        delta_t = r_t + gamma V_{t+1} - V_t;   A_t = delta_t + gamma lam A_{t+1};   V, A = 0 past the end.

    Args:
        rewards_BT, values_BT: float32 [B, T]; whatever stands outside the mask is not read.
        mask_BT: bool [B, T], true on the response, contiguous.

    Returns:
        advantages and returns (advantages + values), float32 [B, T], 0 outside the mask.

    Raises:
        ValueError: gamma or lam outside [0, 1].
    """
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise ValueError(f"gamma and lam must lie in [0, 1], not {gamma} and {lam}")
    zero = torch.zeros((), dtype=values_BT.dtype, device=values_BT.device)
    values_BT = torch.where(mask_BT, values_BT, zero)
    rewards_BT = torch.where(mask_BT, rewards_BT, zero)
    advantages_BT = torch.zeros_like(values_BT)
    advantage_B = torch.zeros_like(values_BT[:, 0])
    next_value_B = torch.zeros_like(advantage_B)
    for t in reversed(range(values_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        advantage_B = torch.where(mask_BT[:, t], delta_B + gamma * lam * advantage_B, zero)
        advantages_BT[:, t] = advantage_B
        next_value_B = values_BT[:, t]
    return advantages_BT, torch.where(mask_BT, advantages_BT + values_BT, zero)
