"""Texts that are more like a good set than like a bad one, by a linear classifier of words and pairs of words.

As GPT-3's filter (Brown et al. 2020, arXiv:2005.14165, appendix A): hashed features and logistic regression, here by
scikit-learn. Words are units (see units.py), so that Chinese is judged by its characters and their pairs.
"""

import json
from collections.abc import Iterator
from functools import cached_property
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from athanor.corpus.documents import Document, documents_of
from athanor.corpus.normalize import rare
from athanor.corpus.steps import Step
from athanor.corpus.units import ngrams, units
from athanor.errors import UserError

if TYPE_CHECKING:
    from athanor.runs.context import RunContext

WEIGHTS, ACCOUNT = "classifier.npy", "classifier.json"
MOST = 20_000  # characters of a text that are looked at


def features(text: str) -> list[str]:
    words = units(text[:MOST].casefold())
    return words + ngrams(words, 2)


def vectorizer(bits: int) -> Any:
    return rare("sklearn.feature_extraction.text").HashingVectorizer(
        analyzer=features, n_features=1 << bits, alternate_sign=False, dtype=np.float32
    )


def held_out(text: str, fraction: float) -> bool:
    return int.from_bytes(blake2b(text.encode("utf-8", "replace"), digest_size=4).digest(), "big") < fraction * 2**32


class TrainClassifier:
    """Writes classifier.npy, float32 [1 + features] with the intercept first, and classifier.json with the accuracy and
    the area under the ROC curve on texts held out by their hash.

    Args:
        positive, negative: directories of runs that prepared documents.
        bits: 2^bits features.
        strength: of the fit, inverse to the penalty on the weights (C of scikit-learn).
        held_out: share of the texts to measure on.
    """

    def __init__(
        self,
        positive: str | list[str],
        negative: str | list[str],
        bits: int = 18,
        strength: float = 10.0,
        held_out: float = 0.1,
    ):
        if not 8 <= bits <= 26:
            raise UserError(f"TrainClassifier: bits {bits} must lie between 8 and 26.")
        if not 0 < held_out < 1 or strength <= 0:
            raise UserError("TrainClassifier: held_out must lie between 0 and 1, and strength must be above 0.")
        self.sides = [[side] if isinstance(side, str) else list(side) for side in (negative, positive)]
        self.bits = bits
        self.strength = strength
        self.held_out = held_out

    def run(self, run: "RunContext") -> dict[str, float]:
        linear, metrics = rare("sklearn.linear_model"), rare("sklearn.metrics")
        run.progress.stage("reading")
        texts: dict[bool, list[str]] = {True: [], False: []}
        labels: dict[bool, list[int]] = {True: [], False: []}
        for label, side in enumerate(self.sides):
            for document in chain.from_iterable(map(documents_of, side)):
                measured = held_out(document.text, self.held_out)
                texts[measured].append(document.text)
                labels[measured].append(label)
                count = len(texts[True]) + len(texts[False])
                run.progress.update(count, count)
        for part in (True, False):
            if set(labels[part]) != {0, 1}:
                raise UserError(
                    f"TrainClassifier: {'held_out of ' if part else ''}the texts are not of both sides "
                    f"({sum(labels[part])} positive of {len(labels[part])}); give more documents."
                )
        run.progress.stage("fitting")
        model = linear.LogisticRegression(C=self.strength, max_iter=1000, class_weight="balanced")
        model.fit(vectorizer(self.bits).transform(texts[False]), labels[False])
        weights = np.concatenate([model.intercept_, model.coef_[0]]).astype("<f4")
        probabilities = np.array([*probabilities_of(texts[True], weights, self.bits)])
        account = {
            "bits": self.bits,
            "trained_on": {"negative": labels[False].count(0), "positive": labels[False].count(1)},
            "held_out": {"negative": labels[True].count(0), "positive": labels[True].count(1)},
            "auc": round(float(metrics.roc_auc_score(labels[True], probabilities)), 4),
            "accuracy": round(float(np.mean((probabilities > 0.5) == np.array(labels[True]))), 4),
        }
        with run.temporary(WEIGHTS) as path, open(path, "wb") as file:
            np.save(file, weights)
        with run.temporary(ACCOUNT) as path:
            path.write_text(json.dumps(account, indent=1) + "\n", encoding="utf-8")
        return {"auc": account["auc"], "accuracy": account["accuracy"]}  # type: ignore[dict-item]


def probabilities_of(texts: list[str], weights: np.ndarray, bits: int) -> Iterator[float]:
    """That each is of the positive set."""
    found = vectorizer(bits).transform(texts)
    yield from (1 / (1 + np.exp(-(found @ weights[1:] + weights[0])))).tolist()


class Classified(Step):
    """Notes the probability of the positive set as `quality` in meta, where the rule "best" of duplicates looks for it.

    Args:
        classifier: directory of a run of TrainClassifier.
        minimum: probability below which a document goes.
    """

    name = "classifier"

    def __init__(self, classifier: str, minimum: float = 0.5, only: list[str] | None = None):
        super().__init__(only)
        if not 0 <= minimum <= 1:
            raise UserError(f"Classified: minimum {minimum} must lie between 0 and 1.")
        self.classifier = classifier
        self.minimum = minimum

    @cached_property
    def weights(self) -> tuple[np.ndarray, int]:
        from athanor.runs.store import open_run

        run = open_run(self.classifier)
        weights = np.load(run.path(WEIGHTS))
        return weights, json.loads(Path(run.path(ACCOUNT)).read_text())["bits"]

    def apply(self, document: Document) -> Document | str:
        (probability,) = probabilities_of([document.text], *self.weights)
        if probability < self.minimum:
            return f"quality below {self.minimum}"
        return document._replace(meta=document.meta | {"quality": round(probability, 4)})
