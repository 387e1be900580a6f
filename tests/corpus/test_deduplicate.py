"""Duplicates found, others kept, the first one stays; against a truth set and by hand."""

import gzip
import json
import random
from itertools import pairwise

import numpy as np
import pytest
from corpus_harness import CHINESE, ENGLISH, Outputs, document

from athanor.corpus import deduplicate
from athanor.corpus.buckets import SMALLEST, Buckets
from athanor.corpus.deduplicate import (
    RECALL,
    ExactDuplicates,
    NearDuplicates,
    SimilarDuplicates,
    bands,
    simhash,
    tables,
)
from athanor.corpus.documents import write_documents
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
        return step.index.signatures[0].tolist()

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


STEPS = {
    "minhash": lambda **options: NearDuplicates(0.8, **options),
    "simhash": lambda **options: SimilarDuplicates(6, **options),
}


def test_simhash_by_hand():
    """Of one n-gram its hash; of three the majority of each bit; repetition and case change nothing."""
    one, two, three = (simhash(text, 2) for text in ("a b", "b c", "c d"))
    assert len({one, two, three}) == 3
    assert simhash("a b c d", 2) == one & two | two & three | one & three
    assert simhash("A b, a B!", 2) != one, "b a is a run too"
    assert simhash("狐狸狐狸狐狸", 1) == simhash("狐狸", 1)
    assert simhash("A B", 3) == simhash("a  b", 3)
    assert simhash("???", 3) != simhash("!!!", 3)
    assert simhash("ab, c", 3, "character") == simhash("A b c", 3)


def test_simhash_bits_are_those_of_every_machine():
    assert [f"{simhash(text, 3):016x}" for text in (ENGLISH, CHINESE)] == SIMHASHES


SIMHASHES = ["922110dd1d56ca01", "95403d34deaa3390"]


@pytest.mark.parametrize("count", [0, 10**6, 10**9])
@pytest.mark.parametrize("distance", range(11))
def test_tables_miss_no_pair_within_the_distance(distance, count):
    masks = tables(distance, count)
    assert min(mask.bit_count() for mask in masks) >= 10
    rng = random.Random(distance)
    for _ in range(2000):
        change = sum(1 << bit for bit in rng.sample(range(64), distance))
        assert any(mask & change == 0 for mask in masks)


def test_keys_grow_with_the_corpus_and_change_nothing(monkeypatch):
    """A larger corpus gets tables of longer keys, and whoever is found is found by either."""
    assert min(mask.bit_count() for mask in tables(6, 10**6)) > min(mask.bit_count() for mask in tables(6))
    short = tables(6)
    monkeypatch.setattr(deduplicate, "tables", lambda distance, count=0: tables(6, 10**6 * (count > SMALLEST)))
    rng = random.Random(3)
    numbers = [rng.getrandbits(64) for _ in range(900)]
    numbers += [n ^ sum(1 << bit for bit in rng.sample(range(64), rng.randrange(5, 9))) for n in numbers]
    step = SimilarDuplicates(6)
    assert step.masks == short
    for position, number in enumerate(numbers):
        key = np.array([number], np.uint64)
        expected = [p for p in range(position) if (numbers[p] ^ number).bit_count() <= 6]
        assert step.alike(key) == expected
        step.remember(key)
    assert step.masks == tables(6, 10**6), "they were exchanged on the way"


def test_similar_documents_find_what_comparing_all_finds():
    rng = random.Random(5)
    step = SimilarDuplicates(6)
    families = [rng.getrandbits(64) for _ in range(40)]
    numbers = [n ^ sum(1 << bit for bit in rng.sample(range(64), rng.randrange(6))) for n in families * 40]
    for position, number in enumerate(numbers):
        key = np.array([number], np.uint64)
        expected = [p for p in range(position) if (numbers[p] ^ number).bit_count() <= 6]
        assert step.alike(key) == expected
        assert step.remember(key) == position
    assert len(numbers) > SMALLEST, "the tables have grown"


def test_buckets_lose_nothing_when_they_grow():
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 500, (3000, 4), np.uint32)
    buckets = Buckets(4, "u4", lambda part: part.astype(np.uint64))
    for number, row in enumerate(rows):
        expected = np.flatnonzero((rows[:number] == row).any(1)).tolist()
        found = buckets.candidates(row)
        assert set(expected) <= set(found)
        assert found == sorted(found)
        assert buckets.add(row) == number
    assert (buckets.signatures == rows).all()


@pytest.mark.parametrize("method", STEPS)
@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["english", "chinese"])
def test_the_one_of_a_family_that_stays(method, text):
    long = text * 4
    given = [
        document(text[::-1] * 4, 0, date="2021"),
        document(long[:-1], 1, date="2020-05-01", quality=0.2),
        document(long, 2, date="2019", quality=0.9),
        document(long[:-2] + "!", 3, date="2020-11-30"),
        document("quite another thing altogether, this one is", 4),
        document("ignored", 5, source="other"),
    ]
    for keep, stays in (("first", 1), ("longest", 2), ("newest", 3), ("best", 2)):
        step = STEPS[method](keep=keep, only=["s"])
        assert [d.id for d in step(given)] == [0, stays, 4, 5], keep
        assert step.dropped == {"near duplicate": 2}
        assert keep == "first" or step.counts == {"families of two and more": 1}


