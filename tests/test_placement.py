"""Who says how many processes there are."""

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment

from athanor.placement import placement

CLUSTER = {"devices": 2, "nodes": 1}


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)


def test_by_itself_it_is_the_experiment():
    assert placement(CLUSTER) == (2, 1, [])


@pytest.mark.parametrize(("here", "everywhere", "nodes"), [(4, 12, 3), (4, 4, 1), (1, 2, 2)])
def test_under_torchrun_it_is_what_that_has_started(monkeypatch, here, everywhere, nodes):
    """Which may be less after a restart; within a SLURM job too, whose one task a node is torchrun."""
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("LOCAL_WORLD_SIZE", here), ("WORLD_SIZE", everywhere)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    devices, count, (environment,) = placement(CLUSTER)
    assert (devices, count) == (here, nodes)
    assert isinstance(environment, TorchElasticEnvironment)
    environment.validate_settings(devices, count)


def test_in_a_slurm_job_without_its_tasks_lightning_starts_them(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    devices, count, (environment,) = placement(CLUSTER)
    assert (devices, count) == (2, 1)
    assert isinstance(environment, LightningEnvironment)
