"""What a user can get wrong in training and evaluation: one sentence, exit code 2, and nothing left behind."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from furnace_project import Furnace, Outcome, read_json

Complain = Callable[..., str]


@pytest.fixture
def complain(furnace: Furnace, here: Callable[..., Outcome], tmp_path: Path) -> Complain:
    """What `athanor` says to a step's command with these overrides, having left no file in its runs root."""

    def call(step: str, *overrides: str) -> str:
        runs = tmp_path / "empty"
        outcome = here(*furnace.command(step, runs, "display=quiet", *overrides))
        assert outcome.code == 2, outcome
        assert outcome.out == ""
        left = [path for path in runs.rglob("*") if path.is_file() and path.parent.name != ".cache"]
        assert left == []
        assert outcome.err.startswith("athanor: ")
        sentence = outcome.err.removeprefix("athanor: ").strip()
        assert "\n" not in sentence, "one sentence"
        assert not re.search(r"Traceback|Error\b", sentence)
        return sentence

    return call


def records(path: Path, *lines: Any) -> str:
    """An override for `data.files`; a line is a record or bytes as they are."""
    path.write_bytes(b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines))
    return f"[{path}]"


def asked(number: int, answer: str = "yes") -> dict[str, str]:
    return {"instruction": f"Is {number} a number?", "output": answer}


# Config


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optimiser.lr=1", ("optimiser.lr", "'optimizer.lr'")),
        ("+optimizer.weight_deacy=0", ("weight_deacy", "weight_decay")),
        ("+algorithm.kl_coeficient=0", ("kl_coeficient", "kl_coefficient")),
        ("optimizer.lr=fast", ("optimizer.lr", "fast", "float")),
        ("max_steps=???", ("max_steps",)),
        ("+algorithm.reference._target_=os.system", ("os.system",)),
    ],
)
def test_config(complain: Complain, override: str, parts: tuple[str, ...]) -> None:
    said = complain("ppo", override)
    for part in parts:
        assert part in said


@pytest.mark.parametrize(("batch", "near"), [(10, "8 or 12"), (3, "4"), (0, None)])
def test_a_global_batch_that_does_not_divide(complain: Complain, batch: int, near: str | None) -> None:
    said = complain("sft", f"global_batch_size={batch}", "cluster.micro_batch_size=4")
    assert f"global_batch_size={batch}" in said
    assert near is None or said.endswith(f"the nearest that do: {near}.")


def test_a_rollout_that_is_no_multiple_of_the_batch(complain: Complain) -> None:
    assert "data.rollout_size=12" in (said := complain("ppo", "data.rollout_size=12"))
    assert "nearest above: 16" in said


def test_more_devices_than_there_are(complain: Complain) -> None:
    assert "gpu" in complain("sft", "cluster.accelerator=gpu", "cluster.devices=9").lower()


@pytest.mark.parametrize(
    "override",
    [
        "checkpoint.every_n_steps=0", "checkpoint.keep=0", "max_steps=0", "precision=33", "validate_every_n_steps=0",
        "gradient_clip=-1", "logger.every_n_steps=0", "cluster.num_workers=-1", "cluster.threads=0", "cluster.nodes=0",
        "cluster.micro_batch_size=0", "+data.validation_batch_size=0", "data.rollout_size=0", "strategy=ddpp",
        "algorithm.max_new_tokens=0", "+algorithm.temperature=0", "+data.epochs_per_rollout=0", "cluster.devices=0",
    ],
)  # fmt: skip
def test_numbers_that_make_no_sense(complain: Complain, override: str) -> None:
    assert override.lstrip("+").partition("=")[0].rpartition(".")[2] in complain("ppo", override)


# Files


def test_a_missing_file(complain: Complain) -> None:
    assert "/nowhere/a.jsonl" in complain("sft", "data.files=[/nowhere/a.jsonl]")


def test_a_pattern_that_matches_nothing(complain: Complain) -> None:
    said = complain("sft", "+inputs.mine.files=raw/*.jsonl", "data.files='${inputs.mine}'")
    assert "inputs.mine: no file matches 'raw/*.jsonl'" in said