def test_families_link_through_their_middle():
    """a is like b, b like c, a not like c: one family, whichever order they come in."""
    words = [f"w{n}" for n in range(500)]
    a, b, c = " ".join(words[:400]), " ".join(words[20:420]), " ".join(words[40:440])
    assert jaccard(a, b) > 0.88 > 0.82 > jaccard(a, c)
    given = {"a": document(a, "a"), "b": document(b, "b", quality=1), "c": document(c, "c", quality=0.5)}
    for order in ("abc", "acb", "bca"):
        step = NearDuplicates(0.86, permutations=512, keep="best")
        assert [d.id for d in step(given[name] for name in order)] == ["b"], order


@pytest.mark.parametrize("keep", ["first", "longest"])
@pytest.mark.parametrize("make", [ExactDuplicates, *STEPS.values()], ids=["exact", *STEPS])
def test_against_an_earlier_corpus(tmp_path, monkeypatch, make, keep):
    import athanor.runs.store

    monkeypatch.setattr(athanor.runs.store, "open_run", Outputs)
    write_documents(tmp_path / "documents.jsonl.zst", [document(CHINESE * 3), document("old and gone by now")])
    step = make(against=[str(tmp_path)], keep=keep)
    assert kept(step, [ENGLISH * 3, CHINESE * 3, "something new", ENGLISH * 3, CHINESE * 3]) == [0, 2]
    assert step.dropped == {"in an earlier corpus": 2, step.reason: 1}


def test_a_rule_that_does_not_exist():
    with pytest.raises(UserError, match="keep 'shortest' must be first, longest, newest or best"):
        ExactDuplicates(keep="shortest")
    with pytest.raises(UserError, match="distance 11 must lie between 0 and 10"):
        SimilarDuplicates(11)


def edited(text, rate, rng):
    """Each character is, with probability `rate`, replaced, removed or followed by another of the text."""
    result = []
    for character in text:
        if rng.random() >= rate:
            result.append(character)
            continue
        kind = rng.randrange(3)
        result.append(("", rng.choice(text), character + rng.choice(text))[kind])
    return "".join(result)


@pytest.mark.parametrize(
    ("make", "rate", "least"),
    [
        (lambda: NearDuplicates(0.4, unit="character"), 0.1, 0.97),
        (lambda: NearDuplicates(0.8), 0.001, 0.97),
        (lambda: SimilarDuplicates(10, unit="character"), 0.02, 0.85),
        (lambda: SimilarDuplicates(6), 0.001, 0.9),
    ],
    ids=["minhash-letters", "minhash-words", "simhash-letters", "simhash-words"],
)
def test_planted_duplicates(shared, make, rate, least):
    """Real articles and copies with character edits: no false pair, and most copies of few edits found."""
    with gzip.open(shared / "dedup_minhash/docs_1000.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file][:200]
    with gzip.open(shared / "zh_drcd_wiki/paragraphs.jsonl.gz", "rt", encoding="utf-8") as file:
        texts += [json.loads(line)["text"] for line in file][:200]
    rng = random.Random(1)
    originals = list(NearDuplicates()(document(text, n) for n, text in enumerate(texts)))
    step = make()
    for original in originals:
        step.remember(step.known_by(original))
    found = [step.alike(step.known_by(d._replace(text=edited(d.text, rate, rng)))) for d in originals]
    right = sum(number in numbers for number, numbers in enumerate(found))
    wrong = sum(other != number for number, numbers in enumerate(found) for other in numbers)
    assert right >= least * len(originals)
    assert wrong <= 0.01 * right


@pytest.mark.parametrize(
    "step",
    [
        *(NearDuplicates(0.8, ngram=n, seed=seed) for n in (2, 3, 5) for seed in (1, 2)),
        *(SimilarDuplicates(distance) for distance in (4, 6, 10)),
        SimilarDuplicates(7, ngram=2),
    ],
    ids=lambda step: step.name,
)
def test_truth_set(shared, step):
    """News articles of which ten pairs, and no others, are near-duplicates."""

    def lines(name):
        with gzip.open(shared / f"dedup_minhash/{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    documents = [document(row["text"], row["id"]) for row in lines("docs_1000")]
    remaining = {d.id for d in step(documents)}
    order = {d.id: n for n, d in enumerate(documents)}
    later = {max(pair.values(), key=order.__getitem__) for pair in lines("truth_1000")}
    assert {d.id for d in documents} - remaining == later
    assert len(later) == 10


@pytest.mark.parametrize("keep", ["first", "longest"])
def test_clusters_by_size(keep):
    """Three alike, two alike, one alone; those of an earlier corpus are not counted."""
    texts = ["a b c d", "e f g h", "A b c  d", "i j k l", "e f g H", "a B c d"]
    step = ExactDuplicates(keep=keep)
    assert len(list(step([document(text, number) for number, text in enumerate(texts)]))) == 3
    assert step.details["clusters"] == {"2": 1, "3": 1}
