"""Documents get the label of their source, of the words they use, or of the examples they are like."""

import json

import pytest
from corpus_harness import CHINESE, ENGLISH, document

from athanor.corpus.balance import Balance
from athanor.corpus.labels import Bayes, Classify, LabelSources, LabelWords
from athanor.errors import UserError


def domains(documents, field="domain"):
    return [d.meta[field] for d in documents]


def test_by_source():
    step = LabelSources({"s": "prose"}, field="genre")
    assert domains(step([document("x"), document("x", source="t", year=1)]), "genre") == ["prose", "unknown"]
    assert step.counts == {"prose": 1, "unknown": 1}


def test_by_words_the_densest_list_wins(tmp_path):
    (tmp_path / "medical.txt").write_text("fever\n患者\n")
    (tmp_path / "legal.txt").write_text("court\n法院\n")
    lists = {"medical": str(tmp_path / "medical.txt"), "legal": str(tmp_path / "legal.txt")}
    step = LabelWords(lists, minimum=5)
    given = [
        f"{ENGLISH} The court heard of fever and Fever.",
        f"{CHINESE}法院认为，法院",
        ENGLISH,
        f"{ENGLISH} court " * 2 + f"{ENGLISH} " * 9,
    ]
    assert domains(step([document(text) for text in given])) == ["medical", "legal", "unknown", "unknown"]


def examples(path, count=60):
    lines = []
    for number in range(count):
        lines.append({"text": f"the striker scored goal {number} in the match", "label": "sport"})
        lines.append({"text": f"第{number}号基金今日上涨，股市收盘走高", "label": "finance"})
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
    return str(path)


def test_by_examples_in_two_languages(tmp_path):
    step = Classify(examples(tmp_path / "examples.jsonl"), held_out=0.2)
    given = [document("another goal in a dull match"), document("股市今日走高"), document("...")]
    assert domains(step(given)) == ["sport", "finance", "unknown"]
    told = step.details["classifier"]
    assert told["accuracy"] == 1.0
    assert 10 < told["held_out"] < 40
    assert sum(told["examples"].values()) == 120 - told["held_out"], "it is measured on what it was not fitted on"
    assert domains(Classify(step.files, minimum=1.0)(given[:1])) == ["unknown"]


def test_a_common_label_does_not_take_all():
    """Counts are shares: ninety examples of one label against ten of another."""
    bayes = Bayes([("red and blue", "a")] * 90 + [("red and green", "b")] * 10)
    assert bayes.label("green")[0] == "b"
    assert bayes.label("blue")[0] == "a"
    assert bayes.label("red green")[0] == "b"


def test_a_label_is_a_domain_for_the_mixture(tmp_path):
    given = [document(f"{n} {'goal match' if n % 4 else '股市收盘'}".ljust(40, "."), n) for n in range(400)]
    labelled = Classify(examples(tmp_path / "examples.jsonl"))(given)
    step = Balance({"sport": 0.5, "finance": 0.5}, by="domain", max_epochs=1)
    kept = domains(step(labelled))
    assert kept.count("sport") / len(kept) == pytest.approx(0.5, abs=0.1)


def test_what_cannot_be_fitted(tmp_path):
    (tmp_path / "one.jsonl").write_text('{"text": "a", "label": "x"}\n')
    with pytest.raises(UserError, match="needs examples of two labels, these have 1"):
        list(Classify(str(tmp_path / "one.jsonl"), held_out=0)([document("x")]))
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match=r"bad\.jsonl, line 1: an example has the fields 'text' and 'label'"):
        list(Classify(str(tmp_path / "bad.jsonl"))([document("x")]))
    with pytest.raises(UserError, match="held_out 1"):
        Classify("x", held_out=1)
