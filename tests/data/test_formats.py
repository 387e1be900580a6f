"""Every format of records, in small and as public data sets have it; what is no record is refused in one sentence."""

import gzip
import json

import pytest
import zstandard

from athanor.data.formats import read_records, to_messages, to_pair, to_prompt
from athanor.errors import UserError
from small import DATA_ROOT


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


SHAREGPT = [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"},
            {"from": "human", "value": "more?"}]  # fmt: skip

INSTRUCTIONS = {
    "messages": ({"messages": [system("s"), user("q"), assistant("a")]}, [system("s"), user("q"), assistant("a")]),
    "sharegpt": ({"conversations": SHAREGPT}, [system("s"), user("q"), assistant("a")]),
    "tools": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "f()"},
                           {"from": "observation", "value": "3"}, {"from": "gpt", "value": "a"}]},
        [user("q"), assistant("f()"), user("3"), assistant("a")],
    ),
    "alpaca": ({"instruction": "i", "input": "", "output": "o"}, [user("i"), assistant("o")]),
    "alpaca with input": ({"instruction": "i", "input": "x", "output": "o"}, [user("i\nx"), assistant("o")]),
    "alpaca with null": ({"instruction": "i", "input": None, "output": "o"}, [user("i"), assistant("o")]),
    "alpaca with system": (
        {"instruction": "i", "output": "o", "system": "s"}, [system("s"), user("i"), assistant("o")],
    ),
    "completion": ({"prompt": "p", "completion": "c"}, [user("p"), assistant("c")]),
    "conversational completion": (
        {"prompt": [system("s"), user("p")], "completion": [assistant("c")]}, [system("s"), user("p"), assistant("c")],
    ),
    "response": ({"prompt": "p", "response": "c"}, [user("p"), assistant("c")]),
    "query": ({"query": "p", "response": "c"}, [user("p"), assistant("c")]),
    "question": ({"question": "q", "answer": "a"}, [user("q"), assistant("a")]),
    "number": ({"question": "3 + 4", "answer": 7}, [user("3 + 4"), assistant("7")]),
}  # fmt: skip


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_instructions(name):
    record, expected = INSTRUCTIONS[name]
    assert to_messages(record) == expected
    assert record == INSTRUCTIONS[name][0], "the record is left as it was"


@pytest.mark.parametrize("name", [n for n in INSTRUCTIONS if n not in ("sharegpt",)])
def test_the_prompt_of_an_instruction_is_all_but_its_answer(name):
    record, expected = INSTRUCTIONS[name]
    assert to_prompt(record) == expected[:-1]


HH = "\n\nHuman: first?\n\nAssistant: one\n\nHuman: second?\n\nAssistant:"
PREFERENCES = {
    "prompt": ({"prompt": "p", "chosen": "c", "rejected": "r"}, [user("p")]),
    "conversational": (
        {"prompt": [system("s"), user("p")], "chosen": [assistant("c")], "rejected": [assistant("r")]},
        [system("s"), user("p")],
    ),
    "implicit prompt": (
        {"chosen": [user("a"), assistant("b"), user("p"), assistant("c")],
         "rejected": [user("a"), assistant("b"), user("p"), assistant("r")]},
        [user("a"), assistant("b"), user("p")],
    ),
    "prompt repeated": (
        {"prompt": "p", "chosen": [user("p"), assistant("c")], "rejected": [user("p"), assistant("r")]}, [user("p")],
    ),
    "prompt repeated after a system message": (
        {"prompt": "p", "chosen": [system("s"), user("p"), assistant("c")],
         "rejected": [system("s"), user("p"), assistant("r")]},
        [system("s"), user("p")],
    ),
    "answers of several turns": (
        {"prompt": [user("p")], "chosen": [assistant("x"), user("y"), assistant("c")],
         "rejected": [assistant("x"), user("y"), assistant("r")]},
        [user("p"), assistant("x"), user("y")],
    ),
    "hh": (
        {"chosen": f"{HH} c", "rejected": f"{HH} r"}, [user("first?"), assistant("one"), user("second?")],
    ),
    "alpaca": (
        {"instruction": "i", "input": "x", "output": "o", "chosen": "c", "rejected": "r"}, [user("i\nx")],
    ),
    "sharegpt": (
        {"conversations": SHAREGPT, "chosen": {"from": "gpt", "value": "c"}, "rejected": {"from": "gpt", "value": "r"}},
        [system("s"), user("q"), assistant("a"), user("more?")],
    ),
    "messages": ({"messages": [user("p")], "chosen": "c", "rejected": "r"}, [user("p")]),
    "question": ({"question": "q", "chosen": "c", "rejected": "r"}, [user("q")]),
    "system": ({"prompt": "p", "system": "s", "chosen": "c", "rejected": "r"}, [system("s"), user("p")]),
}  # fmt: skip


