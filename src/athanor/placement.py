"""Where the processes of a training are, and how they find each other: as torchrun or SLURM started them, else as
Lightning does.

Lightning's own SLURMEnvironment goes by the job's name and by settings of sbatch that a step need not follow; this one
goes by the step itself, and refuses a layout that the experiment does not have.
"""

import os
from typing import Any

from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    TorchElasticEnvironment,
)

from athanor import slurm


def placement(cluster: dict[str, Any]) -> tuple[Any, int, list[ClusterEnvironment]]:
    """The `devices`, `num_nodes` and `plugins` of Lightning's Trainer. What torchrun has started counts, and may be
    other processes after each of its restarts.

    Raises:
        UserError: SLURM started other processes than the experiment's cluster names.
    """
    devices, nodes = cluster["devices"], cluster["nodes"]
    if TorchElasticEnvironment.detect():
        own, all_of_them = (int(os.environ[name]) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
        return own, all_of_them // own, [TorchElasticEnvironment()]
    if slurm.job_id() is None:
        return devices, nodes, []
    here = slurm.task()
    if devices in ("auto", -1, "-1"):
        devices = here.per_node if here else devices
    else:
        slurm.check_tasks(cluster["nodes"], len(devices) if isinstance(devices, list) else int(devices))
    return devices, nodes, [SlurmTasks(here) if here else LightningEnvironment()]


class SlurmTasks(ClusterEnvironment):
    """The processes of a job step, one a device."""

    def __init__(self, task: slurm.Task):
        super().__init__()
        self.task = task
        os.environ["MASTER_ADDR"] = task.root  # torch's and DeepSpeed's own rendezvous read them
        os.environ.setdefault("MASTER_PORT", str(slurm.port()))

    @staticmethod
    def detect() -> bool:
        return "SLURM_STEP_ID" in os.environ

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return os.environ["MASTER_ADDR"]

    @property
    def main_port(self) -> int:
        return int(os.environ["MASTER_PORT"])

    def world_size(self) -> int:
        return self.task.tasks

    def global_rank(self) -> int:
        return self.task.rank

    def local_rank(self) -> int:
        return self.task.local_rank

    def node_rank(self) -> int:
        return self.task.node

    def set_world_size(self, size: int) -> None:
        assert size == self.task.tasks

    def set_global_rank(self, rank: int) -> None:
        assert rank == self.task.rank
