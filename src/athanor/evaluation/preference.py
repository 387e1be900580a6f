"""Held-out preference pairs: how often does a reward model, or a policy's likelihoods, rank the chosen answer first?

A reward model ranks by its score, a policy by log p(answer | prompt), summed over tokens. Beside either stands what the
length of the answers alone would win, since that alone often wins much. A tie counts half.
"""

import torch

from athanor.batches import IGNORED
from athanor.data.formats import read_records, to_pair
from athanor.data.preferences import encode_pairs
from athanor.errors import UserError
from athanor.evaluation.exact_match import spread
from athanor.evaluation.measurement import Measurement, Outcome, described
from athanor.evaluation.subject import Subject, batched, next_token_logps, rewards


class Preference:
    """Measures `preference_accuracy` of a reward model or `implicit_preference_accuracy` of a policy, and
    `length_baseline_accuracy`: the longer answer, in tokens, taken for the better.

    Args:
        files: JSON Lines of pairs in any format of `athanor.data.formats`; pairs longer than the context are left out.
        pairs: at most so many, evenly spread over the files; None for all.
    """

    def __init__(self, files: list[str], pairs: int | None = None):
        self.files, self.pairs = files, pairs

    def __call__(self, subject: Subject) -> Outcome:
        records = spread(list(read_records(self.files)), self.pairs)
        wheres = [where for where, _ in records]
        pairs = [to_pair(record, where) for where, record in records]
        encoded, kept = [], []
        whole = encode_pairs(pairs, wheres, subject.tokenizer, 2**31, "error")  # no limit yet: items must stay aligned
        for i in range(len(whole)):
            sides = whole.chosen.whole(i), whole.rejected.whole(i)
            if max(len(tokens) for tokens, _ in sides) <= subject.context:
                encoded.append(sides)
                kept.append(i)
        if not kept:
            raise UserError(f"every pair is longer than the context of {subject.context} tokens of {subject.name}")
        items = described([records[i] for i in kept])
        rows = [side[0].tolist() for sides in encoded for side in sides]
        labels = [side[1] for sides in encoded for side in sides]
        starts = [int((label != IGNORED).argmax()) + 1 for label in labels]
        judge = hasattr(subject.model, "reward")
        if not judge:
            subject.require_language_model("a ranking by the likelihoods of whole conversations")
        scores = rewards(subject.model, rows, starts, subject) if judge else answer_logps(subject, rows, labels)
        lengths = [float((label != IGNORED).sum()) for label in labels]
        name = "preference_accuracy" if judge else "implicit_preference_accuracy"
        return Outcome(
            [
                Measurement(name, items, wins(scores), "fraction", "higher"),
                Measurement("length_baseline_accuracy", items, wins(lengths), "fraction", "none"),
            ]
        )


def answer_logps(subject: Subject, rows: list[list[int]], labels: list) -> list[float]:
    """log p(answer | prompt), summed over the labelled tokens of each row, nats."""
    scores = [0.0] * len(rows)
    width = subject.tokenizer.vocabulary_size
    for part, tokens_BT, _ in batched(rows, subject.tokenizer.pad_id, subject.device, width, subject.report):
        logps_BT = next_token_logps(subject.model, tokens_BT)
        mask_BT = torch.zeros(logps_BT.shape, dtype=torch.bool)
        for row, i in enumerate(part):
            mask_BT[row, : len(labels[i]) - 1] = torch.from_numpy(labels[i][:-1] != IGNORED)
        sums = torch.where(mask_BT.to(logps_BT.device), logps_BT, 0.0).double().sum(1)
        for i, score in zip(part, sums.tolist()):
            scores[i] = score
    return scores


def wins(scores: list[float]) -> list[float]:
    """Scores of chosen, rejected, chosen, rejected, ... -> 1 where chosen scores higher, 1/2 for a tie, else 0."""
    return [float(a > b) + 0.5 * float(a == b) for a, b in zip(scores[::2], scores[1::2])]
