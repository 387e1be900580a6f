"""What a training dies of, as a user reads it."""

import multiprocessing
import multiprocessing.reduction
import os
import signal
import threading
from multiprocessing.connection import Connection
from types import SimpleNamespace

import pytest
import torch

from athanor import strategies
from athanor.data.plan import BatchPlan
from athanor.errors import UserError
from athanor.troubles import LostError, explained


def trainer(strategy: object = None, micro: int = 8, world: int = 2) -> SimpleNamespace:
    plan = BatchPlan(1, 10, 48, world, 0, micro)
    return SimpleNamespace(
        global_step=11, global_rank=1, world_size=world, strategy=strategy, datamodule=SimpleNamespace(plan=plan)
    )


def error_of(size: int) -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(size, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize("kind", ["torch on a CPU", "torch on a GPU", "Python"])
def test_out_of_memory_names_the_rank_and_the_knobs(kind):
    error = {
        "torch on a CPU": error_of(1 << 46),
        "torch on a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total"),
        "Python": MemoryError(),
    }[kind]
    found = explained(error, trainer(), {"cluster": {"recompute": "none"}})
    assert isinstance(found, UserError)
    assert str(found).startswith("rank 1 ran out of memory at step 12")
    assert ("2.00 GiB" in str(found)) == (kind == "torch on a GPU")
    for knob in ("cluster.micro_batch_size=4 (now 8)", "cluster.recompute=full", "strategy=fsdp2"):
        assert knob in str(found)


def test_knobs_that_are_turned_already_are_not_named():
    found = str(explained(MemoryError(), trainer(strategies.FSDP2(), micro=1), {"cluster": {"recompute": "full"}}))
    assert "micro_batch_size" not in found
    assert "recompute" not in found
    assert "strategy=fsdp2" not in found
    assert "more devices" in found


def test_the_micro_batch_proposed_divides():
    assert "micro_batch_size=3 (now 6)" in str(explained(MemoryError(), trainer(micro=6), {"cluster": {}}))
    assert "micro_batch_size=1 (now 3)" in str(explained(MemoryError(), trainer(micro=3), {"cluster": {}}))


def disturbed() -> None:
    """torch's handler of SIGCHLD raises again while the first error is dealt with: here, from within a lock."""
    try:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    except RuntimeError:
        threading.Lock().release()


def test_a_lost_loading_process_is_told_of_whatever_it_disturbed():
    with pytest.raises(RuntimeError, match="unlocked") as caught:
        disturbed()
    found = explained(caught.value, trainer(), {"cluster": {}})
    assert isinstance(found, LostError)
    assert "a data-loading process of rank 1 was killed at step 12" in str(found)
    assert explained(RuntimeError("release unlocked lock"), trainer(), {}).args == ("release unlocked lock",)


def hand_over(there: Connection) -> None:
    """What a data-loading process does with a tensor, which waits here until it is fetched."""
    there.send(multiprocessing.reduction.DupFd(os.open(os.devnull, os.O_RDONLY)))
    signal.pause()


def test_a_tensor_that_died_with_its_process_is_told_from_other_connections():
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    worker = context.Process(target=hand_over, args=(there,))
    worker.start()
    handle = here.recv()
    worker.kill()
    worker.join()
    with pytest.raises(OSError) as caught:  # noqa: PT011
        handle.detach()
    found = explained(caught.value, trainer(), {})
    assert isinstance(found, LostError)
    assert "a data-loading process of rank 1 was killed at step 12" in str(found)
    other = ConnectionResetError(104, "Connection reset by peer")  # of a logger's server, say
    assert explained(other, trainer(), {}) is other


def test_a_lost_rank_and_a_lost_worker_are_told_from_a_mistake():
    gloo = RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:22482")
    found = explained(gloo, trainer(), {})
    assert isinstance(found, LostError)
    assert "another rank is gone, as rank 1 noticed at step 12" in str(found)
    assert explained(gloo, trainer(world=1), {}) is gloo
    worker = RuntimeError("DataLoader worker (pid 77) is killed by signal: Killed. ")
    assert "a data-loading process of rank 1 was killed at step 12" in str(explained(worker, trainer(), {}))
    mistake = RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)")
    assert explained(mistake, trainer(), {}) is mistake
