"""How blocks are executed, which changes speed and memory and nothing else: compiled one by one, so that the compiler
sees one small graph and reuses it for all of them, and the loss besides; or their activations made again in the
backward pass. And memory that a CPU's training frees, kept for its next step.
"""

import ctypes
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from athanor.errors import UserError
from athanor.models.transformer import Block, Transformer

KEPT = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.higher_order.flex_attention,
]
"""What selective recomputation keeps: the results that cost most to make."""
WORTH = {"cpu": 1e14, "cuda": 1e16}
"""Training FLOPs, by device, from which compiling saves more than the half minute that it costs."""


TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Has glibc keep what this process frees, for as long as it lives, and take large tensors from that, too.

    By itself it gives them back to the system and maps new pages in every step, each of which the kernel has to clear:
    a tenth of the step of a model of 14 M parameters. The peak stays what it is where shapes repeat.

    Returns:
        Whether it is so: not without glibc, nor where the environment has settings of its own for it (MALLOC_...,
        GLIBC_TUNABLES).
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all([mallopt(MMAP_THRESHOLD, 2**30), mallopt(TRIM_THRESHOLD, 2**31 - 1)])


def accelerate(algorithm: nn.Module, cluster: dict[str, Any], device: str, flops: float, cache: Path) -> None:
    """Compiles the blocks and sets what they recompute, as `cluster.compile` and `cluster.recompute` say.

    Args:
        algorithm: compiles by itself ("auto") only if its `fixed_shapes` say that every batch is of one shape.
        flops: of the whole training.
        cache: folder where the compiler keeps its results between runs, unless TORCHINDUCTOR_CACHE_DIR names one.

    Raises:
        UserError: no C++ compiler for a CPU; compilation and selective recomputation together.
    """
    recompute, wanted = cluster.get("recompute", "none"), cluster["compile"]
    able = device != "cpu" or shutil.which(os.environ.get("CXX", "g++")) is not None
    if wanted == "auto":
        fixed = getattr(algorithm, "fixed_shapes", False)
        wanted = fixed and able and recompute != "selective" and flops / WORTH.get(device, 1e16) > 1
    elif wanted and not able:
        raise UserError(
            "cluster.compile=true needs a C++ compiler on a CPU; install g++, or set cluster.compile=false."
        )
    elif wanted and recompute == "selective":
        raise UserError(
            "cluster.compile=true goes with cluster.recompute=none or full; selective picks single operations."
        )
    if wanted:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    for module in algorithm.modules():
        trained = any(p.requires_grad for p in module.parameters())
        if isinstance(module, Transformer) and recompute != "none":
            kept = partial(create_selective_checkpoint_contexts, KEPT) if recompute == "selective" else None
            module.recompute = {"use_reentrant": False} | ({"context_fn": kept} if kept else {})
        if isinstance(module, Transformer):
            module.compile_loss = bool(wanted and trained)
        if isinstance(module, Block) and wanted and trained:
            module.compile()
