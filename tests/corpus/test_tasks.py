"""The checkable tasks, read back from their text alone: answers are right, wrong ones wrong and as long, and what is
held out appears nowhere in training, in whatever words and language.
"""

import datetime
import json
import re
from collections import Counter
from types import SimpleNamespace

import pytest

from athanor.corpus.documents import FILENAME, read_documents
from athanor.corpus.tasks import FAMILIES, GenerateTasks, side
from athanor.data.formats import read_records, to_messages, to_pair, to_prompt
from athanor.errors import UserError
from athanor.progress import Progress
from athanor.runs.context import RunContext

DEVELOPMENT = ("sft_development", "pairs_development", "development")
HELD_OUT = ("pairs_heldout", "heldout")
TRAINING = ("sft_train", "pairs_train", "prompts_train")

MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December"]  # fmt: skip
COLOURS = {"红": "red", "蓝": "blue", "绿": "green", "黑": "black", "白": "white", "金": "gold"}
UNITS = {
    "千米": "km", "公里": "km", "米": "m", "分米": "dm", "厘米": "cm", "毫米": "mm", "吨": "t", "千克": "kg", "克": "g",
    "升": "l", "毫升": "ml", "元": "yuan", "角": "jiao", "分": "fen", "千瓦": "kW", "瓦": "W",
}  # fmt: skip
FACTORS = {
    ("km", "m"): 1000, ("m", "cm"): 100, ("cm", "mm"): 10, ("dm", "cm"): 10, ("t", "kg"): 1000, ("kg", "g"): 1000,
    ("l", "ml"): 1000, ("yuan", "jiao"): 10, ("yuan", "fen"): 100, ("kW", "W"): 1000,
}  # fmt: skip
UNIT = f"({'|'.join([*UNITS, *UNITS.values()])})"
N, ROW, DAY = r"(\d+)", r"([a-z0-9](?: [a-z0-9])+)", r"(\d{4}-\d\d-\d\d)"
TABLE = r"([^.。]+)"

# family -> patterns of questions, patterns of statements (whose last group is the answer)
PATTERNS = {
    "addition": ([rf"{N} \+ {N} = [?？]", rf"What is {N} plus {N}\?", rf"{N}加{N}等于多少？"],
                 [rf"{N} \+ {N} = {N}[.。]", rf"{N} plus {N} is {N}\.", rf"{N}加{N}等于{N}。"]),
    "subtraction": ([rf"{N} - {N} = [?？]", rf"What is {N} minus {N}\?", rf"{N}减{N}等于多少？"],
                    [rf"{N} - {N} = {N}[.。]", rf"{N} minus {N} is {N}\.", rf"{N}减{N}等于{N}。"]),
    "comparison": ([rf"Which is (larger|smaller), {N} or {N}\?", rf"{N}和{N}哪个(大|小)？"],
                   [rf"Of {N} and {N}, {N} is (larger|smaller)\.", rf"{N}和{N}，{N}(大|小)。"]),
    "counting": ([rf"How many ([a-z]) in: {ROW}\?", rf"数一数 {ROW} 里有几个 ([a-z])？",
                  rf"How many letters in: {ROW}\?", rf"数一数 {ROW} 里有几个字母？"],
                 [rf"{ROW}: (.+)\.", rf"{ROW} 里有(.+)。"]),
    "copying": ([rf"Copy: {ROW}", rf"照抄：{ROW}"], [rf"{ROW}, again: {ROW}\.", rf"{ROW}，再写一遍：{ROW}。"]),
    "reversing": ([rf"Reverse: {ROW}", rf"倒着写：{ROW}"],
                  [rf"{ROW}, backwards: {ROW}\.", rf"{ROW}，倒过来：{ROW}。"]),
    "sorting": ([rf"Sort: {ROW}", rf"从小到大排列：{ROW}"], [rf"{ROW}, in order: {ROW}\.", rf"{ROW}，排好：{ROW}。"]),
    "calendar": ([rf"What date is {N} days? after {DAY}\?", rf"{DAY}过{N}天是哪天？"],
                 [rf"{N} days? after {DAY} is {DAY}\.", rf"{DAY}过{N}天是{DAY}。"]),
    "date": ([r"Write as a date: ([A-Z][a-z]+) (\d+), (\d+)", r"写成日期：(\d+)年(\d+)月(\d+)日"],
             [rf"([A-Z][a-z]+) (\d+), (\d+) is {DAY}\.", rf"(\d+)年(\d+)月(\d+)日即{DAY}。"]),
    "units": ([rf"{N} {UNIT} = \? {UNIT}", rf"{N}{UNIT}等于多少{UNIT}？"],
              [rf"{N} {UNIT} is {N} {UNIT}\.", rf"{N}{UNIT}等于{N}{UNIT}。"]),
    "lookup": ([rf"Given {TABLE}\. Which letter has ([a-z]+)\?", rf"已知 {TABLE}。哪个字母是 (.)？",
                rf"Which letter is number (\d) in: {ROW}\?", rf"{ROW} 里第(\d)个字母是什么？"],
               [rf"Given {TABLE}\. So {TABLE}\.", rf"已知 {TABLE}。所以 {TABLE}。",
                rf"Number (\d) in {ROW} is ([a-z])\.", rf"{ROW} 里第(\d)个是 ([a-z])。"]),
}  # fmt: skip


