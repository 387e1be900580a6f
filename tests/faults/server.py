"""Imports all that a training needs, once, and forks the ranks of one after the other.

A line on stdin: {"words", "world", "fault", "folder", "seconds"}; the ranks are `athanor WORDS`, as torchrun would have
started them. A line on stdout when all have ended: {"codes", "forced"}: their exit codes, negative for signals, and
which of them were killed, because others had ended long before, or `seconds` were over.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed  # noqa: F401
import lightning.pytorch.loggers  # noqa: F401
import torch.distributed.fsdp
import torch.distributed.tensor.parallel  # noqa: F401
from injection import prepare

from athanor import cli

PATIENCE = 60.0  # seconds for the others once a rank has died: SLURM and Lightning leave them some time too


def rank_process(task: dict[str, Any], rank: int, environment: dict[str, str]) -> None:
    folder = Path(task["folder"])
    said = os.open(folder / f"said-{rank}.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.environ.update(environment)
    prepare(task["fault"], rank, folder)
    code = cli.main(task["words"])
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def launch(task: dict[str, Any]) -> dict[str, Any]:
    world = task["world"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    context = multiprocessing.get_context("fork")
    ranks = []
    for rank in range(world):
        own = {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(world)}
        own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks.append(context.Process(target=rank_process, args=(task, rank, own if world > 1 else {})))
        ranks[-1].start()
        os.setpgid(ranks[-1].pid or 0, ranks[0].pid or 0)
    group, began, first_end = ranks[0].pid or 0, time.monotonic(), None
    (Path(task["folder"]) / "group").write_text(str(group))
    forced: list[int] = []
    patience = task.get("patience", PATIENCE)
    while any(process.is_alive() for process in ranks):
        now = time.monotonic()
        if first_end is None and any(process.exitcode for process in ranks):
            first_end = now
        if now - began > task["seconds"] or (first_end is not None and now - first_end > patience):
            forced = [rank for rank, process in enumerate(ranks) if process.is_alive()]
            break
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)  # data-loading workers whose rank is gone
    for process in ranks:
        process.join()
    return {"codes": [process.exitcode for process in ranks], "forced": forced}


if __name__ == "__main__":
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(launch(json.loads(line))), flush=True)
