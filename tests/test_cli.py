"""The command line as a user meets it: processes, exit codes, one sentence on stderr, nothing heavy for help."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from athanor import cli
from athanor.runs.run import list_runs


def said(capsys, *words):
    """Exit code, stdout and stderr of a command line run in this process."""
    code = cli.main(words)
    streams = capsys.readouterr()
    return code, streams.out, streams.err


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["pipeline", "--help"], ["--version"]])
def test_help_is_quick_and_imports_nothing_heavy(project, words):
    code = f"""
import sys
from athanor import cli
try:
    cli.main({words!r})
finally:
    heavy = {{"torch", "lightning", "hydra", "omegaconf", "rich", "numpy", "yaml"}} & set(sys.modules)
    assert not heavy, heavy
"""
    durations = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, timeout=30, stdout=subprocess.DEVNULL)
        durations.append(time.perf_counter() - started)
    assert min(durations) < 1.0  # 0.04 s on an idle machine


def test_help_lists_the_experiments_of_the_verb_with_their_first_comment(project, capsys):
    project.experiment("pretrain/x", "# @package _global_\n#\n# Pretrain x.\ndefaults: [/train, _self_]")
    _, out, _ = said(capsys, "prepare", "--help")
    assert "documents/tiny  Join the two documents." in out
    assert "repeat/tiny     Repeat the documents." in out
    assert "pretrain/x" not in out
    assert "pretrain/x  Pretrain x." in said(capsys, "train", "--help")[1]
    assert said(capsys, "evaluate", "--help")[1].endswith("experiments:\n  none yet\n")
    assert all(f"\n  {verb}" in said(capsys, "--help")[1] for verb in cli.VERBS)


def test_a_run_is_made_then_skipped_and_told(project, capsys):
    code, out, err = said(capsys, "prepare", "experiment=documents/tiny")
    (run,) = list_runs()
    assert code == 0
    assert out.splitlines()[0].startswith(f"{run.id}  finished  ")
    assert out.splitlines()[1:] == [f"runs/{run.id}", "characters  8"]
    assert "documents/tiny finished after" in err
    assert "already done" in said(capsys, "prepare", "experiment=documents/tiny")[1]
    assert project.executions == ["join"]
    assert said(capsys, "prepare", "--force", "experiment=documents/tiny")[0] == 0
    assert project.executions == ["join", "join"]


def test_check_and_print_build_nothing(project, capsys):
    code, out, _ = said(capsys, "prepare", "experiment=repeat/tiny", "--check", "job.times=3")
    assert code == 0
    assert out.startswith("ok repeat/tiny ")
    code, out, _ = said(capsys, "prepare", "experiment=repeat/tiny", "--print")
    assert "  times: 2" in out
    assert out.startswith("# repeat/tiny  ")
    assert not (project.folder / "runs").exists() or list_runs() == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian"], "there is no verb 'trian'; did you mean 'train'?"),
        (
            ["prepare"],
            "say which experiment: `athanor prepare experiment=NAME`; there are: documents/tiny, repeat/tiny",
        ),
        (["prepare", "documents/tiny"], "write `experiment=documents/tiny`"),
        (["prepare", "experiment=documents/tinny"], "there is no experiment 'documents/tinny'; did you mean"),
        (["train", "experiment=documents/tiny"], "use `athanor prepare experiment=documents/tiny`"),
        (["prepare", "experiment=documents/tiny", "--chekc"], "unrecognized arguments: --chekc"),
        (["prepare", "experiment=documents/tiny", "job.uper=true"], "has no 'job.uper'"),
        (
            ["prepare", "experiment=documents/tiny", "job.files=3", "--check"],
            "job.files is 3 (int), but tiny.Join takes",
        ),
        (["prepare", "experiment=repeat/tiny"], "athanor prepare experiment=documents/tiny"),
        (["prepare", "experiment=documents/tiny", "job.files=[]"], "there are no files to join"),
        (["lineage", "documents/tiny"], "there is no run 'documents/tiny'"),
        (["report", "documents/tiny"], "there is no run 'documents/tiny'"),
        (["lineage"], "the following arguments are required: run"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(project, capsys, words, sentence):
    code, out, err = said(capsys, *words)
    assert (code, out) == (2, "")
    assert sentence in err
    lines = [line for line in err.splitlines() if not line.startswith(("documents/tiny failed", "  - "))]
    assert len(lines) == 1
    assert lines[0].startswith("athanor: ")
    assert "Traceback" not in err


def test_a_failure_is_short_unless_the_traceback_is_asked_for(project, capsys, monkeypatch):
    said(capsys, "prepare", "experiment=documents/tiny")
    words = ["prepare", "experiment=repeat/tiny", "+job.stop=fail"]
    code, _, err = said(capsys, *words)
    assert code == 1
    assert "repeat/tiny failed: RuntimeError: the furnace went out; the traceback is in " in err
    assert "Traceback" not in err
    assert "Traceback" in said(capsys, *words, "--debug")[2]
    monkeypatch.setenv("ATHANOR_DEBUG", "1")
    assert "Traceback" in said(capsys, *words)[2]


def test_inputs_are_made_first_where_asked_for(project, capsys):
    words = ["prepare", "experiment=repeat/tiny", "--with-inputs", "cluster.num_workers=2", "paths.runs=elsewhere"]
    assert said(capsys, *words)[0] == 0
    assert project.executions == ["join", "repeat"]
    runs = list_runs(project.folder / "elsewhere")
    assert [run.manifest["config"]["cluster"]["num_workers"] for run in runs] == [2, 2]


def test_runs_lists_status_metric_fingerprint_and_age(project, capsys):
    assert "no runs in runs" in said(capsys, "runs")[1]
    said(capsys, "prepare", "experiment=repeat/tiny", "--with-inputs")
    said(capsys, "prepare", "experiment=repeat/tiny", "+job.stop=fail")
    rows = [line.split() for line in said(capsys, "runs")[1].splitlines()]
    assert rows[0] == ["run", "fingerprint", "status", "age", "metric"]
    assert [(row[0], row[2], row[5:]) for row in rows[1:]] == [
        ("documents/tiny", "finished", ["characters", "8"]),
        ("repeat/tiny", "finished", ["characters", "16"]),
        ("repeat/tiny", "failed", []),
    ]
    listed = [json.loads(line) for line in said(capsys, "runs", "repeat", "--json")[1].splitlines()]
    assert [entry["status"] for entry in listed] == ["finished", "failed"]


def test_lineage_walks_to_the_documents_and_says_what_changed(project, capsys):
    said(capsys, "prepare", "experiment=repeat/tiny", "--with-inputs")
    code, out, _ = said(capsys, "lineage", "repeat/tiny")
    assert code == 0
    for part in (
        "repeat/tiny/",
        "documents: documents/tiny/",
        "raw: data/*.txt 2 files, 8 bytes",
        "every file is as it was",
    ):
        assert part in out
    project.write("data/a.txt", "onE ")
    code, out, _ = said(capsys, "lineage", "repeat/tiny")
    assert code == 1
    assert f"documents/tiny, input raw: {project.folder}/data/a.txt was changed" in out
    (project.folder / "data/a.txt").unlink()
    tree = json.loads(said(capsys, "lineage", "repeat/tiny", "--json")[1])
    raw = tree["inputs"][0]["inputs"][0]
    assert (raw["files"], raw["bytes"], raw["problems"]) == (2, 8, [f"{project.folder}/data/a.txt is missing"])
    shutil.rmtree(project.folder / "runs/documents")
    assert "is gone" in said(capsys, "lineage", "repeat/tiny")[1]


# Reproduction


def verdict(project):
    (run,) = (run for run in list_runs() if run.name == "repeat/tiny")
    return json.loads((run.directory / "reproduce.json").read_text())


@pytest.fixture
def repeated(project, capsys):
    said(capsys, "prepare", "experiment=repeat/tiny", "--with-inputs")
    return project


def test_a_reproduction_is_bit_identical_and_leaves_no_copy(repeated, capsys):
    code, out, _ = said(capsys, "reproduce", "repeat/tiny")
    assert code == 0
    assert ": bit-identical\n  documents.txt: bit-identical\n" in out
    assert repeated.executions == ["join", "repeat", "repeat"]
    assert not list((repeated.folder / "runs/.reproduce").rglob("documents.txt"))
    assert verdict(repeated)["verdict"] == "bit-identical"


def test_a_reproduction_follows_the_manifest_and_not_todays_experiment(repeated, capsys):
    repeated.experiment("repeat/tiny", "defaults: [/prepare, _self_]")
    assert said(capsys, "reproduce", "repeat/tiny")[0] == 0


def test_a_reproduction_finds_its_inputs_in_a_moved_folder(repeated, capsys, monkeypatch):
    (repeated.folder / "runs").rename(repeated.folder / "moved")
    monkeypatch.setenv("ATHANOR_RUNS", "moved")
    assert said(capsys, "reproduce", "repeat/tiny")[0] == 0


def test_a_changed_document_is_named_and_nothing_rerun_unless_asked_for(repeated, capsys):
    repeated.write("data/a.txt", "onE ")
    code, out, _ = said(capsys, "reproduce", "repeat/tiny")
    assert code == 1
    assert ": inputs changed\n" in out
    assert f"{repeated.folder}/data/a.txt was changed" in out
    assert repeated.executions == ["join", "repeat"]
    code, out, _ = said(capsys, "reproduce", "repeat/tiny", "--anyway")
    assert code == 1
    assert "documents.txt: bit-identical" in out
    assert verdict(repeated)["verdict"] == "inputs changed"


def test_a_different_output_is_shown_where_it_differs(repeated, capsys, monkeypatch):
    import tiny

    monkeypatch.setattr(
        tiny.Repeat, "run", lambda self, context: (context.directory / "documents.txt").write_text("a\nc") and {}
    )
    code, out, _ = said(capsys, "reproduce", "repeat/tiny")
    assert code == 1
    assert "documents.txt: different, first differing line 1" in out
    assert verdict(repeated)["verdict"] == "different"
    assert (repeated.folder / "runs/.reproduce/repeat").exists()


# Interruption


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_as_interrupted(project, number, code):
    assert project.athanor("prepare", "experiment=documents/tiny").returncode == 0
    words = [sys.executable, "-m", "athanor", "prepare", "experiment=repeat/tiny", "+job.stop=wait"]
    process = subprocess.Popen(words, cwd=project.folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for _ in range(600):
        if (project.folder / "started").exists():
            break
        time.sleep(0.05)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert "athanor: interrupted; the same command goes on" in err
    assert "Traceback" not in err
    (run,) = (run for run in list_runs() if run.name == "repeat/tiny")
    assert run.manifest["status"] == "interrupted"
    again = project.athanor("prepare", "experiment=repeat/tiny", "+job.stop=wait", GO_ON="1")
    assert (again.returncode, again.stderr.count("athanor:")) == (0, 0)


def test_a_reader_that_leaves_early_is_no_error(project):
    command = f"{sys.executable} -m athanor --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""


@pytest.mark.parametrize(("rank", "said"), [("0", "said torn down\n"), ("1", "said ")])
def test_ranks_beside_the_first_end_without_the_interpreters_own_end(rank, said):
    """What they have said is written, and their exit code is kept."""
    code = "import atexit, sys, torch; from athanor import cli; atexit.register(print, 'torn down'); "
    code += "cli.main = lambda: sys.stdout.write('said ') - 2; cli.run()"
    environment = {**os.environ, "RANK": rank}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (3, said), done.stderr
