"""How much memory a device has, and how fast it multiplies matrices.

Peaks are dense, without sparsity, in TFLOP/s: bfloat16 with float32 accumulation (float16 on V100), and float32 without
tensor cores, which is what torch computes in by default. Memory is what the driver reports, in GiB. Sources: NVIDIA's
and AMD's data sheets of each (A100 2021, H100 2023, H200 2024, B200 2024, H20 and H800 as stated by Lenovo's and
Colfax's product guides, L4, L40S, A10, RTX A6000, GeForce RTX 3090 and 4090 from their architecture white papers,
V100 2020, MI300X 2023).
"""

import os
import re
import time
from typing import Any, NamedTuple

import torch

from athanor.errors import UserError

GIB = 2**30


class Gpu(NamedTuple):
    memory: float  # GiB
    half: float  # TFLOP/s
    single: float


GPUS = {
    "b200": Gpu(179.0, 2250, 80.0),
    "h200": Gpu(139.8, 989, 67.0),
    "h100": Gpu(79.2, 989, 67.0),
    "h100-nvl": Gpu(93.1, 835, 60.0),
    "h100-pcie": Gpu(79.2, 756, 51.0),
    "h800": Gpu(79.2, 989, 67.0),
    "h20": Gpu(95.1, 148, 44.0),
    "a100": Gpu(79.2, 312, 19.5),
    "a100-40gb": Gpu(39.4, 312, 19.5),
    "a800": Gpu(79.2, 312, 19.5),
    "a6000": Gpu(47.5, 155, 38.7),
    "a10": Gpu(22.1, 125, 31.2),
    "l40s": Gpu(44.4, 362, 91.6),
    "l4": Gpu(22.2, 121, 30.3),
    "rtx-4090": Gpu(23.6, 165, 82.6),
    "rtx-3090": Gpu(23.6, 71, 35.6),
    "v100": Gpu(31.7, 125, 15.7),
    "mi300x": Gpu(191.7, 1307, 163.4),
}


class Machine(NamedTuple):
    """One device.

    Args:
        memory: bytes; None where it is not known.
        peak: FLOP/s of matrix products in the precision planned for; None where it is not known.
        reserved: bytes that are held before a model is, stated in docs/planning.md.
    """

    name: str
    gpu: bool
    memory: float | None
    peak: float | None
    reserved: float
    peak_is: str = ""  # where `peak` comes from


def machine(cluster: dict[str, Any], precision: str, name: str | None, memory: float | None, per_node: int) -> Machine:
    """The device of a cluster's config: `name` if given, else `cluster.slurm.gpu_type`, else this machine's own.

    Args:
        memory: GiB of a device, in place of what is known of it.
        per_node: processes that share a node's memory.
    """
    wanted = name or (cluster.get("slurm") or {}).get("gpu_type")
    gpu = cluster["accelerator"] in ("gpu", "cuda")
    if cluster["accelerator"] == "auto":
        gpu = wanted not in (None, "cpu") or torch.cuda.is_available()
    given = None if memory is None else memory * GIB
    if not gpu or wanted == "cpu":
        own = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / per_node
        return Machine("cpu", False, given or limit(cluster, per_node) or own, None, CPU_RESERVED * GIB)
    if wanted is None and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        known, shown, own = recognised(properties.name), properties.name, float(properties.total_memory)
    else:
        known, shown, own = recognised(wanted or ""), wanted or "GPU", 0.0
        if name and known is None:
            raise UserError(f"--device {name} is not known; there are: cpu, {', '.join(GPUS)}")
    peak = None if known is None else 1e12 * (known.half if "16" in precision else known.single)
    room = given or own or (known.memory * GIB if known else None)
    return Machine(shown, True, room, peak, GPU_RESERVED * GIB, "data sheet" if peak else "")


CPU_RESERVED, GPU_RESERVED = 0.8, 1.5
"""GiB that a process holds for Python, torch and Lightning, and on a GPU for CUDA's context, cuBLAS and NCCL: stated,
not measured."""


def recognised(name: str) -> Gpu | None:
    """The row of the table that a name from SLURM or from the driver means."""
    flat = re.sub(r"[^a-z0-9]", "", name.lower())
    found = [key for key in GPUS if key.replace("-", "") in flat]
    if "a100" in found and "40gb" in flat:
        return GPUS["a100-40gb"]
    for kind in ("pcie", "nvl"):
        if "h100" in found and kind in flat:
            return GPUS[f"h100-{kind}"]
    return GPUS[max(found, key=len)] if found else None


def limit(cluster: dict[str, Any], per_node: int) -> float | None:
    """A process's part of `cluster.slurm.memory`, bytes."""
    text = (cluster.get("slurm") or {}).get("memory")
    found = re.fullmatch(r"(\d+)([KMGT]?)B?", str(text or "").upper())
    if not found:
        return None
    return float(int(found[1]) * 1024 ** {"K": 1, "": 2, "M": 2, "G": 3, "T": 4}[found[2]]) / per_node


def measured_peak(precision: str, threads: int | None, seconds: float = 0.4) -> float:
    """FLOP/s of this machine's CPU in square matrix products of the precision, the best of a short while."""
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    dtype = torch.bfloat16 if "bf16" in precision else torch.float16 if "16" in precision else torch.float32
    size, best, end = 1024, float("inf"), time.perf_counter() + seconds
    left, right = (torch.ones(size, size, dtype=dtype) for _ in range(2))
    while True:
        begin = time.perf_counter()
        left @ right
        now = time.perf_counter()
        best = min(best, now - begin)
        if now > end:
            break
    torch.set_num_threads(before)
    return 2.0 * size**3 / best