def test_a_run_that_is_not_there(complain: Complain, furnace: Furnace) -> None:
    assert "/nowhere" in complain("sft", "inputs.parent=/nowhere")
    assert "did you mean 'pretrain/demo'?" in complain("sft", "inputs.parent=pretrain/dem")


def test_text_that_is_not_utf_8(complain: Complain, tmp_path: Path) -> None:
    files = records(tmp_path / "a.jsonl", asked(1), '{"instruction": "Grüße", "output": "x"}\n'.encode("latin-1"))
    said = complain("sft", f"data.files={files}")
    assert f"{tmp_path}/a.jsonl" in said
    assert "UTF-8" in said


def test_a_record_without_its_field(complain: Complain, tmp_path: Path) -> None:
    files = records(tmp_path / "a.jsonl", asked(1), asked(2), {"instruction": "Is 3?", "answr": "yes"})
    said = complain("sft", f"data.files={files}")
    assert "a.jsonl:3 has the fields ['answr', 'instruction']" in said
    said = complain("dpo", f"data.files={files}")
    assert "a.jsonl:1 has the fields ['instruction', 'output']" in said
    assert "`chosen`" in said


def test_a_line_that_is_not_json(complain: Complain, tmp_path: Path) -> None:
    files = records(tmp_path / "a.jsonl", asked(1), b'{"instruction": "cut\n')
    assert "a.jsonl:2 is not JSON" in complain("sft", f"data.files={files}")


@pytest.mark.parametrize("step", ["sft", "dpo", "ppo"])
def test_no_records_at_all(complain: Complain, tmp_path: Path, step: str) -> None:
    files = records(tmp_path / "a.jsonl")
    assert "training split holds no samples" in complain(step, f"data.files={files}")
    assert "validation split holds no samples" in complain(step, f"++data.validation_files={files}")


def test_no_rows_to_pretrain_on(complain: Complain) -> None:
    """The validation split is a tenth of a small corpus: it may be shorter than a row where training is not."""
    said = complain("pretrain", "data.sequence_length=100000", "model.context=100000")
    assert "training tokens, fewer than one row of 100000" in said
    said = complain("pretrain", "data.sequence_length=8000", "model.context=8000")
    assert "validation tokens, fewer than one row of 8000" in said


def damaged(furnace: Furnace, folder: Path, step: str, name: str) -> Path:
    """A copy of a step's run with one bit of one output turned round."""
    run = furnace.directory(step)
    copy = folder / "runs" / run.relative_to(furnace.runs)
    shutil.copytree(run, copy)
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    return copy


@pytest.mark.parametrize(
    ("step", "reader", "reads", "name"),
    [
        ("shards", "pretrain", "shards", "train.bin"),
        ("shards", "evaluate_sft", "shards", "validation.bin"),
        ("pretrain", "sft", "parent", "model.safetensors"),
        ("tasks", "dpo", "tasks", "pairs_train.jsonl"),
        ("tokenizer", "pretrain", "tokenizer", "tokenizer.model"),
        ("sft", "evaluate_sft", "model", "model.safetensors"),
    ],
)
def test_one_bit_turned(
    complain: Complain, furnace: Furnace, tmp_path: Path, step: str, reader: str, reads: str, name: str
) -> None:
    copy = damaged(furnace, tmp_path, step, name)
    said = complain(reader, f"inputs.{reads}={copy}")
    assert f"{copy / name} was changed after it was written" in said
    assert "--force" in said


# Parts that do not fit each other


def test_a_vocabulary_larger_than_the_models(complain: Complain) -> None:
    said = complain("pretrain", "model.vocabulary_size=599")
    assert said == "The tokenizer has 600 pieces but the model only 599; set model.vocabulary_size=600."


