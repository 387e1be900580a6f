"""The plan of a corpus: measured on its own files, proportional to size, its arithmetic by hand."""

import json
from types import SimpleNamespace

import pytest

from athanor import cli
from athanor.corpus.balance import Balance
from athanor.corpus.deduplicate import ExactDuplicates, NearDuplicates, SimilarDuplicates
from athanor.errors import UserError
from athanor.planning.corpus import CorpusPlan, Sample, held_of, plan, size_in_bytes

EXPERIMENT = """
# Lines, of which a third is too short and a third is twice there.
defaults: [/prepare, /job: documents, _self_]
inputs: {raw: {files: data/raw.jsonl}}
job:
  sources:
    - {_target_: athanor.corpus.sources.JsonLines, name: raw, files: "${inputs.raw}", language: en}
  steps:
    - {_target_: athanor.corpus.filters.Length, minimum: 10}
    - {_target_: athanor.corpus.deduplicate.ExactDuplicates}
"""
SAMPLE = Sample(1e9, 1000, 800, 600, 24 * 10**8, 5 * 10**8, 4 * 10**8, 3600.0, 36.0)


def test_the_arithmetic_by_hand():
    found = CorpusPlan("x", 1e14, SAMPLE, 500, 64, 896, [])
    assert found.factor == 1e5
    assert found.single_hours == 1e5
    assert found.compared_hours == 1e3
    assert found.encoding_hours == pytest.approx(1e5 * 24e8 / 6.6e6 / 3600)
    assert found.core_hours == found.single_hours + found.compared_hours + found.encoding_hours
    assert found.tokens == pytest.approx(24e13 / 3.5)
    assert found.blocks == 2, "80 million documents of 896 bytes are 66.8 GiB, where 51.2 fit"
    assert found.hours == pytest.approx((found.single_hours + found.encoding_hours) / 500 + 1000 / 2)
    assert found._replace(size=1e9).blocks == 1
    assert json.loads(found.as_json())["core_hours"] == found.core_hours


def test_sizes():
    sizes = {"100TB": 1e14, "1.5 gb": 1.5e9, "20GiB": 20 * 2**30, "1PB": 1e15, "7": 7, "3kib": 3072}
    assert {text: size_in_bytes(text) for text in sizes} == sizes
    for wrong in ("much", "0TB", "-1GB", "1XB"):
        with pytest.raises(UserError, match="is no size"):
            size_in_bytes(wrong)


def test_what_comparisons_hold():
    assert held_of(NearDuplicates(0.8)) == 512 + 12 * 32
    assert held_of(SimilarDuplicates(6)) == 8 + 12 * 84
    assert held_of(ExactDuplicates()) > 100
    assert held_of(Balance()) is None


def test_measured_on_the_files_of_the_experiment(project, capsys):
    long = "one two three four five six seven eight nine ten"
    lines = [json.dumps({"text": f"{long if n % 3 else 'short'} {n // 2}"}) for n in range(900)]
    project.write("data/raw.jsonl", "\n".join(lines) + "\n")
    project.experiment("documents/lines", EXPERIMENT)
    words = ["plan", "experiment=documents/lines", "size=1TB", "--cores", "10"]
    assert cli.main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    sample = told["sample"]
    assert sample["files"] == sum(len(line) + 1 for line in lines)
    assert (sample["read"], sample["single"]) == (900, 600)
    assert sample["kept"] == len({line for line in lines if "short" not in line})
    assert told["factor"] == pytest.approx(1e12 / sample["files"])
    assert sample["single_seconds"] > 0
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert "core-hours" in shown
    assert "days on 10 cores" in shown
    assert cli.main([*words, "--sample", "1kB"]) == 2
    assert "too few to measure on" in capsys.readouterr().err


def test_only_documents_have_such_a_plan():
    experiment = SimpleNamespace(name="x", config={"job": {"_target_": "athanor.corpus.deduplicate.ExactDuplicates"}})
    with pytest.raises(UserError, match="prepares no documents"):
        plan(experiment, 1e9, 1e6, 1, 1)
    with pytest.raises(UserError, match="--cores 0"):
        plan(experiment, 1e9, 1e6, 0, 1)
