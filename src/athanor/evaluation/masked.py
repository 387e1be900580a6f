"""What an encoder fills in, on held-out documents: hidden tokens, and each token hidden by itself.

    masked_accuracy, masked_loss     of the tokens chosen as in training (15%, replaced by the mask or not), one draw
    pseudo_loss_per_token            -(sum over t of log p(token t | all others)) / tokens (Salazar et al. 2020,
                                     arXiv:1910.14659, eq. 1 and 3); exp of it is the pseudo-perplexity

A document is cut to the context. Its first and last marks are neither hidden nor counted.
"""

import numpy as np
import torch

from athanor.batches import IGNORED
from athanor.corpus.shards import Shards
from athanor.data.base import pad_right
from athanor.data.corruption import Marks, check_rate, hide, single_tokens
from athanor.errors import UserError
from athanor.evaluation.measurement import Measurement, Outcome
from athanor.evaluation.perplexity import chosen_documents, require_tokenizer_of
from athanor.evaluation.subject import Subject, batched
from athanor.functional import token_logps


class Masked:
    """Measures on the validation split of token shards.

    Args:
        shards: directory of the run that wrote the shards.
        documents: at most so many of each language, evenly spread over the split; None for all.
        rate: share of the tokens that are chosen, of which 8 in 10 become the mask and 1 a random token.
        pseudo: documents of each language, the first of the above, for the pseudo-perplexity, which takes a pass for
            every token; 0 leaves it out.
    """

    def __init__(self, shards: str, documents: int | None = None, rate: float = 0.15, pseudo: int = 0):
        if documents is not None and documents < 2:
            raise UserError(f"documents={documents} of masked must be at least 2, or null for all")
        check_rate(rate)
        self.shards, self.documents, self.rate, self.pseudo = shards, documents, rate, pseudo

    def __call__(self, subject: Subject) -> Outcome:
        subject.require_language_model("the filling in of masked tokens", ("encoder",))
        shards, marks = Shards(self.shards, "validation"), Marks.of(subject.tokenizer)
        require_tokenizer_of(self.shards, shards.vocabulary_size, subject)
        rows, hidden, kept = [], [], []
        for document in chosen_documents(shards, self.documents):
            start = int(shards.offsets[document])
            tokens = shards.tokens[start : min(start + subject.context, shards.offsets[document + 1])].astype(np.int64)
            text, rng = np.flatnonzero(marks.text[tokens]), np.random.default_rng(document)
            if len(text):
                kept.append(document)
                rows.append((tokens, text))
                hidden.append(hide(tokens, single_tokens(text, self.rate, rng), marks, rng, 0.8, 0.1))
        if not kept:
            raise UserError(f"{self.shards} has no validation documents; raise validation_fraction of its experiment")
        items = [{"id": f"validation/{d}", "language": shards.languages[shards.info["language"][d]]} for d in kept]
        found = score(subject, hidden)
        counts = [float((labels != IGNORED).sum()) for _, labels in hidden]
        measured = [
            Measurement("masked_accuracy", items, [right for _, right in found], "fraction", "higher", counts),
            Measurement("masked_loss", items, [nats for nats, _ in found], "nats/token", "lower", counts),
        ]
        first = [i for i, item in enumerate(items) if self.pseudo > sum(
            other["language"] == item["language"] for other in items[:i]
        )]  # fmt: skip
        if first:
            subject.report(0, len(first))
            losses = []
            for i in first:
                tokens, text = rows[i]
                alone = [
                    hide(tokens, [text[t : t + 1]], marks, np.random.default_rng(0), 1, 0) for t in range(len(text))
                ]
                losses.append(sum(nats for nats, _ in score(subject, alone)))
            given = [items[i] for i in first]
            sizes = [float(len(rows[i][1])) for i in first]
            measured.append(Measurement("pseudo_loss_per_token", given, losses, "nats/token", "lower", sizes))
        return Outcome(measured)


@torch.no_grad()
def score(subject: Subject, rows: list[tuple[np.ndarray, np.ndarray]]) -> list[tuple[float, float]]:
    """(-sum of log p(label), labels that are the likeliest token) of each (tokens, labels)."""
    found = [(0.0, 0.0)] * len(rows)
    model, tokens, width = subject.model, [row.tolist() for row, _ in rows], subject.tokenizer.vocabulary_size
    for part, tokens_BT, lengths_B in batched(tokens, subject.tokenizer.pad_id, subject.device, width, subject.report):
        labels_BT = pad_right([rows[i][1] for i in part], IGNORED).to(tokens_BT.device)
        columns = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        documents_BT = (columns < lengths_B[:, None]).long() - 1  # padding is of document -1
        hidden_BTD = model.hidden_states(tokens_BT, documents_BT=documents_BT)  # type: ignore[operator]
        chosen_BT = labels_BT != IGNORED
        logits_NV = model.logits(hidden_BTD[chosen_BT])  # type: ignore[operator]
        sums = []
        for values_N in (-token_logps(logits_NV, labels_BT[chosen_BT]), logits_NV.argmax(-1) == labels_BT[chosen_BT]):
            values_BT = torch.zeros(labels_BT.shape, dtype=torch.float64, device=labels_BT.device)
            sums.append(values_BT.masked_scatter(chosen_BT, values_N.double()).sum(1).tolist())
        for i, nats, right in zip(part, *sums):
            found[i] = (nats, right)
    return found
