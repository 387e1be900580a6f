"""Supervised fine-tuning: the pretraining loss on the assistant's tokens of conversations (Ouyang et al. 2022, section
3.5).

loss = -(sum of log p(label) over the answer tokens of the global batch) / (number of those tokens), in nats
"""

from torch import Tensor

from athanor.algorithms.base import Algorithm, response_logps
from athanor.batches import IGNORED, SupervisedBatch


class SFT(Algorithm):
    def training_step(self, batch: SupervisedBatch, batch_idx: int) -> Tensor:
        return self.loss(-response_logps(self.model, batch.tokens_BT, batch.labels_BT).sum(), batch.normalizer)

    def validation_step(self, batch: SupervisedBatch, batch_idx: int) -> None:
        logps_BT = response_logps(self.model, batch.tokens_BT, batch.labels_BT)
        self.validated((batch.labels_BT != IGNORED).sum(), loss=-logps_BT.sum())
