"""The only contract between data and algorithms: NamedTuples of tensors.

Shapes: B rows of this micro-batch, T tokens, P prompt tokens.

Every batch carries `normalizer`, the number of terms (valid tokens, pairs, prompts) in the *global* batch it is a part
of: all ranks and all accumulated micro-batches together. A loss is a sum divided by it, so padding, packing,
accumulation and world size leave the loss unchanged. It is known without communication, because the order of samples is
a function of the seed.
"""

from typing import NamedTuple

from torch import Tensor

IGNORED = -100
"""Label of a position that takes no part in a loss or a metric."""


class PackedBatch(NamedTuple):
    """Rows of consecutive documents. `documents_BT` numbers the documents of a row; attention stays within a
    document.
    """

    tokens_BT: Tensor
    labels_BT: Tensor  # the next token of the same document, else IGNORED; in rows for an encoder, what is hidden here
    documents_BT: Tensor
    positions_BT: Tensor  # 0 at the first token of each document's part
    normalizer: Tensor  # labels of the global batch


class SupervisedBatch(NamedTuple):
    """Prompt and response, padded on the right. Only response tokens have labels."""

    tokens_BT: Tensor
    labels_BT: Tensor
    normalizer: Tensor  # labels of the global batch


class SourceBatch(NamedTuple):
    """Sources for an encoder and the targets that answer them, padded on the right. Documents are numbered alike on
    both sides; padding is of document -1.
    """

    sources_BS: Tensor
    source_documents_BS: Tensor
    source_positions_BS: Tensor
    labels_BT: Tensor  # the targets; IGNORED in padding alone
    documents_BT: Tensor
    positions_BT: Tensor  # 0 at the first token of each target
    normalizer: Tensor  # labels of the global batch


class PreferenceBatch(NamedTuple):
    """The same prompts with a chosen and a rejected response, padded on the right to a common length.

    Sequences are whole (the last token, <|end|>, is there to be scored); the label at it is IGNORED.
    """

    chosen_BT: Tensor
    chosen_labels_BT: Tensor
    chosen_lengths_B: Tensor
    rejected_BT: Tensor
    rejected_labels_BT: Tensor
    rejected_lengths_B: Tensor
    normalizer: Tensor  # pairs of the global batch


class PromptBatch(NamedTuple):
    """Prompts padded on the left, so that every response begins in the same column. No rows at all between two
    rollouts.
    """

    tokens_BP: Tensor
    lengths_B: Tensor
    samples_B: Tensor  # position of the prompt in the whole run's order; seeds its generation
    longest: Tensor  # tokens of the longest prompt of the whole data set, the same on every rank
