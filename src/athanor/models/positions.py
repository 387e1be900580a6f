"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864, eq. 34) in the half-split layout of Llama checkpoints.

The tables are computed from the positions at each call, so the module owns no buffer that a meta-device or sharded
initialisation could leave unset.
"""

import torch
from torch import Tensor


def rotation(positions_BT: Tensor, channels: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of position * theta^(-2i/channels), each [B, T, 1, channels] (both halves equal)."""
    exponents = torch.arange(0, channels, 2, device=positions_BT.device, dtype=torch.float32) / channels
    angles = positions_BT[..., None].float() * theta**-exponents
    angles = torch.cat((angles, angles), dim=-1)[:, :, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x_BTHC: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates channel i together with channel i + C/2 by the angle of its position."""
    cos, sin = rotation
    first, second = x_BTHC.chunk(2, dim=-1)
    return x_BTHC * cos + torch.cat((-second, first), dim=-1) * sin