@pytest.mark.parametrize("name", PREFERENCES)
def test_preferences(name):
    record, prompt = PREFERENCES[name]
    assert to_pair(record) == (prompt, "c", "r")
    assert to_prompt(record) == prompt


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"prompt": "p"}, [user("p")]),
        ({"question": "q"}, [user("q")]),
        ({"messages": [system("s"), user("q")]}, [system("s"), user("q")]),
        ({"prompt": [user("q"), assistant("a"), user("p")], "answer": "x"}, [user("q"), assistant("a"), user("p")]),
    ],
)
def test_prompts_need_no_answer(record, prompt):
    assert to_prompt(record) == prompt


BAD_INSTRUCTIONS = [
    ({"text": "t"}, r"the fields \['text'\], which is no instruction format"),
    ({"instruction": "i", "output": None}, "None' in place of a text"),
    ({"prompt": None, "completion": "c"}, "none of messages, conversations, prompt"),
    ({"instruction": "i", "output": {"a": 1}}, "in place of a text"),
    ({"messages": []}, "without turns"),
    ({"messages": [user("q")]}, "no assistant turn"),
    ({"messages": ["q", "a"]}, "a turn needs a role"),
    ({"messages": [{"role": "wizard", "content": "q"}]}, "a turn needs a role among .*wizard"),
    ({"messages": [user("q"), {"role": "assistant", "content": None, "tool_calls": []}]}, "None' in place of a text"),
    ({"messages": [{"role": "user"}, assistant("a")]}, "None' in place of a text"),
]
BAD_PREFERENCES = [
    ({"prompt": "p", "chosen": "c"}, "needs `chosen` and `rejected`"),
    ({"chosen": "c", "rejected": "r"}, "none of messages, conversations, prompt"),
    ({"prompt": "p", "chosen": None, "rejected": "r"}, "None' in place of a text"),
    ({"prompt": "p", "chosen": "c", "rejected": ["r"]}, "a turn needs a role"),
    ({"prompt": "p", "chosen": [], "rejected": []}, "without turns"),
    ({"prompt": [], "chosen": "c", "rejected": "r"}, "without turns"),
    ({"prompt": [assistant("a")], "chosen": "c", "rejected": "r"}, "no turn to answer"),
    ({"prompt": "p", "chosen": {}, "rejected": {}}, "a turn needs a role"),
    ({"chosen": [user("p"), assistant("c")], "rejected": [user("q"), assistant("r")]}, "same conversation"),
    ({"chosen": [user("p"), user("c")], "rejected": [user("p"), user("r")]}, "same conversation"),
    ({"chosen": f"{HH} c", "rejected": "\n\nHuman: first?\n\nAssistant: r"}, "same conversation"),
    ({"chosen": f"{HH} c", "rejected": "r"}, "no '.*Human:' and"),
]


@pytest.mark.parametrize(("record", "match"), BAD_INSTRUCTIONS)
def test_what_is_no_instruction_is_refused(record, match):
    with pytest.raises(UserError, match=rf"^file:3.*{match}"):
        to_messages(record, "file:3")


@pytest.mark.parametrize(("record", "match"), BAD_PREFERENCES)
def test_what_is_no_preference_is_refused(record, match):
    with pytest.raises(UserError, match=rf"(?s)^file:3.*{match}"):
        to_pair(record, "file:3")


# --- files ------------------------------------------------------------------------------------------------------------