def table(text: str) -> dict[str, str]:
    pairs = [part.split() for part in re.split("[,，]", text)]
    return {COLOURS.get(colour, colour): letter for colour, letter in pairs}


def understood(family: str, groups: tuple[str, ...]) -> tuple[tuple, str]:
    """(content, right answer) of the words of a question; the content is the same in all wordings and languages."""
    if family in ("addition", "subtraction"):
        a, b = int(groups[0]), int(groups[1])
        return ((min(a, b), max(a, b)), str(a + b)) if family == "addition" else ((a, b), str(a - b))
    if family == "comparison":
        word = next(g for g in groups if not g.isdigit())
        a, b = sorted(int(g) for g in groups if g.isdigit())[:2]
        return (a, b), str(b if word in ("larger", "大") else a)
    if family == "counting" and len(groups) == 1:
        return tuple(groups[0].split()), str(len(groups[0].split()))
    if family == "counting":
        letter, row = sorted(groups, key=len)
        return tuple(row.split()), str(row.split().count(letter))
    if family in ("copying", "reversing", "sorting"):
        row = groups[0].split()
        return tuple(row), " ".join({"copying": row, "reversing": row[::-1], "sorting": sorted(row, key=int)
                                     if family == "sorting" else row}[family])  # fmt: skip
    if family == "calendar":
        start, days = sorted(groups, key=len, reverse=True)
        return (start, days), str(datetime.date.fromisoformat(start) + datetime.timedelta(days=int(days)))
    if family == "date":
        if groups[0].isdigit():
            year, month, day = map(int, groups)
        else:
            year, month, day = int(groups[2]), MONTHS.index(groups[0]) + 1, int(groups[1])
        return (year, month, day), datetime.date(year, month, day).isoformat()
    if family == "units":
        count, big, small = groups
        big, small = UNITS.get(big, big), UNITS.get(small, small)
        return (int(count), big, small), str(int(count) * FACTORS[big, small])
    if any(group.isdigit() for group in groups):
        place, row = sorted(groups, key=len)
        return tuple(row.split()), row.split()[int(place) - 1]
    values, asked = table(groups[0]), COLOURS.get(groups[1], groups[1])
    return tuple(values.items()), values[asked]


def question_of(family: str, text: str) -> tuple[tuple, str]:
    for pattern in PATTERNS[family][0]:
        if found := re.fullmatch(pattern, text):
            return understood(family, found.groups())
    raise AssertionError(f"no question of {family}: {text}")


def statement_of(text: str) -> tuple[str, tuple, str, str]:
    """(family, content, what is true, what is stated)."""
    for family, (_, patterns) in PATTERNS.items():
        for pattern in patterns:
            if found := re.fullmatch(pattern, text):
                groups = list(found.groups())
                if family == "counting":  # of one letter, or of all
                    row = groups[0].split()
                    if whole := re.fullmatch(r"(\d+)(?: letters|个字母)", groups[1]):
                        return family, tuple(row), str(len(row)), whole[1]
                    stated = {x: int(n) for n, x in re.findall(r"(\d+)(?: times|个) ([a-z])", groups[1])}
                    true = {x: row.count(x) for x in stated}
                    return family, tuple(row), str(true), str(stated)
                if family == "lookup" and len(groups) == 2:  # of every key
                    values, stated = table(groups[0]), table(groups[1])
                    return family, tuple(values.items()), str(sorted(values.items())), str(sorted(stated.items()))
                where = {"comparison": 2, "units": 2}.get(family, len(groups) - 1)
                stated = groups.pop(where)
                return family, *understood(family, tuple(groups)), stated
    raise AssertionError(f"no statement: {text}")


@pytest.fixture(scope="module")
def job() -> GenerateTasks:
    return GenerateTasks(seed=3)


