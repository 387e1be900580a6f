"""What evaluation sets share with the corpus is found, by words and by characters, and leaves it."""

import json

import pytest
from corpus_harness import CHINESE, ENGLISH, document

from athanor.corpus.contamination import Decontaminate, Index, Runs, passages
from athanor.errors import UserError

QUESTION = "which of the following gases makes up most of the air that people breathe every single day"
FRAGE = "下列哪一种气体在人们每天呼吸的空气当中所占的比例最大而且本身没有颜色和气味"


def write(path, *records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    return str(path)


def test_runs_by_hand():
    runs = Runs(n=3, characters=4, minimum=2, minimum_characters=3)
    assert runs.of("A b, c! D") == (3, ["a b c", "b c d"])
    assert runs.of("炉火保持，五百度") == (4, ["炉 火 保 持", "火 保 持 五", "保 持 五 百", "持 五 百 度"])
    assert runs.of("a b") == (2, ["a b"]), "a whole short passage is a run"
    assert runs.of("a") == (0, [])
    assert Runs().of(" ".join("abcdefghijklm"))[0] == 13
    assert Runs().of(" ".join("abcdefgh"))[0] == 8
    assert Runs().of(" ".join("abcdefg")) == (0, [])
    assert runs.of("炉火") == (0, [])
    assert Runs().of(FRAGE)[0] == Runs().of(FRAGE[:13])[0] == 13
    assert Runs().of(FRAGE[:10])[0] == 10
    assert Runs().of(FRAGE[:9]) == (0, [])


def test_thirteen_words_are_shared_and_twelve_are_not():
    index = Index()
    index.add("set", QUESTION)
    words = QUESTION.split()
    assert index.shared(f"so, {' '.join(words[2:15]).upper()}? yes") == {" ".join(words[2:15]): [(1, 14)]}
    assert index.shared(" ".join(words[2:14])) == {}
    index.add("menge", FRAGE)
    assert list(index.shared(f"问：{FRAGE[3:16]}？").values()) == [[(1, 14)]]
    assert index.shared(FRAGE[3:15]) == {}
    index.add("short", "nine words that stand alone in their own set")
    assert len(index.shared("so: nine words that stand alone in their own set!")) == 1, "a whole short passage"


def test_every_string_of_a_record_is_a_passage():
    record = {"question": "a", "choices": ["b", {"text": "c"}], "answer": 3}
    assert list(passages(record)) == ["a", "b", "c"]


def test_documents_that_share_are_dropped_and_counted_by_set(tmp_path):
    first = write(tmp_path / "mmlu.val.jsonl", {"question": QUESTION, "choices": ["nitrogen", "oxygen"]})
    second = write(tmp_path / "cmmlu.jsonl", {"question": FRAGE})
    step = Decontaminate([first, second])
    given = [
        document(f"{ENGLISH} {QUESTION}? {ENGLISH}", 1),
        document(ENGLISH, 2),
        document(f"{CHINESE}{FRAGE}", 3),
        document(f"{CHINESE} nitrogen {' '.join(QUESTION.split()[:12])}", 4),
    ]
    assert [d.id for d in step(given)] == [2, 4]
    assert step.dropped == {"shares with mmlu": 1, "shares with cmmlu": 1}
    assert step.counts["documents that share with mmlu"] == 1
    assert step.samples["shares with mmlu"][0].startswith(ENGLISH[:50])


def test_only_the_named_fields_and_sources(tmp_path):
    path = write(tmp_path / "a.jsonl", {"question": ENGLISH, "support": QUESTION})
    given = [document(ENGLISH, 1), document(QUESTION, 2), document(ENGLISH, 3, "books")]
    assert [d.id for d in Decontaminate(path, keys=["question"], only=["s"])(given)] == [2, 3]
    with pytest.raises(UserError, match=r"a\.jsonl, line 1: no field 'answer'"):
        Decontaminate(path, keys=["answer"])


def test_cutting_leaves_the_rest_as_documents_of_one_group(tmp_path):
    path = write(tmp_path / "set.jsonl", {"question": QUESTION})
    left, right = "Left it stays. " * 30, "右边的文字留下来。" * 60
    step = Decontaminate(path, action="cut", around=20, shortest=100)
    cut = list(step([document(f"{left}{QUESTION}{right}", "d", topic="air")]))
    assert [d.id for d in cut] == ["d/1", "d/2"]
    assert cut[0].text == left[:-20].strip()
    assert cut[1].text == right[20:].strip()
    assert cut[0].meta["group"] == cut[1].meta["group"], "both in one split"
    assert cut[0].meta["topic"] == "air"
    assert step.counts["documents cut"] == 1
    many = QUESTION.join([left] * 13)
    assert list(Decontaminate(path, action="cut", around=20, shortest=100)([document(many)])) == []
    assert list(Decontaminate(path, action="cut", shortest=1000)([document(f"{left}{QUESTION}")])) == []


def test_case_that_changes_the_length_does_not_shift_the_cut(tmp_path):
    path = write(tmp_path / "set.jsonl", {"question": QUESTION})
    text = "İİİİ ẞẞẞẞ " * 40 + QUESTION + " The end." * 40
    (first, last) = Decontaminate(path, action="cut", around=0, shortest=10)([document(text)])
    assert first.text == ("İİİİ ẞẞẞẞ " * 40).strip()
    assert last.text == (" The end." * 40).strip()


def test_settings_that_cannot_be(tmp_path):
    path = write(tmp_path / "set.jsonl", {"question": "two words"})
    with pytest.raises(UserError, match=r"no passage of .* has 8 words"):
        Decontaminate(path)
    with pytest.raises(UserError, match=r"minimum 9 <= n 8 must hold"):
        Decontaminate(path, n=8, minimum=9)
    with pytest.raises(UserError, match="action 'remove' must be"):
        Decontaminate(path, action="remove")
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"bad\.jsonl, line 1: not JSON"):
        Decontaminate(str(tmp_path / "bad.jsonl"))
