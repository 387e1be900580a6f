"""Pretraining: next-token prediction on packed documents.

loss = -(sum of log p(label) over the labels of the global batch) / (number of those labels), in nats
"""

from torch import Tensor

from athanor.algorithms.base import Algorithm
from athanor.batches import IGNORED, PackedBatch
from athanor.functional import cross_entropy_sum


class Pretraining(Algorithm):
    def negative_log_likelihood(self, batch: PackedBatch) -> Tensor:
        logits_BTV = self.model(batch.tokens_BT, documents_BT=batch.documents_BT, positions_BT=batch.positions_BT)
        return cross_entropy_sum(logits_BTV, batch.labels_BT)

    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        return self.loss(self.negative_log_likelihood(batch), batch.normalizer)

    def validation_step(self, batch: PackedBatch, batch_idx: int) -> None:
        self.validated((batch.labels_BT != IGNORED).sum(), loss=self.negative_log_likelihood(batch))
