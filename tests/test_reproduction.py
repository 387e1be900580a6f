"""Recorded results of small jobs: what the file holds, what `reproduce` and `verify` say of it, by which exit code."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest

from athanor import cli, config
from athanor.reproduction import record, rerun
from athanor.runs.run import Run

REPOSITORY = Path(__file__).resolve().parents[1]
SHIPPED = sorted((REPOSITORY / "experiments").rglob("*.result.json"))


@pytest.fixture
def recorded(project):
    """`repeat/tiny`, measured and recorded; its file."""
    assert cli.main(["prepare", "experiment=repeat/tiny", "--with-inputs"]) == 0
    assert cli.main(["record", "repeat/tiny"]) == 0
    return project.folder / "experiments/repeat/tiny.result.json"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(REPOSITORY / "experiments").as_posix())
def test_a_result_of_the_repository_is_what_todays_code_would_make(path, tmp_path, monkeypatch):
    """The same fingerprints from the file, its raw text given."""
    monkeypatch.setenv("ATHANOR_RUNS", str(tmp_path))
    result = record.read(path)
    (text,) = {f for entry in result["inputs"].values() for f in entry["files"].values()}
    monkeypatch.setattr(
        config._Loader, "_files",
        lambda self, key, patterns, root: config.Input(key, "files", text, [tmp_path], patterns[0]),
    )  # fmt: skip
    for run in result["runs"]:
        experiment = config.load_portable(run["reference"], result["experiments"])
        assert list(rerun._changes(result, run, experiment)) == []
        assert config.check(experiment.config, experiment.variables) == []


def test_another_pythons_library_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("ATHANOR_RUNS", str(tmp_path))
    (other := tmp_path / "other.py").write_text("")
    monkeypatch.setattr(config, "_stdlib", lambda: [other])
    path = REPOSITORY / "experiments/pretrain/demo.result.json"
    told = rerun.reproduce(path)
    assert told.verdict == rerun.CHANGED
    assert "the files python-stdlib that documents/demo reads are others" in told.problems[0]
    version = record.read(path)["environment"]["hardware"]["python"]
    assert f"they are the library of the Python that runs this, recorded with {version}" in told.problems[0]


def change(path, edit):
    result = json.loads(path.read_text())
    edit(result)
    path.write_text(json.dumps(result))


def said(capsys, *words):
    capsys.readouterr()
    code = cli.main(words)
    out, err = capsys.readouterr()
    return code, out + err


def _torch(result, version):
    result["environment"]["packages"]["torch"] = version


def test_the_file_alone_is_enough_on_another_machine(project, recorded, capsys):
    """No runs, experiments that say something else or are gone, and the data in their place."""
    shutil.rmtree(project.folder / "runs")
    project.experiment("repeat/tiny", "# Other.\ndefaults: [/prepare, _self_]\njob: {times: 3}")
    (project.folder / "experiments/documents/tiny.yaml").unlink()
    assert str(project.folder) not in recorded.read_text()
    code, out = said(capsys, "reproduce", str(recorded))
    assert (code, out.splitlines()[0]) == (0, "repeat/tiny: bit-identical"), out
    assert project.executions == ["join", "repeat", "join", "repeat"]
    made = sorted(path.parent.name for path in (project.folder / "runs").glob("*/tiny/*"))
    assert made == ["tiny"], "only the input is an ordinary run"
    said(capsys, "reproduce", str(recorded))
    assert project.executions[4:] == ["repeat"], "which is not made twice"


def test_a_run_made_from_the_file_has_the_command_that_makes_it(project, capsys):
    words = ["job.times=3", "inputs.documents={experiment: documents/tiny, overrides: ['+job.upper=true']}"]
    assert cli.main(["prepare", "experiment=repeat/tiny", *words, "--with-inputs"]) == 0
    assert cli.main(["record", "repeat/tiny", *words]) == 0
    (before,) = (project.folder / "runs/repeat/tiny").iterdir()
    (above,) = (project.folder / "runs/documents/tiny").iterdir()
    shutil.rmtree(project.folder / "runs")
    code, out = said(capsys, "reproduce", "repeat/tiny.result.json")
    assert code == 0, out
    again = Run(project.folder / f"runs/documents/tiny/{above.name}")
    assert again.manifest["overrides"] == ["+job.upper=true"]
    assert config.load("repeat/tiny", words).directory == before


def test_raw_data_that_changed_are_named_and_nothing_is_run(project, recorded, capsys):
    project.write("data/a.txt", "One ")
    code, out = said(capsys, "reproduce", str(recorded))
    assert code == 1
    assert "repeat/tiny: inputs changed" in out
    assert "the files data/*.txt that documents/tiny reads are others: " in out
    assert project.executions == ["join", "repeat"]


def test_a_config_changed_in_the_file_does_not_have_its_fingerprint(recorded, capsys):
    reference = json.loads(recorded.read_text())["runs"][0]["reference"]
    change(recorded, lambda result: result["experiments"][reference]["config"]["job"].update(times=5))
    code, out = said(capsys, "reproduce", str(recorded))
    assert code == 1
    assert "the file was changed, or a class that it names has another version" in out


@pytest.mark.parametrize(
    ("edit", "code", "lines"),
    [
        (lambda r: _torch(r, "1.0"), 0, ["bit-identical", "then and now: torch 1.0 -> "]),
        (lambda r: r["runs"][0]["metrics"].update(characters=16.01), 3, ["same within 6.2e-04 (the final characters)"]),
        (
            lambda r: (
                r["runs"][0]["metrics"].update(characters=16.01),
                r["environment"]["hardware"].update(cpu="abacus"),
            ),
            3,
            ["same within 6.2e-04 (the final characters) (hardware differs: cpu abacus -> "],
        ),
        (
            lambda r: r["runs"][0]["metrics"].update(characters=20.0),
            1,
            ["different in the final metrics only", "characters was 20.0 and is 16.0", "not deterministic"],
        ),
        (
            lambda r: (r["runs"][0]["outputs"].update({"documents.txt": "0"}), _torch(r, "1")),
            1,
            ["different: first differing file documents.txt, likely because torch 1 -> "],
        ),
        (
            lambda r: (r["runs"][0]["outputs"].update({"documents.txt": "0"}),
                       [entry.update(outputs="0") for entry in r["inputs"].values()]),
            1,
            ["likely because documents/tiny@", "which it reads, came out with other bytes"],
        ),
    ],
    ids=["version", "within", "hardware", "beyond", "outputs", "upstream"],
)  # fmt: skip
def test_what_differs_is_told_and_the_exit_code_says_how_much(project, recorded, capsys, edit, code, lines):
    change(recorded, edit)
    got, out = said(capsys, "reproduce", str(recorded))
    for line in lines:
        assert line in out
    assert got == code
    kept = list((project.folder / "runs/.reproduce").rglob("documents.txt"))
    assert bool(kept) == (code != 0)


def test_verify_tells_of_every_result_and_one_failure_stops_no_other(project, recorded, capsys):
    assert cli.main(["record", "documents/tiny"]) == 0
    assert said(capsys, "verify")[0] == 0
    change(recorded, lambda result: result["runs"][0]["metrics"].update(characters=16.01))
    code, out = said(capsys, "verify")
    assert code == 3
    assert "within tolerance" in out
    shutil.copy(recorded, recorded.with_name("long.result.json"))
    change(recorded.with_name("long.result.json"), lambda result: result.update(seconds=7200.0))
    recorded.with_name("broken.result.json").write_text("{}")
    code, out = said(capsys, "verify")
    assert code == 1
    rows = {tuple(line.split()[:2]) for line in out.splitlines()}
    assert {("documents/tiny", "bit-identical"), ("repeat/tiny", "within"), ("repeat/tiny", "skipped")} <= rows
    assert ("broken", "failed") in rows
    assert said(capsys, "verify", "documents/tiny")[0] == 0
    assert said(capsys, "verify", "documents/")[0] == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["record", "repeat/tiny"], "is not measured yet; make its runs first"),
        (["record", "repeat/tony"], "did you mean 'repeat/tiny'?"),
        (["record"], "the following arguments are required"),
        (["record", "repeat/tiny", "documents/tiny"], "say one experiment"),
        (["verify"], "no result is recorded yet"),
        (["verify", "repeat/tiny"], "there is no result 'repeat/tiny'"),
        (["reproduce", "no.result.json"], "there is no result 'no.result.json'"),
        (["reproduce", "data/a.json"], "is no result that `athanor record` wrote"),
        (["reproduce", "repeat/tiny", "cluster.threads=1"], "only a result file takes overrides"),
    ],
)
def test_a_wrong_command_is_a_sentence(project, capsys, words, told):
    project.write("data/a.json", "[1]")
    code, out = said(capsys, *words)
    assert code == 2
    assert told in out


def test_overrides_of_a_rerun_are_of_execution(recorded, capsys):
    code, out = said(capsys, "reproduce", str(recorded), "seed=3")
    assert code == 2
    assert "changes what is computed" in out
    assert said(capsys, "reproduce", str(recorded), "cluster.num_workers=1")[0] == 0


def test_a_damaged_run_and_a_path_of_this_machine_are_not_recorded(project, capsys):
    assert cli.main(["prepare", "experiment=repeat/tiny", "--with-inputs"]) == 0
    (output,) = project.folder.glob("runs/repeat/tiny/*/documents.txt")
    output.write_text("twice")
    code, out = said(capsys, "record", "repeat/tiny")
    assert code == 2
    assert "documents.txt has 5 bytes" in out
    words = [f"inputs.raw.files={project.folder}/data/*.txt"]
    assert cli.main(["prepare", "experiment=documents/tiny", *words]) == 0
    code, out = said(capsys, "record", "documents/tiny", *words)
    assert code == 2
    assert "is a path of this machine" in out
    assert not list(project.folder.rglob("*.result.json"))


def test_the_interval_is_over_seeds_and_leaves_times_out():
    found = record.summary([{"loss": 1.0, "train/seconds": 3.0, "a/mfu": 1.0}, {"loss": 2.0}, {"loss": 3.0}])
    assert found == {
        "loss": {"mean": 2.0, "low": pytest.approx(-0.4841377), "high": pytest.approx(4.4841377), "seeds": 3}
    }


def test_a_tensor_is_hashed_by_type_shape_and_bytes(tmp_path):
    def write(dtype, shape, data):
        header = json.dumps({"b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
                             "a": {"dtype": dtype, "shape": shape, "data_offsets": [0, 4]}}).encode()  # fmt: skip
        path = tmp_path / "model.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header + data + b"\0\0\0\1")
        return dict(record.tensors(path))

    first = write("F32", [1], b"\1\2\3\4")
    assert list(first) == ["a", "b"], "in the order of the file"
    assert write("F32", [1], b"\1\2\3\4") == first
    for other in (write("I32", [1], b"\1\2\3\4"), write("F32", [1, 1], b"\1\2\3\4"), write("F32", [1], b"\1\2\3\5")):
        assert other["a"] != first["a"]
        assert other["b"] == first["b"]


def test_not_a_number_equals_itself_and_nothing_else():
    assert rerun._gap(float("nan"), float("nan")) == 0
    assert rerun._gap(float("inf"), float("inf")) == 0
    assert rerun._gap(1.0, float("nan")) == float("inf")
    assert rerun._gap(1.0, None) == float("inf")
    assert rerun._gap(1.0, 1.5) == 0.5