@pytest.fixture(scope="module")
def streams(job) -> dict[str, list[dict]]:
    counts = {"sft_train": 6000, "pairs_train": 6000, "prompts_train": 3000,
              "sft_development": 400, "pairs_development": 500, "development": 500,
              "pairs_heldout": 2000, "heldout": 2000}  # fmt: skip
    return {name: list(job.records(name, count)) for name, count in counts.items()}


def asked(record: dict) -> str:
    return record["messages"][0]["content"] if "messages" in record else record["prompt"]


@pytest.mark.parametrize("stream", [*HELD_OUT, *DEVELOPMENT, *TRAINING])
def test_answers_are_right_and_wrong_ones_wrong(streams, stream):
    seen = Counter()
    for record in streams[stream]:
        _, right = question_of(record["family"], asked(record))
        assert record["answer"] == right, record
        if "messages" in record:
            assert record["messages"][1] == {"role": "assistant", "content": right}
        if "rejected" in record:
            assert record["chosen"] == right
            assert record["rejected"] != right
        seen[record["family"], record["language"]] += 1
        seen[record["family"], record["level"]] += 1
    assert set(seen) == {(family, which) for family in FAMILIES for which in ("en", "zh", 1, 2, 3)}


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_item_of_every_level(family, level):
    """Thousands of each: no draw fails, all wordings of an item say the same and have the same answer."""
    import random

    rng = random.Random(5)
    for _ in range(3000):
        item = FAMILIES[family](rng, level)
        contents = set()
        for language, questions in item.questions.items():
            for text in questions:
                content, right = question_of(family, text)
                contents.add(content)
                assert item.answers[language] == right
                assert item.wrong[language] != right
                assert len(item.wrong[language]) == len(right)
        for texts in item.statements.values():
            for text in texts:
                found, content, true, stated = statement_of(text)
                assert (found, stated) == (family, true)
                contents.add(content)
        assert len(contents) == 1


def contents(records) -> set:
    return {(record["family"], question_of(record["family"], asked(record))[0]) for record in records}


def contents_of(streams, names) -> set:
    return set().union(*(contents(streams[name]) for name in names))


def test_the_three_sides_share_no_content(job, streams):
    """Over all streams and the pretraining text."""
    held_out, trained = contents_of(streams, HELD_OUT), contents_of(streams, TRAINING)
    development = contents_of(streams, DEVELOPMENT)
    assert len(development) > 500
    assert not development & (held_out | trained)
    stated = set()
    for language in ("en", "zh"):
        lines = job._statements(language)
        for _ in range(10_000):
            family, content, right, said = statement_of(next(lines))
            assert said == right
            stated.add((family, content))
    assert len(held_out) > 1000
    assert not held_out & trained
    assert not (held_out | development) & stated
    assert len(trained & stated) > 1000, "the text speaks of what is trained"


def test_documents_state_facts_in_one_language(job):
    for number, document in zip(range(200), job.text()):
        lines = document["text"].split("\n")
        assert len(lines) == 12
        for line in lines:
            family, _, right, said = statement_of(line)
            assert said == right
            if family not in ("addition", "subtraction"):
                assert bool(re.search(r"[\u4e00-\u9fff，：]", line)) == (document["language"] == "zh")
        assert document["language"] == ("en", "zh")[number % 2]


def test_length_does_not_give_the_answer_away(streams):
    for record in streams["pairs_train"] + streams["pairs_heldout"]:
        assert len(record["chosen"]) == len(record["rejected"])


def test_held_out_streams_ask_each_question_once_and_all_families_alike(streams):
    for name in (*HELD_OUT, *DEVELOPMENT):
        questions = [asked(record) for record in streams[name]]
        assert len(set(questions)) == len(questions)
    families = Counter(record["family"] for record in streams["heldout"])
    assert max(families.values()) - min(families.values()) <= 1


def test_sides_are_shares_of_contents():
    sides = Counter(side("addition", f"{a}+{b}", 0.05, 0.1) for a in range(100) for b in range(100))
    assert sides["heldout"] == pytest.approx(1000, abs=120)
    assert sides["development"] == pytest.approx(500, abs=80)
    assert side("copying", "copy:a b c", 0.0, 0.0) == "train"
    assert side("copying", "copy:a b c", 0.0, 1.0) == "heldout"
    assert side("copying", "copy:a b c", 1.0, 0.0) == "development"


