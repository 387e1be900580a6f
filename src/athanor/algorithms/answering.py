"""Training an encoder-decoder to say the target of a source: the spans that were hidden from it (Raffel et al. 2020,
arXiv:1910.10683), or the answer to a prompt. Which of them, the data says.

loss = -(sum of log p(label) over the targets of the global batch) / (number of their tokens), in nats
"""

from typing import Any

from torch import Tensor

from athanor.algorithms.base import Algorithm
from athanor.batches import IGNORED, SourceBatch


class Answering(Algorithm):
    trains = "encoder-decoder"

    def negative_log_likelihood(self, batch: SourceBatch) -> Tensor:
        model: Any = self.model
        states_BSD = model.encode(
            batch.sources_BS, documents_BS=batch.source_documents_BS, positions_BS=batch.source_positions_BS
        )
        hidden_BTD = model.hidden_states(
            model.begun(batch.labels_BT, batch.positions_BT),
            source=states_BSD,
            source_documents_BS=batch.source_documents_BS,
            documents_BT=batch.documents_BT,
            positions_BT=batch.positions_BT,
        )
        mask_BT = batch.labels_BT != IGNORED
        return model.cross_entropy(hidden_BTD[mask_BT], batch.labels_BT[mask_BT])[0]

    def training_step(self, batch: SourceBatch, batch_idx: int) -> Tensor:
        return self.loss(self.negative_log_likelihood(batch), batch.normalizer)

    def validation_step(self, batch: SourceBatch, batch_idx: int) -> None:
        self.validated((batch.labels_BT != IGNORED).sum(), loss=self.negative_log_likelihood(batch))

    def tokens(self, batch: SourceBatch) -> int:
        return batch.sources_BS.numel() + batch.labels_BT.numel()

    @property
    def flops_per_token(self) -> float:
        source, target = self.trainer.datamodule.typical_lengths  # type: ignore[attr-defined]
        return self.model.flops(source, target) / (source + target)  # type: ignore[operator]
