"""Supervised fine-tuning: the pretraining loss on the assistant's tokens of conversations (Ouyang et al. 2022, section
3.5).

loss = -(sum of log p(label) over the answer tokens of the global batch) / (number of those tokens), in nats
"""

from typing import Any

from torch import Tensor

from athanor.algorithms.base import Algorithm
from athanor.batches import IGNORED, SupervisedBatch
from athanor.functional import up_to_last_label


class SFT(Algorithm):
    def negative_log_likelihood(self, batch: SupervisedBatch) -> Tensor:
        """Sum over the labelled positions; logits are made for them only, a block at a time."""
        model: Any = self.model
        hidden_BTD = model.hidden_states(batch.tokens_BT, valid_BT=up_to_last_label(batch.labels_BT))
        mask_BT = batch.labels_BT != IGNORED
        return model.cross_entropy(hidden_BTD[mask_BT], batch.labels_BT[mask_BT])[0]

    def training_step(self, batch: SupervisedBatch, batch_idx: int) -> Tensor:
        return self.loss(self.negative_log_likelihood(batch), batch.normalizer)

    def validation_step(self, batch: SupervisedBatch, batch_idx: int) -> None:
        self.validated((batch.labels_BT != IGNORED).sum(), loss=self.negative_log_likelihood(batch))
