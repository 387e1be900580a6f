"""In parts or whole, by one process or several, killed or not: the same bytes, and the same account of every loss."""

import json
import signal
import subprocess
import sys

import pytest
from corpus_harness import CHINESE, ENGLISH

from athanor import cli, config
from athanor.corpus import executors, parts, steps
from athanor.corpus.balance import Balance
from athanor.corpus.deduplicate import ExactDuplicates, NearDuplicates, SimilarDuplicates
from athanor.corpus.passages import RepeatedPassages
from athanor.corpus.spans import RepeatedSpans
from athanor.runs.store import execute

EXPERIMENT = """
# Files of two sources, some with documents to drop, one that cannot be read, and copies across files.
defaults: [/prepare, /job: documents, _self_]
inputs:
  lines: {files: "data/lines*.jsonl"}
  texts: {files: "data/text*.txt"}
  first: {files: "data/first.jsonl"}
job:
  sources:
    - {_target_: athanor.corpus.sources.JsonLines, name: lines, files: "${inputs.lines}", broken: skip}
    - {_target_: athanor.corpus.sources.Text, name: texts, files: "${inputs.texts}", separator: "---"}
    - {_target_: athanor.corpus.sources.JsonLines, name: first, files: "${inputs.first}", max_bytes: 900}
  steps:
    - _target_: athanor.corpus.normalize.Normalize
    - _target_: athanor.corpus.language.DetectLanguage
      keep: [en, zh]
    - _target_: athanor.corpus.filters.Length
      minimum: 20
    - _target_: athanor.corpus.augment.RandomDeletion
      seed: 1
      only: [texts]
    - _target_: athanor.corpus.deduplicate.ExactDuplicates
    - _target_: athanor.corpus.labels.LabelSources
      labels: {lines: a}
"""
SMALL = "executor.part_bytes=1"  # every file is a part


@pytest.fixture
def corpus(project):
    for number in range(6):
        texts = (
            [f"{ENGLISH} {number % 4} {n}" for n in range(4)] + [f"{CHINESE}{n}号。" for n in range(3)] + ["short", ""]
        )
        lines = [json.dumps({"text": text}) for text in texts]
        if number == 3:
            lines.insert(2, "{broken")
        project.write(f"data/lines{number}.jsonl", "\n".join(lines) + "\n")
        project.write(
            f"data/text{number}.txt", f"{ENGLISH} t{number}\n---\nДругой язык, и довольно длинный текст на нём."
        )
    project.write("data/first.jsonl", "".join(json.dumps({"text": f"{ENGLISH} f{n}"}) + "\n" for n in range(9)))
    project.experiment("documents/parts", EXPERIMENT)
    return project


def outcome(*overrides):
    run = execute(config.load("documents/parts", [*overrides]), force=True)
    return {name: (run.directory / name).read_bytes() for name in ("documents.jsonl.zst", "cleaning.json")}


def folder():
    experiment = config.load("documents/parts")
    return experiment.directory.parents[2] / executors.FOLDER / experiment.fingerprint


def test_in_parts_or_whole(corpus):
    whole = outcome()
    account = json.loads(whole["cleaning.json"])
    assert account["sources"]["lines"]["skipped"] == {"line that is no record": 1}
    assert "lines3.jsonl" in account["sources"]["lines"]["faults"]["line that is no record"]
    assert [step["name"] for step in account["steps"] if step["dropped"]] == [
        "normalize", "language", "exact duplicates",
    ]  # fmt: skip
    assert account["sources"]["first"]["documents"] < 9, "max_bytes counts over all of a source"
    assert outcome(SMALL, "executor.workers=2") == whole
    assert outcome("executor=slurm", "executor.part_bytes=1500") == whole, "and by what comes after the array"
    assert not folder().exists(), "parts go when they are put together"


COMPARING = """
    - _target_: athanor.corpus.deduplicate.SimilarDuplicates
      distance: 2
      only: [texts, first]
    - _target_: athanor.corpus.deduplicate.NearDuplicates
      threshold: 0.6
      keep: longest
    - _target_: athanor.corpus.deduplicate.ExactDuplicates
"""


def test_signatures_are_made_with_the_parts(corpus, monkeypatch):
    """And of what came from one none is computed again, but behind the step that let documents wait on disk."""
    head, tail = EXPERIMENT.split("    - _target_: athanor.corpus.deduplicate.ExactDuplicates\n")
    corpus.experiment(
        "documents/parts", f"{head}    - _target_: athanor.corpus.deduplicate.ExactDuplicates{COMPARING}{tail}"
    )
    whole = outcome()
    account = json.loads(whole["cleaning.json"])["steps"]
    dropping = [step["name"] for step in account if step["dropped"]]
    assert dropping[-3:] == ["exact duplicates", "similar documents", "near duplicates"]
    assert outcome(SMALL, "executor.workers=2") == whole
    executors.make_some(config.load("documents/parts", [SMALL]), 0, 1, lambda done, total: None)
    asked = []
    for kind in (ExactDuplicates, NearDuplicates, SimilarDuplicates):
        real = kind.known_by
        monkeypatch.setattr(kind, "known_by", lambda self, d, real=real: (asked.append(type(self)), real(self, d))[1])
    assert outcome(SMALL, "executor.workers=1") == whole
    assert set(asked) == {ExactDuplicates}
    assert len(asked) == account[-2]["in"]


