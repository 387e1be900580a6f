"""Kappas and alpha as published, the interval of the error rate, majorities, and what each does where it cannot."""

import pytest

from athanor.annotation.adjudicate import adjudicate, majority, records
from athanor.annotation.agreement import agreement, cohen, error_rate, fleiss, krippendorff, labels, needed
from athanor.annotation.items import Item
from athanor.annotation.project import Project
from athanor.errors import UserError
from athanor.evaluation.statistics import wilson

TABLE = (  # units 1 to 12: what observers A, B, C, D said
    "11.1", "2232", "3333", "3333", "2222", "1234", "4444", "1121", "2222", ".555", "..11", "..3.",
)  # fmt: skip


def project(kind, said, items=None, known=("x", "y")):
    items = items or [Item(identity, kind, f"text {identity}") for identity in said]
    return Project(None, kind, "label-studio", list(known), {item.id: item for item in items}, said)


def test_cohen_by_hand():
    """20 both yes, 15 both no, 5 and 10 split: (0.7 - 0.5) / (1 - 0.5)."""
    pairs = [("y", "y")] * 20 + [("n", "n")] * 15 + [("y", "n")] * 5 + [("n", "y")] * 10
    assert cohen(pairs) == pytest.approx(0.4)
    assert cohen([("y", "y")] * 5) is None, "all is one label: no agreement beyond chance can be told"


