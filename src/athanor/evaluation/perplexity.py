"""Loss on held-out documents: nats a token, and bits a byte, which compares models with different tokenizers.

    loss per token = -(sum of log p) / tokens           over all documents
    bits per byte  = -(sum of log2 p) / bytes of UTF-8

A document is what is resampled for the intervals: its tokens are not independent. The end-of-document token is
predicted and counted with the rest; the beginning is given.
"""

import math

import numpy as np
import torch

from athanor.corpus.shards import Shards
from athanor.errors import UserError
from athanor.evaluation.measurement import Measurement, Outcome
from athanor.evaluation.subject import Subject, batched, next_token_logps
from athanor.runs.store import open_run


class Perplexity:
    """Measures on the validation split of token shards.

    Args:
        shards: directory of the run that wrote the shards.
        documents: at most so many of each language, evenly spread over the split; None for all.
        overlap: tokens of earlier text that each window after a document's first sees; at most half of the context.
    """

    def __init__(self, shards: str, documents: int | None = None, overlap: int = 0):
        if documents is not None and documents < 2:
            raise UserError(f"documents={documents} of perplexity must be at least 2, or null for all")
        self.shards, self.documents, self.overlap = shards, documents, overlap

    def __call__(self, subject: Subject) -> Outcome:
        subject.require_language_model("perplexity")
        if not 0 <= self.overlap <= subject.context // 2:
            raise UserError(f"overlap={self.overlap} of perplexity must lie between 0 and half of {subject.context}")
        shards = Shards(self.shards, "validation")
        require_tokenizer_of(self.shards, shards.vocabulary_size, subject)
        chosen = chosen_documents(shards, self.documents)
        if not chosen:
            raise UserError(f"{self.shards} has no validation documents; raise validation_fraction of its experiment")
        rows: list[list[int]] = []
        owners, given = [], []
        for place, document in enumerate(chosen):
            tokens = shards.tokens[shards.offsets[document] : shards.offsets[document + 1]]
            for start, end, known in windows(len(tokens), subject.context, self.overlap):
                rows.append(tokens[start:end].tolist())
                owners.append(place)
                given.append(known)
        nats, counts = [0.0] * len(chosen), [0] * len(chosen)
        width = subject.tokenizer.vocabulary_size
        for part, tokens_BT, lengths_B in batched(
            rows, subject.tokenizer.pad_id, subject.device, width, subject.report
        ):
            if tokens_BT.shape[1] < 2:
                continue
            logps_BT = next_token_logps(subject.model, tokens_BT)
            columns = torch.arange(logps_BT.shape[1], device=logps_BT.device)
            known_B1 = torch.tensor([[given[i]] for i in part], device=logps_BT.device)
            scored_BT = (columns >= known_B1 - 1) & (columns < lengths_B[:, None] - 1)
            sums = torch.where(scored_BT, logps_BT, 0.0).double().sum(1).tolist()
            for i, total, count in zip(part, sums, scored_BT.sum(1).tolist()):
                nats[owners[i]] -= total
                counts[owners[i]] += count
        kept = [place for place, count in enumerate(counts) if count]
        items = [
            {
                "id": f"validation/{chosen[p]}",
                "language": shards.languages[shards.info["language"][chosen[p]]],
                "texts": [subject.tokenizer.decode(shards.tokens[slice(*shards.offsets[chosen[p] : chosen[p] + 2])])],
            }
            for p in kept
        ]
        octets = [float(shards.info["bytes"][chosen[p]]) for p in kept]
        losses, predicted = [nats[p] for p in kept], [float(counts[p]) for p in kept]
        bits = [loss / math.log(2) for loss in losses]
        return Outcome(
            [
                Measurement("loss_per_token", items, losses, "nats/token", "lower", predicted),
                Measurement("bits_per_byte", items, bits, "bits/byte", "lower", octets),
            ]
        )


def chosen_documents(shards: Shards, documents: int | None) -> list[int]:
    """At most so many of each language, evenly spread; in order."""
    chosen: list[int] = []
    for language in range(len(shards.languages)):
        every = np.flatnonzero(shards.info["language"] == language)
        count = len(every) if documents is None else min(documents, len(every))
        chosen += every[np.arange(count) * len(every) // max(count, 1)].tolist()
    return sorted(chosen)


def require_tokenizer_of(shards: str, vocabulary_size: int, subject: Subject) -> None:
    """Raises UserError where the shards were written in other tokens than the model reads."""
    given = open_run(shards).manifest.get("inputs", {}).get("tokenizer", {})
    theirs = None
    if given.get("kind") == "run" and given.get("directory"):
        theirs = open_run(given["directory"]).manifest["outputs"].get("tokenizer.model", {}).get("sha256")
    if vocabulary_size != subject.tokenizer.vocabulary_size or (theirs and theirs != subject.tokenizer_hash):
        raise UserError(
            f"the shards {shards} were written with another tokenizer than that of {subject.name}; "
            "evaluate on shards of the same documents written with the model's tokenizer"
        )


def windows(length: int, context: int, overlap: int) -> list[tuple[int, int, int]]:
    """(start, end, known): windows tokens[start:end] of at most context + 1 tokens, the first `known` of them given.

    Every token but the document's first is predicted in exactly one window.
    """
    found = []
    start, known = 0, 1
    while start + known < length:
        end = min(length, start + context + 1)
        found.append((start, end, known))
        start, known = end - 1 - overlap, overlap + 1
    return found
