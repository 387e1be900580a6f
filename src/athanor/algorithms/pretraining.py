"""Pretraining: next-token prediction on packed documents.

loss = -(sum of log p(label) over the labels of the global batch) / (number of those labels), in nats
"""

from torch import Tensor

from athanor.algorithms.base import Algorithm
from athanor.batches import IGNORED, PackedBatch


class Pretraining(Algorithm):
    """
    Args:
        label_smoothing, z_loss: of `athanor.linear_cross_entropy`; validation is always without them.
    """

    fixed_shapes = True

    def __init__(self, model, optimizer, schedule, label_smoothing: float = 0.0, z_loss: float = 0.0):
        super().__init__(model, optimizer, schedule)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"algorithm.label_smoothing={label_smoothing} must lie in [0, 1)")
        if z_loss < 0:
            raise ValueError(f"algorithm.z_loss={z_loss} must be at least 0")
        self.settings = {"label_smoothing": label_smoothing, "z_loss": z_loss}

    def losses(self, batch: PackedBatch, **settings: float) -> tuple[Tensor, Tensor]:
        """What is minimised, and the negative log likelihood: sums over the batch."""
        where = {"documents_BT": batch.documents_BT, "positions_BT": batch.positions_BT}
        hidden_BTD = self.model.hidden_states(batch.tokens_BT, **where)  # type: ignore[operator]
        return self.model.cross_entropy(hidden_BTD, batch.labels_BT, **settings)  # type: ignore[operator]

    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        loss, nll = self.losses(batch, **self.settings)
        extra = {"nll": nll} if any(self.settings.values()) else {}
        return self.loss(loss, batch.normalizer, **extra)

    def validation_step(self, batch: PackedBatch, batch_idx: int) -> None:
        self.validated((batch.labels_BT != IGNORED).sum(), loss=self.losses(batch)[1])
