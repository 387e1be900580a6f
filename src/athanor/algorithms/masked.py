"""Masked language modelling (Devlin et al. 2019, arXiv:1810.04805): an encoder fills in what was hidden.

loss = -(sum of log p(label) over the chosen tokens of the global batch) / (number of them), in nats
"""

from torch import Tensor

from athanor.algorithms.base import Algorithm
from athanor.batches import IGNORED, PackedBatch
from athanor.functional import cross_entropy_sum


class MaskedLanguageModeling(Algorithm):
    trains = "encoder"
    fixed_shapes = True

    def sums(self, batch: PackedBatch) -> dict[str, Tensor]:
        """Over the chosen tokens; logits are made for these only."""
        hidden_BTD = self.model.hidden_states(  # type: ignore[operator]
            batch.tokens_BT, documents_BT=batch.documents_BT, positions_BT=batch.positions_BT
        )
        chosen_BT = batch.labels_BT != IGNORED
        labels_N, logits_NV = batch.labels_BT[chosen_BT], self.model.logits(hidden_BTD[chosen_BT])  # type: ignore[operator]
        return {"loss": cross_entropy_sum(logits_NV, labels_N), "accuracy": (logits_NV.argmax(-1) == labels_N).sum()}

    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        sums = self.sums(batch)
        return self.loss(sums.pop("loss"), batch.normalizer, **sums)

    def validation_step(self, batch: PackedBatch, batch_idx: int) -> None:
        self.validated((batch.labels_BT != IGNORED).sum(), **self.sums(batch))