def test_one_part_made_anywhere_is_taken_and_only_what_is_missing_is_made(corpus, monkeypatch, capsys):
    whole = outcome()
    made = []
    real = parts.make
    monkeypatch.setattr(parts, "make", lambda job, part, *rest: (made.append(part.number), real(job, part, *rest)))
    corpus_run = config.load("documents/parts").directory
    (corpus_run / "manifest.json").unlink()
    for element in ("3", "1"):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", element)
        assert cli.main(["prepare", "experiment=documents/parts", SMALL, "--parts", "/4"]) == 0
    assert made == [2, 6, 10, 0, 4, 8, 12]
    assert cli.main(["prepare", "experiment=documents/parts", SMALL, "--parts", "1/4"]) == 0
    (folder() / "00006.json").unlink()
    made.clear()
    assert outcome(SMALL, "executor.workers=1") == whole
    assert made == [1, 3, 5, 6, 7, 9, 11]
    for wrong in ("0/4", "5/4", "x", "1"):
        assert cli.main(["prepare", "experiment=documents/parts", "--parts", wrong]) == 2
    capsys.readouterr()


def test_a_part_of_other_files_or_other_code_is_made_again(corpus, monkeypatch):
    experiment = config.load("documents/parts", [SMALL])
    job = config.build(experiment.config["job"])
    work = executors.work_of(experiment, job, executors.executor_of(experiment))
    part = work.parts[0]
    work.make(part)
    assert part not in work.missing()
    other = part._replace(files=[*part.files, "data/more.jsonl"])
    assert not parts.is_made(work.folder, other, work.key(other))
    monkeypatch.setattr(parts, "code", lambda: "other")
    assert part in work.missing()
    monkeypatch.undo()
    assert part not in work.missing()
    (work.folder / "00000.jsonl.zst").unlink()
    assert part in work.missing()


def test_what_a_process_cannot_read_is_said_here(corpus, capsys):
    corpus.write("data/lines9.jsonl", json.dumps({"body": "x"}) + "\n")
    words = ["prepare", "experiment=documents/parts", SMALL, "executor.workers=2", "job.sources.0.broken=stop"]
    assert cli.main(words) == 2
    assert "mend or remove the line" in capsys.readouterr().err


KILLED = """
import os, signal, sys
from athanor import cli
from athanor.corpus import parts
count, real = int(sys.argv[1]), parts.write_documents
def write(path, documents):
    def some():
        for number, document in enumerate(documents):
            if "0000%d" % count in str(path) and number == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            yield document
    return real(path, some())
parts.write_documents = write
cli.main(["prepare", "experiment=documents/parts", "executor.part_bytes=1", "executor.workers=1"])
"""


def test_killed_in_the_middle_of_a_part(corpus, tmp_path):
    """SIGKILL while part 4 is written: parts 0 to 3 are there, it left nothing to be taken for a part, and it is made
    again, alone; what comes out is what an undisturbed run gives.
    """
    whole = outcome()
    (config.load("documents/parts").directory / "manifest.json").unlink()
    experiment = config.load("documents/parts", [SMALL])
    job = config.build(experiment.config["job"])
    work = executors.work_of(experiment, job, executors.executor_of(experiment))
    executors.make_some(experiment, 12, 13, lambda done, total: None)  # so that one process works in parts
    killed = subprocess.run([sys.executable, "-c", KILLED, "4"], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [part.number for part in work.missing()] == [*range(4, 12)]
    before = {path.name: path.stat().st_mtime_ns for path in work.folder.glob("0000[0-3]*")}
    for part in work.missing():
        work.make(part)
    assert {path.name: path.stat().st_mtime_ns for path in work.folder.glob("0000[0-3]*")} == before
    assert outcome(SMALL, "executor.workers=1") == whole


def test_steps_that_compare_documents_are_not_done_in_parts():
    """Whoever adds such a step must say so: it would find only what is alike in one part."""
    comparing = {ExactDuplicates, NearDuplicates, SimilarDuplicates, RepeatedPassages, RepeatedSpans, Balance}

    def below(kind):
        return {kind, *(other for sub in kind.__subclasses__() for other in below(sub))}

    assert comparing <= {kind for kind in below(steps.Step) if not kind.alone}


@pytest.mark.slow  # Ray takes 20 seconds to start and end
def test_ray_makes_the_same(corpus):
    pytest.importorskip("ray", reason="needs ray: pip install 'athanor[ray]'")
    whole = outcome()
    assert outcome("executor=ray", SMALL) == whole


def test_what_is_sent_to_slurm(corpus, capsys, monkeypatch):
    monkeypatch.setattr("athanor.cluster.jobs.live", lambda root: [])  # whether or not there is a queue here
    words = ["submit", "prepare", "experiment=documents/parts", "cluster=local-slurm", SMALL, "--print"]
    assert cli.main([*words, "executor=slurm", "executor.elements=5", "executor.at_once=2"]) == 0
    array, last = capsys.readouterr().out.splitlines()
    assert "--array=1-5%2" in array
    assert array.endswith("--parts /5")
    assert "--gpus" not in array
    assert "--dependency=afterok:<parts>" in last
    assert "--parts" not in last
    assert cli.main(words) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1, "one job where the executor is not SLURM's"
    experiment = config.load("documents/parts", [SMALL])
    executors.make_some(experiment, 0, 1, lambda done, total: None)
    assert cli.main([*words, "executor=slurm"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1, "nothing is left for an array"
