"""What `athanor jobs` says of jobs that have left the queue, from the files of the runs alone."""

from athanor.cluster import jobs
from athanor.runs.run import Run
from fabricated import Builder


def test_each_job_of_a_run_has_the_end_of_its_own_attempts(tmp_path, monkeypatch):
    """The first ended before the second took the run up, of which another attempt follows."""
    monkeypatch.setattr(jobs.shutil, "which", lambda name: None)  # whether or not there is a SLURM here
    attempts = [
        {"status": status, "started": 1.0 + number, "slurm": {"job": job, "restarts": restarts}}
        for number, (status, job, restarts) in enumerate(
            [("failed", "7", 0), ("interrupted", "8", 0), ("interrupted", "8", 1), ("finished", "9", 0)]
        )
    ]
    folder = Builder(tmp_path).run("pretrain/demo", "train", {"seed": 1}, {}, 9.0, attempts=attempts)
    found = jobs.listed(tmp_path, [Run(folder)])
    assert [(job.id, job.state, job.restarts) for job in found] == [
        ("7", "FAILED", 0), ("8", "INTERRUPTED", 1), ("9", "FINISHED", 0),
    ]  # fmt: skip
