"""What memory a step of training holds, moment by moment, without holding it.

The step's real code runs on torch's fake tensors, which have shapes and types but no data, and every storage that it
makes is counted from its birth to its death, by what it is for. So nothing here knows how a layer is built: what a
layer saves for the backward pass is what its code saves.

Without data, whatever depends on values is assumed: the share of a mask that is true, and the number that PPO reads.
"""

import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WEIGHTS, FROZEN, GRADIENTS, OPTIMIZER = "weights", "frozen models", "gradients", "optimizer state"
INPUTS, COPIES, ACTIVATIONS = "inputs", "low-precision weights", "activations"
LOGITS, WORKING, CACHE = "logits and loss", "working memory", "key-value cache"
GATHERED = "gathered"
CATEGORIES = (WEIGHTS, FROZEN, GRADIENTS, OPTIMIZER, INPUTS, COPIES, ACTIVATIONS, LOGITS, CACHE, WORKING,
              GATHERED)  # fmt: skip

ATEN = torch.ops.aten
BLOCK = 512  # bytes: CUDA's allocator counts in these; of no weight elsewhere


class Moment(NamedTuple):
    """When most was held in a phase: bytes of each category, whole, and what they come to on a device."""

    held: float
    parts: dict[str, float]


class Live(TorchDispatchMode):
    """Counts storages while it is entered; enter it inside FakeTensorMode.

    Args:
        share: of each category, the part of its bytes that one device holds.
        labelled: share of a mask's positions that are true.
        last: what a number that is read from a tensor is taken to be: the last column of a batch.
    """

    def __init__(self, share: Callable[[str, str], float], labelled: float = 1.0, last: int = 0):
        super().__init__()
        self.share, self.labelled, self.last = share, labelled, last
        self.phase, self.making, self.place = "build", WEIGHTS, ""
        self.parts: Counter[str] = Counter()
        self.held = 0.0
        self.storages: dict[int, tuple[int, str]] = {}  # bytes and category of each that is alive
        self.places: dict[int, str] = {}  # the block that each activation belongs to
        self.peaks: dict[str, Moment] = {}

    # --- what happens -----------------------------------------------------------------------------------------------

    def enter_phase(self, phase: str, making: str) -> None:
        """From now on what is made belongs to `making`, and the greatest amount held is kept under `phase`."""
        self.phase, self.making, self.place = phase, making, ""
        self.held = sum(size * self.share(category, phase) for category, size in self.parts.items())
        self.note_peak()

    def set(self, tensors: Iterable[Tensor | None], category: str) -> None:
        """These tensors are of that category, whatever they were when they were made."""
        for tensor in tensors:
            if tensor is not None:
                self.count(tensor)
                key = tensor.untyped_storage()._cdata
                size, old = self.storages[key]
                self.places.pop(key, None)
                self.storages[key] = size, category
                self.add(old, -size)
                self.add(category, size)

    def by_place(self) -> dict[str, int]:
        """Bytes of the activations alive now, by the block that made them."""
        found: Counter[str] = Counter()
        for key, place in self.places.items():
            found[place] += self.storages[key][0]
        return dict(found)

    # --- counting ---------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.prim.device.default:
            return args[0].fake_device
        result = self.assumed(function, args)
        if result is None:
            result = function(*args, **(kwargs or {}))
        category = self.making
        if function is ATEN._to_copy.default and self.category(args[0]) in (WEIGHTS, FROZEN, GATHERED):
            category = COPIES
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.count(value, category)
        return result

    def category(self, tensor: Tensor) -> str | None:
        found = self.storages.get(tensor.untyped_storage()._cdata)
        return found[1] if found else None

    def count(self, tensor: Tensor, category: str | None = None) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.storages:
            return
        category = category or self.making
        size = math.ceil(storage.nbytes() / BLOCK) * BLOCK
        self.storages[key] = size, category
        if category == ACTIVATIONS:
            self.places[key] = self.place
        weakref.finalize(storage, self.forget, key)
        self.add(category, size)
        self.note_peak()

    def forget(self, key: int) -> None:
        size, category = self.storages.pop(key)
        self.places.pop(key, None)
        self.add(category, -size)

    def add(self, category: str, size: int) -> None:
        self.parts[category] += size
        self.held += size * self.share(category, self.phase)

    def note_peak(self) -> None:
        before = self.peaks.get(self.phase)
        if before is None or self.held > before.held:
            self.peaks[self.phase] = Moment(self.held, dict(self.parts))

    # --- what depends on values ---------------------------------------------------------------------------------------

    def assumed(self, function: Any, args: Any) -> Any:
        """The result of an operation whose shape depends on values, or None for any other."""
        if function is ATEN._local_scalar_dense.default:
            return self.last
        if function is ATEN.nonzero.default:
            return args[0].new_empty((self.true_in(args[0]), args[0].ndim), dtype=torch.int64)
        if function is ATEN.masked_select.default:
            return args[0].new_empty((self.true_in(args[1]),))
        if function is ATEN.bincount.default:
            return args[0].new_empty((args[2],), dtype=torch.int64)
        if function is ATEN.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1]):
            places: list[Tensor | None] = []
            for index in args[1]:
                masked = index is not None and index.dtype == torch.bool
                count = self.true_in(index) if masked else 0
                places += [index.new_empty(count, dtype=torch.int64)] * index.ndim if masked else [index]
            return function(args[0], places)
        return None

    def true_in(self, mask: Tensor) -> int:
        return max(1, round(self.labelled * mask.numel()))
