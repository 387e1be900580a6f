"""Word-for-word repetitions go the second time, to the unit, and nothing else does."""

import random

import numpy as np
import pytest
from corpus_harness import CHINESE, ENGLISH, Outputs, document

from athanor.corpus import spans
from athanor.corpus.documents import write_documents
from athanor.corpus.spans import RepeatedSpans, windows
from athanor.corpus.units import units
from athanor.errors import UserError


def fresh(count, seed, letters="word"):
    rng = random.Random(seed)
    if letters == "word":
        return " ".join(f"w{rng.randrange(10**9)}" for _ in range(count))
    return "".join(chr(rng.randrange(0x4E00, 0x9F00)) for _ in range(count))


@pytest.mark.parametrize("glue", [" ", ""], ids=["english", "chinese"])
def test_a_run_goes_to_the_unit_and_the_first_stays(glue):
    letters = "word" if glue else "character"
    common, one, other, end = (fresh(n, n, letters) for n in (60, 100, 101, 102))
    first, second = glue.join((one, common, end)), glue.join((other, common.upper(), one[:40]))
    step = RepeatedSpans(50)
    a, b = step([document(first), document(second)])
    assert a.text == first
    assert b.text == glue.join((other, one[:40]))
    assert step.counts == {"spans removed": 1, "units removed": 60, "documents shortened": 1}


def naive(texts, minimum):
    """For each text which units lie in a run of `minimum` that stood before, comparing all with all."""
    seen: set[tuple[str, ...]] = set()
    marked = []
    for text in texts:
        parts = [unit.casefold() for unit in units(text)]
        runs = [tuple(parts[i : i + minimum]) for i in range(len(parts) - minimum + 1)]
        marked.append({i + j for i, run in enumerate(runs) if run in seen for j in range(minimum)})
        seen.update(runs)
    return marked


@pytest.mark.parametrize("minimum", [4, 7, 20])
def test_all_that_comparing_all_with_all_finds(minimum, monkeypatch):
    """Texts pasted from a few pieces, at every offset: no run of another text is missed and none is invented."""
    monkeypatch.setattr(spans, "PLACES", 10**6)
    rng = random.Random(minimum)
    pieces = [fresh(200, n).split() for n in range(4)]
    texts = []
    for _ in range(60):
        words = []
        for _ in range(rng.randrange(1, 5)):
            piece, start = rng.choice(pieces), rng.randrange(200)
            words += [*piece[start : start + rng.randrange(1, 3 * minimum)], f"n{rng.random()}"]
        texts.append(" ".join(words))
    step = RepeatedSpans(minimum)
    for text, expected in zip(texts, naive(texts, minimum)):
        found = {place for start, end in step.repeated(text) for place in range(start, end)}
        assert expected <= found
        alone = {place for start, end in RepeatedSpans(minimum).repeated(text) for place in range(start, end)}
        assert found - alone == expected - alone, "nothing that no other text has"


def test_within_one_text_one_copy_stays():
    piece = fresh(30, 1)
    (result,) = RepeatedSpans(20, min_left=0)([document(" ".join([piece] * 5))])
    assert result.text == piece


def test_short_repetitions_stay_and_mostly_repeated_texts_go():
    step = RepeatedSpans(50)
    assert (len(units(ENGLISH)), len(units(CHINESE))) == (47, 74)
    given = [document(text, n) for n, text in enumerate((ENGLISH, ENGLISH, CHINESE, f"再说一遍：{CHINESE}", ""))]
    assert [d.id for d in step(given)] == [0, 1, 2, 4]
    assert step.dropped == {"mostly repeated spans": 1}


def test_windows_are_equal_where_runs_are():
    rng = np.random.default_rng(1)
    numbers = rng.integers(0, 3, 3000).astype(np.uint64)
    found = windows(numbers, 7)
    runs = np.lib.stride_tricks.sliding_window_view(numbers, 7)
    labels = {}
    for key, run in zip(found.tolist(), map(tuple, runs.tolist())):
        assert labels.setdefault(key, run) == run
    assert len(labels) == len(set(map(tuple, runs.tolist())))
    assert len(windows(numbers[:6], 7)) == 0


def test_against_an_earlier_corpus(tmp_path, monkeypatch):
    import athanor.runs.store

    monkeypatch.setattr(athanor.runs.store, "open_run", Outputs)
    write_documents(tmp_path / "documents.jsonl.zst", [document(CHINESE * 3)])
    step = RepeatedSpans(20, against=[str(tmp_path)])
    assert [d.text for d in step([document(fresh(200, 1) + CHINESE * 2)])] == [fresh(200, 1)]


def test_settings_out_of_range():
    with pytest.raises(UserError, match="minimum 3 must be at least 4"):
        RepeatedSpans(3)
    with pytest.raises(UserError, match=r"min_left 2 must lie between 0 and 1"):
        RepeatedSpans(min_left=2)
