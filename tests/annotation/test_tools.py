"""Out to each tool and back: what people said arrives as it was, whatever the script, and damage is named."""

import json
from xml.etree import ElementTree

import pytest

from athanor.annotation import brat, label_studio, project
from athanor.annotation.items import Item, item_of, items_of, joined, sample
from athanor.cli import main
from athanor.data.formats import to_messages, to_pair
from athanor.errors import UserError

TEXT = "😀 Ann met 王小明 in\nNew York."
SPANS = [[2, 5, "PER"], [10, 13, "PER"], [17, 25, "LOC"]]
RECORDS = {
    "answers": [{"id": "1", "messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]},
                {"id": "2", "prompt": "And?"}],
    "pairs": [{"id": str(n), "prompt": f"Q{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(8)],
    "classes": [{"id": "1", "text": TEXT, "label": 'a "b" & <c>'}, {"id": "2", "text": "二", "label": "正面"}],
    "spans": [{"id": "1", "text": TEXT, "spans": SPANS}, {"id": "2", "text": "nobody", "spans": []}],
}  # fmt: skip


def written(path, records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return str(path)


def exported(tmp_path, kind, tool, show=True):
    items = list(items_of([written(tmp_path / f"{kind}.jsonl", RECORDS[kind])], kind))
    opinions = {item.id: {"someone": item.label} for item in items if show and item.label is not None}
    project.export(tmp_path / tool, items, kind, tool, opinions=opinions)
    return project.load(tmp_path / tool)


def returned(tmp_path, found, annotators=("ann@x.org", "7")):
    """What Label Studio gives back when each annotator submits the predictions as they are."""
    tasks = json.loads((tmp_path / "label-studio/tasks.json").read_text("utf-8"))
    for number, task in enumerate(tasks, 1):
        results = task.pop("predictions", [{"result": []}])[0]["result"]
        task["id"] = number
        task["annotations"] = [
            {"id": n, "completed_by": {"id": 5, "email": who} if "@" in who else int(who), "result": results,
             "was_cancelled": False, "ground_truth": False}
            for n, who in enumerate(annotators)
        ]  # fmt: skip
    path = tmp_path / "returned.json"
    path.write_text(json.dumps(tasks), encoding="utf-8")
    return tasks, path


@pytest.mark.parametrize("kind", RECORDS)
def test_label_studio_and_back(tmp_path, kind):
    found = exported(tmp_path, kind, "label-studio")
    _, path = returned(tmp_path, found)
    taken = project.take(found, [path])
    want = {item.id: item.label for item in found.items.values() if item.label is not None}
    for who in ("ann@x.org", "7"):
        assert {i: said[who] for i, said in taken.annotations.items() if who in said} == want
    assert project.load(tmp_path / "label-studio") == taken, "and it is kept"


def test_the_interface_names_what_the_tasks_have(tmp_path):
    for kind in RECORDS:
        folder = tmp_path / kind
        folder.mkdir()
        exported(folder, kind, "label-studio")
        view = ElementTree.parse(folder / "label-studio/interface.xml").getroot()
        names = {node.get("name") for node in view.iter() if node.get("name")}
        tasks = json.loads((folder / "label-studio/tasks.json").read_text("utf-8"))
        for node in view.iter():
            if value := node.get("value", "").removeprefix("$"):
                assert not node.get("value").startswith("$") or all(value in task["data"] for task in tasks)
            assert node.get("toName") in {None, *names}
        options = [node.get("value") for node in view.iter() if node.tag in ("Choice", "Label")]
        assert options == {
            "answers": [], "pairs": ["left", "right", "tie"], "classes": ['a "b" & <c>', "正面"],
            "spans": ["LOC", "PER"],
        }[kind]  # fmt: skip
        for task in tasks:
            for result in task.get("predictions", [{"result": []}])[0]["result"]:
                assert result["from_name"] in names
                assert result["to_name"] in names
                assert result["type"] in {
                    node.tag.lower() for node in view.iter() if node.get("name") == result["from_name"]
                }


def test_label_studio_says_who_and_what_counts(tmp_path):
    found = exported(tmp_path, "classes", "label-studio")
    tasks, path = returned(tmp_path, found, ("1", "2", "3"))
    tasks[0]["annotations"][0]["was_cancelled"] = True
    tasks[0]["annotations"][1]["ground_truth"] = True
    tasks[1]["annotations"][0]["result"] = []
    path.write_text(json.dumps(tasks), "utf-8")
    taken = project.take(found, [path])
    assert {i: sorted(said) for i, said in taken.annotations.items()} == {"1": ["3", "gold"], "2": ["2", "3"]}
    assert found.annotators == ["2", "3", "gold"]


def test_offsets_as_a_browser_counts_them():
    """UTF-16 units: the face counts twice."""
    value = {"start": 3, "end": 6, "text": "Ann", "labels": ["PER"]}
    assert label_studio.offsets(TEXT, value, "here") == [2, 5]
    with pytest.raises(UserError, match="changed after the export"):
        label_studio.offsets(TEXT, value | {"text": "Bob"}, "here")


def test_pairwise_results_are_read_too():
    item = Item("1", "pairs", answers=["a", "b"])
    result = {"type": "pairwise", "value": {"selected": "right"}}
    assert label_studio.value_of(item, [result], "here") == "right"


@pytest.mark.parametrize("kind", RECORDS)
def test_doccano_and_back(tmp_path, kind):
    found = exported(tmp_path, kind, "doccano")
    rows = [json.loads(line) for line in (tmp_path / "doccano/tasks.jsonl").read_text("utf-8").splitlines()]
    for number, row in enumerate(rows):  # as Doccano writes: a number of its own, spans as lists, comments
        row |= {"id": 100 + number, "Comments": []}
    want = {item.id: item.label for item in found.items.values() if item.label is not None}
    taken = project.take(found, [_named(tmp_path / "ann.jsonl", rows)])
    assert {i: said["ann"] for i, said in taken.annotations.items()} == want
    for row in rows:
        del row["item"]
    taken = project.take(found, [_named(tmp_path / "ben.jsonl", rows)])
    assert {i: said["ben"] for i, said in taken.annotations.items()} == want, "by the text, where the column is gone"
    if kind != "answers":
        labels = json.loads((tmp_path / "doccano/labels.json").read_text("utf-8"))
        assert [entry["text"] for entry in labels] == (["left", "right", "tie"] if kind == "pairs" else found.labels)


def _named(path, rows):
    written(path, rows)
    return path


def test_brat_and_back(tmp_path):
    found = exported(tmp_path, "spans", "brat")
    folder = (tmp_path / "brat/texts").rename(tmp_path / "ann")
    names = sorted(path.name for path in folder.iterdir())
    assert "annotation.conf" in names
    assert len(names) == 5
    ann = folder / f"{brat.stem(found.items['1'])}.ann"
    lines = ann.read_text("utf-8").splitlines()
    assert lines == ["T1\tPER 2 5\tAnn", "T2\tPER 10 13\t王小明", "T3\tLOC 17 25\tNew York"]
    with ann.open("a", encoding="utf-8") as file:
        file.write("T4\tLOC 14 16;17 20\tin New\nR1\tAt Arg1:T1 Arg2:T3\n#1\tAnnotatorNotes T1\tsure\n")
    taken = project.take(found, [folder])
    assert taken.annotations == {"1": {"ann": sorted([*SPANS, [14, 20, "LOC"]])}, "2": {"ann": []}}
    assert (folder / f"{brat.stem(found.items['1'])}.txt").read_bytes().decode() == TEXT
    for line, text in (("T5\tPER 0 9\tAnn", "its characters are not"), ("T5\tPER 2 5;10 13\tAnn 王小明", "in pieces")):
        ann.write_text(line, "utf-8")
        with pytest.raises(UserError, match=text):
            project.take(found, [folder])


def test_a_span_over_two_lines_for_brat():
    text = "ab cd\nef"
    assert brat.standoff(text, [[3, 8, "X"]]) == "T1\tX 3 5;6 8\tcd ef\n"


def test_what_brat_cannot(tmp_path):
    items = [Item("1", "classes", "t", label="x")]
    with pytest.raises(UserError, match="BRAT labels spans, not classes"):
        project.export(tmp_path / "p", items, "classes", "brat")
    with pytest.raises(UserError, match="letters, digits"):
        project.export(tmp_path / "q", [Item("1", "spans", "t", label=[[0, 1, "a b"]])], "spans", "brat")


def test_sides_do_not_tell_who_was_preferred():
    items = [item_of(record, "r", "pairs", "", "") for record in RECORDS["pairs"]]
    swapped = [
        item_of({**r, "chosen": r["rejected"], "rejected": r["chosen"]}, "r", "pairs", "", "") for r in RECORDS["pairs"]
    ]
    assert [item.answers for item in items] == [item.answers for item in swapped]
    assert all({a.label, b.label} == {"left", "right"} for a, b in zip(items, swapped))
    assert {item.label for item in items} == {"left", "right"}, "not always one side"


def test_tokens_with_tags():
    text, spans = joined(["I", "saw", "New", "York", "Ann"], ["O", "O", "B-LOC", "I-LOC", "B-PER"], "r")
    assert (text, spans) == ("I saw New York Ann", [[6, 14, "LOC"], [15, 18, "PER"]])
    text, spans = joined(list("我在北京住"), ["O", "O", "I-LOC", "I-LOC", "O"], "r")
    assert (text, spans) == ("我在北京住", [[2, 4, "LOC"]])
    assert joined(["a", "b"], ["B-X", "B-X"], "r")[1] == [[0, 1, "X"], [2, 3, "X"]]


def test_a_sample_is_nested():
    items = [Item(str(n), "classes", "t") for n in range(100)]
    few, more, other = ({item.id for item in sample(items, *of)} for of in ((10, 1), (30, 1), (10, 2)))
    assert len(few) == 10
    assert few < more
    assert few != other
    assert [item.id for item in sample(items, 30, 1)] == sorted(more, key=int), "in their order"


@pytest.mark.parametrize(
    ("kind", "record", "text"),
    [
        ("classes", {"body": "x"}, "no text in the field 'text'"),
        ("spans", {"text": "abc", "spans": [[0, 9, "X"]]}, "not in its text"),
        ("spans", {"text": "abc", "spans": [[2, 2, "X"]]}, "not in its text"),
        ("spans", {"text": "abc", "spans": {"start": 0}}, "no list of spans"),
        ("spans", {"tokens": ["a"], "tags": []}, "equally many"),
        ("pairs", {"prompt": "Q", "chosen": "A", "rejected": "A"}, "same answer twice"),
    ],
)
def test_records_that_cannot_be_asked(kind, record, text):
    with pytest.raises(UserError, match=text):
        item_of(record, "file:1", kind, "text", "label")


def test_files_that_do_not_fit(tmp_path):
    found = exported(tmp_path, "classes", "label-studio")
    tasks, path = returned(tmp_path, found, ("1",))
    for damage, text in (
        (lambda: [{"id": 1, "label": "x"}], "not JSON-MIN"),
        (lambda: [dict(tasks[0], data={"item": "9"})], "of no item"),
        (lambda: [dict(tasks[0], annotations=[_choice("new")])], "has the label 'new'"),
        (lambda: [dict(tasks[0], annotations=[_choice("正面", "正面")])], "several choices"),
        (lambda: [dict(tasks[0], annotations=[_choice("正面"), _choice('a "b" & <c>')])], "twice, differently"),
    ):
        path.write_text(json.dumps(damage()), "utf-8")
        with pytest.raises(UserError, match=text):
            project.take(project.load(tmp_path / "label-studio"), [path])
    assert not (tmp_path / "label-studio/annotations.jsonl").exists(), "nothing was kept"
    with pytest.raises(UserError, match="has a project already"):
        project.export(tmp_path / "label-studio", list(found.items.values()), "classes", "brat")
    same = written(tmp_path / "twice.jsonl", [{"id": "1", "text": "a"}, {"id": 1, "text": "b"}])
    with pytest.raises(UserError, match="has the id '1'"):
        list(items_of([same], "classes"))


def _choice(*labels):
    return {"completed_by": 1, "result": [{"type": "choices", "value": {"choices": list(labels)}}]}


def test_the_verb_from_records_to_records(tmp_path, monkeypatch, capsys):
    """Export, two annotators who differ once, agreement, gold, the disputed one decided, and training data."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "pairs.jsonl", RECORDS["pairs"])
    assert main(["annotate", "export", "pairs", "pairs.jsonl", "--to", "label-studio", "--out", "p", "--show"]) == 0
    tasks = json.loads((tmp_path / "p/tasks.json").read_text("utf-8"))
    for number, task in enumerate(tasks):
        right = task.pop("predictions")[0]["result"][0]["value"]["choices"][0]
        other = {"left": "right", "right": "left"}[right]
        said = {"1": right, "2": other if number == 3 else right}
        task["annotations"] = [_choice(value) | {"completed_by": int(who)} for who, value in said.items()]
    (tmp_path / "back.json").write_text(json.dumps(tasks), "utf-8")
    assert main(["annotate", "import", "p", "back.json"]) == 0
    assert main(["annotate", "agreement", "p", "--gold", "pairs.jsonl"]) == 0
    shown = capsys.readouterr().out
    assert "disputed: 1" in shown
    assert "0.875" in shown
    assert "Krippendorff" in shown
    assert "undecided" in shown
    assert main(["annotate", "adjudicate", "p", "--out", "new.jsonl", "--disputed", "again"]) == 0
    again = json.loads((tmp_path / "again/tasks.json").read_text("utf-8"))
    assert [p["model_version"] for p in again[0]["predictions"]] == ["1", "2"], "the judge sees what both said"
    judged = [dict(again[0], annotations=[_choice(said) | {"completed_by": 9}]) for said in ["left"]]
    (tmp_path / "judged.json").write_text(json.dumps(judged), "utf-8")
    assert main(["annotate", "import", "p", "judged.json", "--annotator", "judge"]) == 0
    assert main(["annotate", "adjudicate", "p", "--out", "new.jsonl", "--adjudicator", "judge"]) == 0
    made = [json.loads(line) for line in (tmp_path / "new.jsonl").read_text("utf-8").splitlines()]
    assert len(made) == 8
    wanted = {record["id"]: to_pair(record) for record in RECORDS["pairs"]}
    assert sum(to_pair(record) == wanted[record["id"]] for record in made) >= 7, "the data module reads them"
    assert main(["annotate"]) == 2
    assert main(["annotate", "export", "pairs"]) == 2


def test_answers_become_conversations(tmp_path):
    found = exported(tmp_path, "answers", "label-studio")
    tasks, path = returned(tmp_path, found, ("1",))
    tasks[1]["annotations"][0]["result"] = [
        {"from_name": "answer", "to_name": "prompt", "type": "textarea", "value": {"text": ["Then what?"]}}
    ]
    path.write_text(json.dumps(tasks), "utf-8")
    from athanor.annotation.adjudicate import adjudicate, records

    taken = project.take(found, [path])
    made = list(records(taken, adjudicate(taken).labels))
    assert [to_messages(record)[-1]["content"] for record in made] == ["答", "Then what?"]