def test_a_wrong_order_is_told_neither_by_its_order_nor_by_its_digits_alone(streams):
    kinds = Counter()
    for record in streams["pairs_train"]:
        if record["family"] == "sorting":
            wrong, right = record["rejected"].split(), record["chosen"].split()
            kinds[wrong == sorted(wrong), sorted(wrong) == right] += 1
    assert set(kinds) == {(True, False), (False, True)}
    assert min(kinds.values()) > 0.4 * sum(kinds.values())


def test_a_wrong_count_is_one_that_could_be_right(streams):
    for record in streams["pairs_train"]:
        if record["family"] == "counting":
            row = max(re.findall(ROW, record["prompt"]), key=len)
            assert 1 <= int(record["rejected"]) <= (9 if record["level"] < 3 else min(6, len(row.split())))


def test_items_are_a_function_of_the_seed_and_the_stream():
    def draw(seed, stream):
        return list(GenerateTasks(seed=seed).records(stream, 300))

    assert draw(1, "pairs_train") == draw(1, "pairs_train")
    assert [asked(r) for r in draw(1, "pairs_train")] != [asked(r) for r in draw(2, "pairs_train")]
    assert [asked(r) for r in draw(1, "prompts_train")] != [r["prompt"] for r in draw(1, "pairs_train")]


def test_a_share_of_the_demonstrations_slips_and_nothing_else():
    streams = {name: list(GenerateTasks(seed=3, slips=0.3).records(name, 400))
               for name in ("sft_train", "pairs_train", "heldout")}  # fmt: skip
    slipped = 0
    for record in streams["sft_train"]:
        _, right = question_of(record["family"], asked(record))
        shown = record["messages"][1]["content"]
        assert record["answer"] == right, "what it is compared with stays right"
        assert len(shown) == len(right)
        slipped += shown != right
    assert slipped == pytest.approx(0.3 * 400, abs=30)
    for record in streams["pairs_train"] + streams["heldout"]:
        assert record["answer"] == question_of(record["family"], asked(record))[1]
    assert all(record["chosen"] == record["answer"] for record in streams["pairs_train"])
    with pytest.raises(UserError, match=r"job\.slips=1\.5"):
        GenerateTasks(seed=3, slips=1.5)


def test_the_held_out_contents_do_not_depend_on_the_seed(streams):
    other = GenerateTasks(seed=8)
    held_out = contents_of(streams, HELD_OUT)
    trained = contents(other.records("sft_train", 6000))
    assert not held_out & trained


def test_the_job_writes_what_the_data_modules_read(tmp_path):
    counts = {"documents": 20, "sft_train": 50, "sft_development": 20, "pairs_train": 40, "pairs_development": 20,
              "pairs_heldout": 20, "prompts_train": 30, "development": 25, "heldout": 25}  # fmt: skip
    written = []
    for attempt in ("a", "b"):
        folder = tmp_path / attempt
        folder.mkdir()
        metrics = GenerateTasks(seed=1, levels=[1, 2], **counts).run(
            RunContext(folder, SimpleNamespace(config={}), Progress(quiet=True))
        )
        assert metrics == counts
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert written[0] == written[1], "the same bytes"
    read = {name: list(read_records([str(tmp_path / "a" / f"{name}.jsonl")])) for name in counts if name != "documents"}
    assert {name: len(rows) for name, rows in read.items()} == {k: v for k, v in counts.items() if k != "documents"}
    for where, record in read["sft_train"] + read["sft_development"]:
        assert to_messages(record, where)[-1]["content"] == record["answer"]
    for where, record in read["pairs_train"] + read["pairs_heldout"]:
        assert to_pair(record, where).chosen == record["answer"]
    for where, record in read["prompts_train"] + read["heldout"]:
        assert to_prompt(record, where)[0]["content"] == record["prompt"]
    assert {record["level"] for rows in read.values() for _, record in rows} == {1, 2}
    ids = [record["id"] for rows in read.values() for _, record in rows]
    assert len(set(ids)) == len(ids)
    documents = list(read_documents(tmp_path / "a" / FILENAME))
    assert len(documents) == 20
    assert json.loads(written[0]["heldout.jsonl"].splitlines()[0])["id"]


def test_what_cannot_be_made_is_refused():
    with pytest.raises(UserError, match=r"No task family is called \['alchemy'\]"):
        GenerateTasks(seed=1, families=["alchemy"])
    with pytest.raises(UserError, match="levels are 1, 2 and 3"):
        GenerateTasks(seed=1, levels=[0])
    few = GenerateTasks(seed=1, families=["subtraction"], levels=[1])
    with pytest.raises(UserError, match=r"questions on the heldout side, fewer than job\.heldout=1000"):
        list(few.records("heldout", 1000))