RECORDS = [{"prompt": "一", "answer": "1"}, {"prompt": "two\u2028lines", "answer": "2"}, {"prompt": "3", "answer": "3"}]
LINES = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in RECORDS).encode()


def write(path, content: bytes):
    path.write_bytes(content)
    return str(path)


def test_files_plain_and_compressed(tmp_path):
    files = [
        write(tmp_path / "a.jsonl", LINES.replace(b"\n", b"\n\n")),
        write(tmp_path / "b.jsonl.gz", gzip.compress(LINES)),
        write(tmp_path / "c.jsonl.zst", zstandard.compress(LINES)),
        write(tmp_path / "d.json", json.dumps(RECORDS).encode()),
        write(tmp_path / "e.jsonl", LINES.replace(b"\n", b"\r\n")),
    ]
    found = list(read_records(files))
    assert [record for _, record in found] == 5 * RECORDS
    assert [where for where, _ in found[:4]] == ["a.jsonl:1", "a.jsonl:3", "a.jsonl:5", "b.jsonl.gz:1"]
    assert found[9][0] == "d.json[0]"


def damaged_files(folder):
    half = gzip.compress(LINES * 50)
    flipped = bytearray(gzip.compress(LINES * 50))
    flipped[30] ^= 255
    zst = zstandard.compress(LINES * 50)
    return {
        "does not exist": str(folder / "missing.jsonl"),
        "is a directory": str(folder),
        "a.gz is truncated or corrupted": write(folder / "a.gz", half[: len(half) // 2]),
        "b.gz is truncated or corrupted": write(folder / "b.gz", bytes(flipped)),
        "c.gz is truncated or corrupted": write(folder / "c.gz", LINES),
        "d.zst is truncated or corrupted": write(folder / "d.zst", b"\x28\xb5\x2f\xfd" + b"junk" * 9),
        "e.zst is truncated or corrupted": write(folder / "e.zst", zst[: len(zst) // 2]),
        "f.jsonl is not UTF-8": write(folder / "f.jsonl", "é".encode("latin-1") + LINES),
        "g.jsonl:2 is not JSON": write(folder / "g.jsonl", b'{"a": 1}\n{"a": \n'),
        "h.jsonl:1 is not a JSON object": write(folder / "h.jsonl", b"[1]\n"),
        "i.json:2 is not JSON": write(folder / "i.json", LINES),
        "j.json is not an array": write(folder / "j.json", b'{"a": 1}'),
        r"k.json\[1\] is not a JSON object": write(folder / "k.json", b'[{"a": 1}, 2]'),
    }


@pytest.mark.parametrize("message", [
    "does not exist", "is a directory", "a.gz is truncated or corrupted", "b.gz is truncated or corrupted",
    "c.gz is truncated or corrupted", "d.zst is truncated or corrupted", "e.zst is truncated or corrupted",
    "f.jsonl is not UTF-8",
    "g.jsonl:2 is not JSON", "h.jsonl:1 is not a JSON object", "i.json:2 is not JSON", "j.json is not an array",
    r"k.json\[1\] is not a JSON object",
])  # fmt: skip
def test_damaged_files_are_refused(message, tmp_path):
    with pytest.raises(UserError, match=message):
        list(read_records([damaged_files(tmp_path)[message]]))


# --- public data sets -------------------------------------------------------------------------------------------------


def real(name, limit=400):
    path = DATA_ROOT / name
    if not path.exists():
        pytest.skip(f"{name} is not in the folder of shared data (ATHANOR_DATA_ROOT)")
    found = []
    for where, record in read_records([str(path)]):
        found.append((where, record))
        if len(found) == limit:
            break
    return found


@pytest.mark.parametrize(
    "name",
    [
        "sft_alpaca_en/alpaca_52k.jsonl.gz", "sft_alpaca_zh/alpaca_zh.jsonl.gz", "sft_zh_extra/extra.jsonl.gz",
        "sft_llamafactory_demo/alpaca_gpt4_zh_1000.jsonl.gz", "mini/sft.jsonl",
        "pref_sft_rasbt/instruction_with_preference_1100.jsonl.gz",
    ],
)  # fmt: skip
def test_real_alpaca(name):
    with_input = 0
    for where, record in real(name):
        first, last = to_messages(record, where)
        extra = (record.get("input") or "").strip()
        with_input += bool(extra)
        assert first == user(record["instruction"] + (f"\n{extra}" if extra else ""))
        assert last == assistant(record["output"])
    assert with_input or "extra" in name or "mini" in name


def test_real_gsm8k():
    for where, record in real("sft_gsm8k/train.jsonl.gz"):
        assert to_messages(record, where) == [user(record["question"]), assistant(record["answer"])]


@pytest.mark.parametrize(
    "name", ["sft_sharegpt_zh/sharegpt_zh_1k.jsonl.gz", "sft_llamafactory_demo/glaive_toolcall_zh_300.jsonl.gz"]
)
def test_real_sharegpt(name):
    several = 0
    for where, record in real(name):
        messages = to_messages(record, where)
        turns = record["conversations"]
        assert [m["content"] for m in messages] == [t["value"] for t in turns[: len(messages)]]
        assert messages[-1]["role"] == "assistant"
        assert all(t["from"] == "human" for t in turns[len(messages) :])
        several += len(messages) > 2
    assert several > 10


@pytest.mark.parametrize("name", ["pref_alpaca_eval/pairs.jsonl.gz", "pref_finegrained_qa/pairs.jsonl.gz"])
def test_real_preferences_with_a_prompt(name):
    for where, record in real(name):
        prompt = record.get("prompt", record.get("question"))
        assert to_pair(record, where) == ([user(prompt)], record["chosen"], record["rejected"])


def test_real_preferences_with_an_instruction():
    for where, record in real("pref_sft_rasbt/instruction_with_preference_1100.jsonl.gz"):
        pair = to_pair(record, where)
        assert pair.prompt == to_messages(record, where)[:-1]
        assert (pair.chosen, pair.rejected) == (record["chosen"], record["rejected"])


@pytest.mark.parametrize("name", ["dpo_en_demo_300", "dpo_zh_demo_300"])
def test_real_preferences_in_sharegpt_form(name):
    for where, record in real(f"pref_llamafactory_demo/{name}.jsonl.gz"):
        pair = to_pair(record, where)
        assert [m["content"] for m in pair.prompt] == [t["value"] for t in record["conversations"]]
        assert (pair.chosen, pair.rejected) == (record["chosen"]["value"], record["rejected"]["value"])
        assert pair.prompt[-1]["role"] == "user"


def test_real_preferences_with_a_dialogue():
    lengths = set()
    for where, record in real("sft_pref_oasst/pairs.jsonl.gz"):
        pair = to_pair(record, where)
        assert [m["content"] for m in pair.prompt] == [m["content"] for m in record["messages"]]
        assert pair.prompt[-1]["role"] == "user"
        assert pair.chosen != pair.rejected
        lengths.add(len(pair.prompt))
    assert len(lengths) > 1


def test_real_hh():
    """Put together again, the turns are the text; the one record whose sides part earlier is refused."""
    refused = []
    for where, record in real("pref_hh_harmless/test_part.jsonl.gz", 10_000):
        try:
            pair = to_pair(record, where)
        except UserError as error:
            refused.append(str(error))
            continue
        for answer, text in ((pair.chosen, record["chosen"]), (pair.rejected, record["rejected"])):
            roles = {"user": "Human", "assistant": "Assistant"}
            again = "".join(f"\n\n{roles[m['role']]}: {m['content']}" for m in [*pair.prompt, assistant(answer)])
            assert again.split() == text.split()
    assert len(refused) == 1
    assert "do not answer the same conversation" in refused[0]


def test_a_preference_without_another_answer_teaches_the_chosen_one():
    both = {"prompt": "p", "chosen": "c", "rejected": "r"}
    assert to_messages(both) == [user("p"), assistant("c")]
    assert to_messages({"chosen": [user("p"), assistant("c")], "rejected": [user("p"), assistant("r")]}) == [
        user("p"), assistant("c"),
    ]  # fmt: skip
    assert to_messages({**both, "completion": "x"}) == [user("p"), assistant("x")]
