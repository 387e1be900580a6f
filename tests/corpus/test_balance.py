"""The mixture that was asked for comes out, no document more often than allowed, whatever the order."""

from collections import Counter

import pytest
from corpus_harness import document

from athanor.corpus.balance import Balance, epochs, repetitions, targets
from athanor.corpus.shards import WriteShards
from athanor.errors import UserError


def corpus(**sizes):
    """So many documents of each source, of 100 bytes each."""
    return [document(f"{s} {n} ".ljust(100, "."), f"{s}/{n}", s) for s, count in sizes.items() for n in range(count)]


def shares(documents):
    sizes = Counter()
    for d in documents:
        sizes[d.source] += len(d.text.encode())
    return {source: size / sizes.total() for source, size in sizes.items()}


def test_targets_by_hand():
    sizes = {"a": 1600, "b": 400}
    assert targets(sizes, None, 1) == {"a": 0.8, "b": 0.2}
    assert targets(sizes, None, 2) == pytest.approx({"a": 40 / 60, "b": 20 / 60})
    assert targets({"a": 300, "b": 100, "c": 5}, {"c": 0.2}, 1) == pytest.approx({"a": 0.6, "b": 0.2, "c": 0.2})
    assert targets(sizes, {"a": 0.1, "b": 0.3}, 1) == pytest.approx({"a": 0.25, "b": 0.75})


def test_epochs_by_hand():
    sizes = {"a": 800, "b": 200}
    half = {"a": 0.5, "b": 0.5}
    assert epochs(sizes, half, 1) == {"a": 0.25, "b": 1.0}
    assert epochs(sizes, half, 2) == {"a": 0.5, "b": 2.0}
    assert epochs(sizes, half, 4, 1000) == {"a": 0.625, "b": 2.5}
    assert epochs(sizes, half, 2, 1000) == {"a": 0.75, "b": 2}, "what b cannot give comes from a"
    assert epochs(sizes, half, 1, 5000) == {"a": 1, "b": 1}, "all there is"
    assert epochs(sizes, {"a": 1.0, "b": 0.0}, 1) == {"a": 1.0, "b": 0.0}


def test_a_domain_at_forty_percent_brought_to_its_target():
    given = corpus(medical=2000, news=1800, books=1200)
    step = Balance({"medical": 0.15}, max_epochs=1)
    result = list(step(given))
    assert shares(given)["medical"] == 0.4
    assert shares(result) == pytest.approx({"medical": 0.15, "news": 0.51, "books": 0.34}, abs=0.01)
    assert [d.id for d in result] == [d.id for d in given if d in result], "in their order, none twice"
    assert step.counts["bytes of medical before"] == 200_000
    assert step.counts["bytes of medical after"] == sum(len(d.text) for d in result if d.source == "medical")
    medical = step.details["mixture"]["domains"]["medical"]
    assert (medical["documents"], medical["share_before"], medical["share_wanted"]) == (2000, 0.4, 0.15)
    assert medical["share_after"] == pytest.approx(shares(result)["medical"])
    assert medical["epochs"] == pytest.approx(0.265, abs=0.001), "0.15 / 0.85 of 3000 kept, of 2000"
    assert step.dropped == {"too much of medical": 2000 - sum(d.source == "medical" for d in result)}


def test_a_scarce_domain_is_repeated_up_to_the_cap():
    given = corpus(a=900, b=100)
    result = list(Balance({"a": 0.5, "b": 0.5}, max_epochs=3)(given))
    assert shares(result) == pytest.approx({"a": 0.5, "b": 0.5}, abs=0.03)
    times = Counter(d.text for d in result)
    assert {times[d.text] for d in given if d.source == "b"} == {3}
    assert {times[d.text] for d in given if d.source == "a"} == {0, 1}
    assert len({d.id for d in result}) == len(result)
    split = WriteShards("d", "t", 0.5).split_of
    for d in result:
        assert split(d) == split(next(other for other in given if other.text == d.text)), "repetitions never cross"


def test_temperature():
    given = corpus(a=1600, b=100)
    assert shares(Balance(temperature=1.0, max_epochs=1)(given)) == shares(given)
    assert shares(Balance(temperature=2.0, max_epochs=1)(given))["b"] == pytest.approx(0.2, abs=0.02)
    assert shares(Balance(temperature=1e9, max_epochs=1)(given))["b"] == pytest.approx(0.5, abs=0.03)


def test_what_a_smaller_share_keeps_a_larger_one_keeps_in_any_order():
    given = corpus(a=500, b=500)
    small = {d.id for d in Balance({"a": 0.2, "b": 0.8}, max_epochs=1)(given)}
    large = {d.id for d in Balance({"a": 0.4, "b": 0.6}, max_epochs=1)(given[::-1])}
    assert {i for i in small if i.startswith("a")} < {i for i in large if i.startswith("a")}
    texts = [d.text for d in given]
    assert all(repetitions(text, 1.25) >= repetitions(text, 0.75) for text in texts)
    assert sum(repetitions(text, 2.25) for text in texts) == pytest.approx(2250, abs=60)


def test_by_language_or_a_field_and_only_some_sources():
    given = [document("x" * n, n, "s", "zh" if n % 2 else "en", topic="law" if n % 3 else "art") for n in range(1, 200)]
    for by, name in (("language", "zh"), ("topic", "law"), ("shelf", "unknown")):
        step = Balance({name: 1.0}, by=by, max_epochs=1)
        assert {step.domain(d) for d in step(given)} == {name}
    assert len(list(Balance({"zh": 1.0}, by="language", only=["other"])(given))) == len(given)
    assert list(Balance()([])) == []


def test_settings_that_cannot_be():
    for arguments, text in (
        ({"weights": {"a": 0.7, "b": 0.7}}, "sum to at most 1"),
        ({"weights": {"a": -0.1, "b": 0.7}}, "none negative"),
        ({"temperature": 0}, "must be above 0"),
        ({"total": -1}, "total -1 must be above 0"),
    ):
        with pytest.raises(UserError, match=text):
            Balance(**arguments)
    with pytest.raises(UserError, match="no document of c; there are a, b by source"):
        list(Balance({"c": 0.5})(corpus(a=1, b=1)))
