"""A corpus as an array on a real SLURM: what one element did not make is made again, alone; the bytes are the same."""

import json
from pathlib import Path

import pytest
from slurm_project import Cluster, Rehearsal
from test_submission import submitted

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

EXPERIMENT = """# Six files, with copies across them.
# @package _global_
defaults: [/prepare, /job: documents, _self_]
inputs: {raw: {files: "%s/*.jsonl"}}
job:
  sources:
    - {_target_: athanor.corpus.sources.JsonLines, name: raw, files: "${inputs.raw}"}
  steps:
    - {_target_: athanor.corpus.normalize.Normalize}
    - {_target_: athanor.corpus.deduplicate.ExactDuplicates}
"""


def test_an_element_that_dies_is_made_again_alone(rehearsal: Rehearsal, cluster: Cluster, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(6):
        lines = [json.dumps({"text": f"a text of file {number % 4} and line {n}"}) for n in range(50)]
        (data / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    experiment = rehearsal.folder / "experiments/documents/lines.yaml"
    experiment.parent.mkdir(exist_ok=True)
    experiment.write_text(EXPERIMENT % data)
    words = ["experiment=documents/lines", "cluster=local-slurm", f"paths.runs={tmp_path / 'runs'}"]
    words += ["executor=slurm", "executor.part_bytes=1", "executor.elements=3"]

    numbers = submitted(rehearsal.run("submit", "prepare", *words, "cluster.slurm.options=['--hold']"))
    array, last = numbers["parts"], numbers["documents/lines"]
    cluster.ask("scancel", f"{array}_2")
    cluster.ask("scontrol", "release", array)
    for element in ("1", "3"):
        assert cluster.wait(f"{array}_{element}")["JobState"] == "COMPLETED", rehearsal.said(array)
    assert cluster.wait(last)["JobState"] == "CANCELLED", "nothing is put together while parts are missing"
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs/.parts").glob("*/*.zst")}
    assert {path.name.partition(".")[0] for path in made} == {"00000", "00002", "00003", "00005"}

    numbers = submitted(rehearsal.run("submit", "prepare", *words))
    assert cluster.wait(f"{numbers['parts']}_2")["JobState"] == "COMPLETED"
    assert all(path.stat().st_mtime_ns == before for path, before in made.items() if path.exists())
    assert cluster.wait(numbers["documents/lines"])["JobState"] == "COMPLETED"
    alone = rehearsal.run("prepare", "experiment=documents/lines", f"paths.runs={tmp_path / 'alone'}")
    assert alone.code == 0, alone.err
    for name in ("documents.jsonl.zst", "cleaning.json"):
        (one,), (other,) = ((tmp_path / root).glob(f"documents/lines/*/{name}") for root in ("runs", "alone"))
        assert one.read_bytes() == other.read_bytes(), name