def test_fleiss_as_published():
    """Fleiss 1971, as in the example of 14 raters, 10 subjects and 5 categories: 0.210."""
    counts = [
        (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1), (7, 7, 0, 0, 0),
        (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
    ]  # fmt: skip
    rows = []
    for row in counts:
        values = [str(category) for category, count in enumerate(row) for _ in range(count)]
        rows.append({f"rater {n}": value for n, value in enumerate(values)})
    kappa, items, raters = fleiss([*rows, {"one": "0"}, {"one": "0", "two": "1"}])
    assert (round(kappa, 3), items, raters) == (0.210, 10, 14), "items with another number of labels are left out"


def test_alpha_as_published():
    """Krippendorff 2011, part C: four observers, twelve units, some missing: 0.743 for nominal data."""
    rows = [{who: value for who, value in zip("ABCD", unit) if value != "."} for unit in TABLE]
    assert krippendorff(rows) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff([{"a": "x", "b": "x"}, {"a": "y"}]) is None


def test_spans_are_compared_by_the_unit():
    item = Item("1", "spans", "Ann met Bob in 北京 again")
    said = {"a": [[0, 3, "PER"], [15, 17, "LOC"]], "b": [[0, 7, "PER"], [15, 16, "LOC"]]}
    rows = labels(item, said)
    assert [row["a"] for row in rows] == ["PER", "", "", "", "LOC", "LOC", ""], "each Chinese character is a unit"
    assert [row["b"] for row in rows] == ["PER", "PER", "", "", "LOC", "", ""]
    found = agreement(project("spans", {"1": said}, [item]))
    assert found.pairs[0].f1 == 0
    assert found.disputed == ["1"]
    said = {"1": {"a": [[0, 3, "PER"], [8, 11, "PER"]], "b": [[0, 3, "PER"]]}, "2": {"a": [], "b": []}}
    found = agreement(project("spans", said, [item, item._replace(id="2")]))
    assert found.pairs[0].f1 == pytest.approx(2 / 3)
    assert found.pairs[0].equal == 0.5
    assert found.disputed == ["1"]


def test_who_counts():
    said = {
        "1": {"a": "x", "b": "x", "gold": "y"}, "2": {"a": "y", "b": "x"}, "3": {"a": "x", "b": "x", "c": "y"},
        "4": {"b": "y"},
    }  # fmt: skip
    found = agreement(project("classes", said))
    assert found.labelled == {"a": 3, "b": 4, "c": 1}, "gold judges and is not judged"
    assert [(p.one, p.other, p.items, p.equal) for p in found.pairs] == [
        ("a", "b", 3, pytest.approx(2 / 3)), ("a", "c", 1, 0), ("b", "c", 1, 0),
    ]  # fmt: skip
    assert found.disputed == ["2", "3"]
    with pytest.raises(UserError, match="by two people"):
        agreement(project("classes", {"1": {"a": "x", "gold": "x"}}))


def test_free_answers():
    said = {"1": {"a": "a cat sat", "b": "A cat ran"}, "2": {"a": "是", "b": "是"}}
    found = agreement(project("answers", said))
    pair = found.pairs[0]
    assert (pair.equal, pair.kappa, found.fleiss, found.alpha) == (0.5, None, None, None)
    assert pair.f1 == pytest.approx(2 * 3 / 8), "three of four units of each are shared, letter case aside"


def test_error_rate_and_its_verdict():
    gold = {str(n): "x" for n in range(400)}
    found = error_rate("classes", {**gold, "1": "y", "2": "y", "more": "y"}, gold)
    assert (found.errors, found.items, found.rate) == (2, 400, wilson(2, 400))
    assert found.verdict == "below the target"
    assert error_rate("classes", dict.fromkeys(gold, "y"), gold).verdict == "above the target"
    some = {key: gold[key] for key in list(gold)[:60]}
    found = error_rate("classes", {**gold, "1": "y"}, some)
    assert found.verdict == "undecided", "one error in 60 is 1.7%, yet up to 9% are possible"
    assert wilson(round(found.needed / 60), found.needed).high < 0.03 < wilson(1, 60).high
    assert needed(0, 0.03) == 125, "the fewest without a single error"
    assert wilson(0, 124).high > 0.03
    assert needed(0.03, 0.03) is None
    for labels_, gold_, text in (({"1": "x"}, {"2": "x"}, "no gold item"),):
        with pytest.raises(UserError, match=text):
            error_rate("classes", labels_, gold_)
    with pytest.raises(UserError, match="free answers"):
        error_rate("answers", gold, gold)


def test_error_rate_of_spans():
    gold = {str(n): [[0, 3, "A"], [4, 6, "B"]] for n in range(50)}
    said = gold | {"0": [[0, 3, "B"], [4, 6, "B"]], "1": [[4, 6, "B"]]}
    found = error_rate("spans", said, gold)
    assert found.errors == 3, "a wrong label is one span too many and one missed"
    assert found.rate.value == pytest.approx(3 / 101)
    assert found.rate.low < found.rate.value < found.rate.high
    perfect = error_rate("spans", gold, gold)
    assert perfect.rate == wilson(0, 50), "no error among 50 texts is not a rate of zero for certain"


def test_majorities():
    assert majority(["x", "x", "y"], spans=False) == "x"
    assert majority(["x", "y"], spans=False) is None
    assert majority(["x", "x", "y", "z"], spans=False) is None, "half is no majority"
    one, two, three = [0, 3, "A"], [5, 6, "B"], [7, 9, "B"]
    assert majority([[one, two], [one], [one, three]], spans=True) == [one]
    assert majority([[one, two], [one]], spans=True) is None
    assert majority([[], []], spans=True) == []


def test_adjudication_makes_records():
    turn = [{"role": "user", "content": "Q"}]
    items = [Item(str(n), "pairs", "", turn, ["L", "R"]) for n in range(1, 7)]
    said = {
        "1": {"a": "left", "b": "left"}, "2": {"a": "left", "b": "right"},
        "3": {"a": "left", "b": "right", "c": "right"},
        "4": {"a": "tie", "b": "tie"}, "5": {"gold": "left"}, "6": {"a": "right"},
    }  # fmt: skip
    found = adjudicate(project("pairs", said, items), "c", minimum=2)
    assert found.labels == {"1": "left", "3": "right", "4": "tie"}
    assert (found.disputed, found.open) == (["2"], ["5", "6"])
    made = list(records(project("pairs", said, items), found.labels))
    assert made == [
        {"id": "1", "prompt": turn, "chosen": "L", "rejected": "R"},
        {"id": "3", "prompt": turn, "chosen": "R", "rejected": "L"},
    ]
