"""Duplicates found, others kept, the first one stays; against a truth set and by hand."""

import gzip
import json
import random
from itertools import pairwise

import pytest
from corpus_harness import CHINESE, ENGLISH, document

from athanor.corpus.deduplicate import RECALL, ExactDuplicates, NearDuplicates, bands
from athanor.corpus.units import ngrams, units
from athanor.errors import UserError


def kept(step, texts):
    return [d.id for d in step(document(text, identity=n) for n, text in enumerate(texts))]


def jaccard(a, b, n=3):
    a, b = set(ngrams(units(a), n)), set(ngrams(units(b), n))
    return len(a & b) / len(a | b)


def test_exact_duplicates_differ_in_space_and_case_at_most():
    step = ExactDuplicates()
    texts = ["The Fox", "the  fox\n", "The fox.", "狐狸", "狐狸 ", "狐 狸", "The Fox"]
    assert kept(step, texts) == [0, 2, 3, 5]
    assert step.dropped == {"exact duplicate": 3}


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["english", "chinese"])
def test_a_small_change_is_a_duplicate_and_another_text_is_not(text):
    long = text * 3
    near, other = long[:-2] + "!", text[::-1] * 3
    assert jaccard(long, near) > 0.9 > 0.1 > jaccard(long, other)
    step = NearDuplicates(0.8)
    assert kept(step, [long, other, near, long.upper()]) == [0, 1]
    assert step.dropped == {"near duplicate": 2}


@pytest.mark.parametrize("alphabet", ["word", "汉字"])
def test_the_threshold_is_where_it_says(alphabet):
    """Pairs of known similarity: far below the threshold all stay, far above none does."""
    rng = random.Random(3)
    common = [f"w{n}" if alphabet == "word" else chr(0x4E00 + n) for n in range(5000)]

    def pair(shared, length=400):
        drawn = rng.sample(common, 2 * length - int(shared * length))
        return drawn[:length], drawn[length - int(shared * length) :]

    glue = " " if alphabet == "word" else ""
    for similarity, duplicate in ((0.5, False), (0.65, False), (0.95, True)):
        found = 0
        for _ in range(20):
            # shared tail and head overlap in one run, so that J of the trigrams is about s / (2 - s)
            one, two = pair(2 * similarity / (1 + similarity))
            assert jaccard(glue.join(one), glue.join(two)) == pytest.approx(similarity, abs=0.02)
            found += len(kept(NearDuplicates(0.8), [glue.join(one), glue.join(two)])) == 1
        assert found == (20 if duplicate else 0), similarity


def test_first_of_a_family_stays_whatever_came_between():
    texts = [
        ENGLISH * 3,
        CHINESE * 3,
        ENGLISH * 3 + "x",
        "quite another thing altogether, this one is",
        CHINESE * 3 + "。",
    ]
    assert kept(NearDuplicates(0.8), texts) == [0, 1, 3]


def test_short_and_wordless_texts_are_compared_as_wholes():
    assert kept(NearDuplicates(0.8), ["hello", "hello", "!!!", "!!!", "???", "world"]) == [0, 2, 4, 5]


def test_deterministic_by_seed():
    def signature(seed):
        step = NearDuplicates(0.8, seed=seed)
        list(step([document(ENGLISH)]))
        return step.signatures[0].digest()

    assert signature(1) == signature(1)
    assert signature(1) != signature(2)


def test_bands():
    assert bands(0.8, 128) == 32
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95):
        count = bands(threshold, 128)
        divisors = [n for n in range(1, 129) if 128 % n == 0]

        def recall(b, s=threshold):
            return 1 - (1 - s ** (128 // b)) ** b

        assert recall(count) >= RECALL or count == 128
        assert all(recall(b) < RECALL for b, after in pairwise(divisors) if after <= count)


def test_thresholds_out_of_range():
    for threshold in (0, 1, 80):
        with pytest.raises(UserError, match=f"threshold {threshold} must lie between 0 and 1"):
            NearDuplicates(threshold)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("ngram", [2, 3, 5])
def test_truth_set(shared, seed, ngram):
    """News articles of which ten pairs, and no others, are near-duplicates."""

    def lines(name):
        with gzip.open(shared / f"dedup_minhash/{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    documents = [document(row["text"], row["id"]) for row in lines("docs_1000")]
    step = NearDuplicates(0.8, ngram=ngram, seed=seed)
    remaining = {d.id for d in step(documents)}
    order = {d.id: n for n, d in enumerate(documents)}
    later = {max(pair.values(), key=order.__getitem__) for pair in lines("truth_1000")}
    assert {d.id for d in documents} - remaining == later
    assert len(later) == 10
