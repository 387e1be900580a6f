"""Supervised fine-tuning: the pretraining loss on the assistant's tokens of conversations (Ouyang et al. 2022, section
3.5).

loss = -(sum of log p(label) over the answer tokens of the global batch) / (number of those tokens), in nats
"""

from torch import Tensor

from athanor.algorithms.base import Algorithm
from athanor.batches import IGNORED, SupervisedBatch


class SFT(Algorithm):
    def negative_log_likelihood(self, batch: SupervisedBatch) -> Tensor:
        """Sum over the labelled positions; logits are made for them only, a block at a time."""
        hidden_BTD, mask_BT = self.model.hidden_states(batch.tokens_BT), batch.labels_BT != IGNORED  # type: ignore[operator]
        return self.model.cross_entropy(hidden_BTD[mask_BT], batch.labels_BT[mask_BT])[0]  # type: ignore[operator]

    def training_step(self, batch: SupervisedBatch, batch_idx: int) -> Tensor:
        return self.loss(self.negative_log_likelihood(batch), batch.normalizer)

    def validation_step(self, batch: SupervisedBatch, batch_idx: int) -> None:
        self.validated((batch.labels_BT != IGNORED).sum(), loss=self.negative_log_likelihood(batch))