def test_sequences_longer_than_the_context(complain: Complain, tmp_path: Path) -> None:
    said = complain("pretrain", "data.sequence_length=129")
    assert "data.sequence_length=129 exceeds the model's context of 128" in said
    files = records(tmp_path / "a.jsonl", *(asked(i) for i in range(60)), asked(61, "yes " * 200))
    said = complain("sft", f"data.files={files}", "data.too_long=error")
    assert "1 of " in said
    assert "context of 128 tokens (the longest, a.jsonl:61, has" in said
    pair = {"prompt": "Is it?", "chosen": "yes " * 200, "rejected": "no"}
    said = complain("dpo", f"data.files={records(tmp_path / 'b.jsonl', pair)}", "data.validation_files=null")
    assert "context of 128" in said
    said = complain("ppo", f"data.files={records(tmp_path / 'c.jsonl', {'prompt': 'so ' * 200})}")
    assert "context of 120" in said, "8 tokens are for the answer"


@pytest.mark.parametrize(
    ("step", "reads", "given", "parts"),
    [
        ("sft", "parent", "shards", ("is a prepare run and holds no model",)),
        ("pretrain", "shards", "tokenizer", ("tokenizer/demo", "has no output 'shards.json'")),
        ("pretrain", "tokenizer", "shards", ("shards/demo", "tokenizer.model")),
        ("sft", "tasks", "tokenizer", ("sft_train.jsonl",)),
        ("sft", "parent", "evaluate_sft", ("is a evaluate run and holds no model",)),
        ("sft", "parent", "reward", ("reward/demo", "no language model")),
        ("dpo", "parent", "reward", ("reward/demo", "no language model")),
        ("ppo", "parent", "reward", ("reward/demo", "no language model")),
        ("reward", "parent", "reward", ("reward/demo", "no language model")),
        ("ppo", "reward", "sft", ("sft/demo", "no reward model")),
        ("evaluate_sft", "model", "reward", ("reward/demo is a reward model",)),
        ("evaluate_sft", "model", "tasks", ("tasks/demo", "holds no model")),
        ("evaluate_sft", "reward", "sft", ("no reward model",)),
        ("evaluate_sft", "reference", "reward", ("reward/demo", "no language model")),
    ],
)
def test_a_run_of_the_wrong_kind(
    complain: Complain, furnace: Furnace, step: str, reads: str, given: str, parts: tuple[str, ...]
) -> None:
    said = complain(step, f"inputs.{reads}={furnace.directory(given)}")
    for part in parts:
        assert part in said


def test_a_record_that_an_evaluation_cannot_use(complain: Complain, tmp_path: Path) -> None:
    files = records(tmp_path / "a.jsonl", {"prompt": "Is 3 a number?"})
    said = complain("evaluate_sft", f"job.tasks.exact_match.files={files}")
    assert "a.jsonl:1 has no `answer`" in said
    files = records(tmp_path / "b.jsonl")
    assert "hold no records" in complain("evaluate_sft", f"job.tasks.exact_match.files={files}")


def test_the_verb_of_another_kind(here: Callable[..., Outcome]) -> None:
    outcome = here("train", "experiment=evaluate/demo")
    assert outcome.code == 2
    assert "athanor evaluate experiment=evaluate/demo" in outcome.err


def test_a_real_process_says_the_same(furnace: Furnace, tmp_path: Path) -> None:
    """As a user sees it, with the display on: the stage failed, and the sentence."""
    files = records(tmp_path / "a.jsonl", {"question": "?"})
    outcome = furnace.run(*furnace.command("sft", tmp_path / "runs", f"data.files={files}"))
    assert outcome.code == 2
    told = [line for line in outcome.err.splitlines() if not re.fullmatch(r"sft/demo failed after \d+ s", line)]
    assert len(told) == 1
    assert told[0].startswith("athanor: ")
    assert "a.jsonl:1 has the fields ['question']" in told[0]
    assert not list((tmp_path / "runs").glob("sft/*"))


def test_check_reads_no_data(furnace: Furnace, here: Any, tmp_path: Path) -> None:
    """`--check` builds nothing and so finds nothing wrong with the data."""
    copy = damaged(furnace, tmp_path, "shards", "train.bin")
    outcome = here(*furnace.command("pretrain", tmp_path / "other", f"inputs.shards={copy}"), "--check")
    assert outcome.code == 0
    assert read_json(copy / "manifest.json")["fingerprint"] == furnace.directory("shards").name
