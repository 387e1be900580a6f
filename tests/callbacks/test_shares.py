"""Checkpoints into which several processes write their shares: who reads what, and what survives what."""

import errno
import json
import logging
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from test_checkpoints import Trained

from athanor import shares
from athanor.callbacks import checkpoints
from athanor.callbacks.checkpoints import Checkpoints, newest
from athanor.errors import UserError
from athanor.runs.files import remove
from athanor.shares import DamagedError, Share

ROWS, COLUMNS = 12, 6
ORDER = torch.tensor([0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11])  # as the rows of joined matrices are split


def whole(step: int) -> torch.Tensor:
    return step + torch.arange(ROWS * COLUMNS, dtype=torch.float32).view(ROWS, COLUMNS) / 1000


def share(step: int, rank: int, world: int) -> Share:
    """Some rows of the tensor, out of order, and of the columns all but the last."""
    rows = ORDER.chunk(world)[rank]
    return Share(whole(step)[rows], torch.Size([ROWS, COLUMNS]), [rows, torch.arange(COLUMNS)])


class Sharing(Trained):
    """Two processes, each with half of a matrix, the whole of a vector, and some numbers."""

    def __init__(self, rank: int, world: int):
        super().__init__(10)
        self.is_global_zero, self.world_size, self.rank = rank == 0, world, rank
        self.strategy = SimpleNamespace(
            in_shares=lambda wanted: nullcontext(), broadcast=lambda value: value, barrier=lambda: None
        )

    def state(self, weights_only: bool) -> dict[str, Any]:
        vector = Share(self.weights, self.weights.shape, [torch.arange(10)])  # the same on both
        matrix = share(self.global_step, self.rank, self.world_size)
        optimizers = [{"state": {3: {"step": torch.tensor(float(self.global_step)), "average": vector}}}]
        return {"global_step": self.global_step, "state_dict": {"a.matrix": matrix}, "optimizer_states": optimizers}


def saved(path: Path | None) -> int:
    """The step of a checkpoint, all of which must be of that step."""
    assert path is not None
    state = checkpoints.load(path)
    step = state["global_step"]
    assert torch.equal(state["state_dict"]["a.matrix"], whole(step))
    entries = state["optimizer_states"][0]["state"][3]
    assert entries["average"].unique().tolist() == [step]
    assert entries["step"] == step
    assert path.name == f"step-{step:08d}.ckpt"
    return step


def joined(rank: int, world: int, meeting: Path) -> None:
    logging.disable()
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)


def callback_of(folder: Path, keep: int = 2) -> Checkpoints:
    callback = Checkpoints(folder, 1, keep=keep, sharded=True)
    callback.sharing, callback.group = True, dist.group.WORLD
    return callback


def fork(target: Callable[..., None], world: int, folder: Path, *arguments: Any) -> list[Any]:
    """Ranks of a group, as processes of `target(rank, world, *arguments)`."""
    meeting = folder / f"meeting-{time.monotonic_ns()}"

    def run(rank: int) -> None:
        joined(rank, world, meeting)
        target(rank, world, *arguments)

    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=run, args=(rank,)) for rank in range(world)]
    for process in ranks:
        process.start()
    return ranks


def train_steps(rank: int, world: int, folder: Path, steps: int) -> None:
    callback, trained = callback_of(folder, keep=steps), Sharing(rank, world)
    for _ in range(steps):
        callback.save(trained.step())
    callback.wait()


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """The folder of three checkpoints of two processes."""
    for process in fork(train_steps, 2, tmp_path, tmp_path / "checkpoints", 3):
        process.join()
        assert process.exitcode == 0
    return tmp_path / "checkpoints"


def test_indices_that_follow_one_another_are_runs():
    assert shares.runs(torch.tensor([4, 5, 6, 0, 1, 9])) == [(4, 0, 3), (0, 3, 2), (9, 5, 1)]
    assert shares.runs(torch.tensor([], dtype=torch.int64)) == []


def test_pieces_are_rectangles_of_the_whole():
    rows, columns = torch.tensor([2, 3, 0]), torch.tensor([1, 3])
    own = whole(0)[rows][:, columns]
    found = {}
    for chunk, view in Share(own, torch.Size([ROWS, COLUMNS]), [rows, columns]).pieces():
        (row, column), (height, width) = chunk.offsets, chunk.sizes
        assert torch.equal(view, whole(0)[row : row + height, column : column + width])
        found[tuple(chunk.offsets)] = view.numel()
    assert found == {(2, 1): 2, (2, 3): 2, (0, 1): 1, (0, 3): 1}
    assert list(Share(own[:0], torch.Size([ROWS, COLUMNS]), [rows[:0], columns]).pieces()) == []


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4), (1, 6), (5, 1, 2)])
def test_any_stretch_of_a_flattened_tensor_is_rectangles_in_its_order(shape: tuple[int, ...]):
    whole = torch.arange(float(torch.tensor(shape).prod())).view(shape)
    flat = whole.flatten()
    for start in range(len(flat) + 1):
        for end in range(start, len(flat) + 1):
            found, taken = torch.full(shape, -1.0), 0
            for chunk, view in shares.Flat(flat[start:end], whole.shape, start).pieces():
                place = tuple(slice(o, o + n) for o, n in zip(chunk.offsets, chunk.sizes))
                assert torch.equal(view, whole[place])
                found[place] = view
                taken += view.numel()
            assert taken == end - start, "each once"
            assert torch.equal(found.flatten()[start:end], flat[start:end])


def test_any_reader_takes_what_it_needs(three: Path):
    assert [saved(path) for path in sorted(three.glob("*.ckpt"))] == [1, 2, 3]
    path = three / "step-00000003.ckpt"
    assert sorted(found.name for found in path.iterdir()) == [
        ".metadata", "__0_0.distcp", "__1_0.distcp", "rest.pt", "sums.json",
    ]  # fmt: skip
    lazy = checkpoints.load(path, lazily=True)
    stored = lazy["state_dict"]["a.matrix"]
    assert (stored.shape, stored.dtype) == (torch.Size([ROWS, COLUMNS]), torch.float32)
    for rank in range(3):  # where two have written
        own = share(0, rank, 3)
        shares.read(path, {stored.name: own})
        assert torch.equal(own.own, whole(3)[ORDER.chunk(3)[rank]])
    with pytest.raises(RuntimeError, match="Size mismatch"):
        shares.read(path, {stored.name: torch.empty(ROWS, COLUMNS + 1)})


def train_others(rank: int, world: int, folder: Path) -> None:
    """Three trainings in turn, of which the second has other tensors."""
    train_steps(rank, world, folder / "a", 2)
    columns = [torch.arange(5), torch.arange(3)[rank::world]]
    other = Share(torch.full((5, len(columns[1])), 7.0), torch.Size([5, 3]), columns)
    shares.write({"b": [other], "c": rank}, folder / "b", dist.group.WORLD)
    train_steps(rank, world, folder / "c", 2)


def test_who_writes_what_is_planned_anew_where_it_has_changed(tmp_path: Path):
    for process in fork(train_others, 2, tmp_path, tmp_path):
        process.join()
        assert process.exitcode == 0
    assert [saved(path) for name in "ac" for path in sorted((tmp_path / name).glob("*.ckpt"))] == [1, 2, 1, 2]
    found = shares.load(tmp_path / "b")
    assert torch.equal(found["b"][0], torch.full((5, 3), 7.0))
    assert found["c"] == 0


def test_damage_anywhere_is_seen_and_the_one_before_is_taken(three: Path, caplog: pytest.LogCaptureFixture):
    path, chance = three / "step-00000003.ckpt", random.Random(2)
    targets = [*path.iterdir(), path.with_suffix(".sha256")]
    assert len(targets) == 6
    for target in targets:
        content = target.read_bytes()
        for place in chance.sample(range(len(content)), 5):
            target.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
            assert saved(newest(three)) == 2, (target.name, place)
        target.write_bytes(content[:-1])
        assert saved(newest(three, contents=False)) == 2, f"{target.name} is cut off, which its size says"
        target.unlink()
        assert saved(newest(three, contents=False)) == 2, f"{target.name} is gone"
        target.write_bytes(content)
    assert "step-00000003.ckpt is damaged; resuming from step-00000002.ckpt instead" in caplog.text
    assert saved(newest(three)) == 3
    for damaged in three.glob("*.ckpt"):
        (damaged / "rest.pt").write_bytes(b"")
    with pytest.raises(UserError, match="no older checkpoint to fall back on"):
        newest(three)


def read_together(rank: int, world: int, folder: Path) -> None:
    path = newest(folder, contents=False)
    assert path is not None
    assert path.name == "step-00000003.ckpt"
    with pytest.raises(DamagedError, match=r"__1_0\.distcp"):
        checkpoints.load(path)
    assert saved(newest(folder, contents=False)) == 2


def test_where_processes_share_the_reading_all_of_them_fall_back(three: Path, tmp_path: Path):
    """One of three reads the part that is damaged."""
    target = three / "step-00000003.ckpt" / "__1_0.distcp"
    content = bytearray(target.read_bytes())
    content[len(content) // 2] ^= 4
    target.write_bytes(content)
    for process in fork(read_together, 3, tmp_path, three):
        process.join()
        assert process.exitcode == 0


def fill_the_disk(rank: int, world: int, folder: Path) -> None:
    callback, trained = callback_of(folder), Sharing(rank, world)
    callback.save(trained.step())
    callback.wait()
    if rank == 1:

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        dcp.FileSystemWriter.write_data = full  # type: ignore[assignment]
    callback.save(trained.step())
    while not callback.failed():
        time.sleep(0.01)
    assert f"step 2 cannot be written to {folder}: No space left on device, says rank 1. Mend" in str(callback.failure)
    assert str(callback.failure).endswith("goes on from step 1.")


def test_a_full_disk_of_one_process_is_told_of_by_all(tmp_path: Path):
    for process in fork(fill_the_disk, 2, tmp_path, tmp_path / "checkpoints"):
        process.join()
        assert process.exitcode == 0
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000001.ckpt", "step-00000001.sha256",
    ]  # fmt: skip


def train_until_killed(rank: int, world: int, folder: Path) -> None:
    callback, trained = callback_of(folder), Sharing(rank, world)
    found = newest(folder)
    trained.step(saved(found) if found else 0)
    dist.barrier()
    while True:
        callback.save(trained.step())


@pytest.mark.parametrize("kills", [12, pytest.param(100, marks=[pytest.mark.strategies, pytest.mark.slow])])
def test_killed_while_saving_it_can_always_go_on(tmp_path: Path, kills: int):
    """One process or both by SIGKILL, at random moments of a training that does nothing but save."""
    chance, halves, before, folder = random.Random(5), 0, 0, tmp_path / "checkpoints"
    for _ in range(kills):
        for half in folder.glob("*.partial"):
            remove(half)
        ranks = fork(train_until_killed, 2, tmp_path, folder)
        until = time.monotonic() + 20
        while not list(folder.glob("*.partial")) and time.monotonic() < until:
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, 0.2))
        known = max(map(checkpoints.step_of, folder.glob("step-*.ckpt")), default=0)
        for process in chance.choice([ranks, ranks[:1], ranks[1:]]):
            os.kill(process.pid, signal.SIGKILL)
        for process in ranks:
            process.join(20)
            assert process.exitcode not in (None, 0), "the other does not end"
        halves += bool(list(folder.glob("*.partial")))
        found = newest(folder)
        step = saved(found) if found else 0
        assert step >= known >= before, "what had been saved is lost"
        before = step
    assert halves > kills / 6, "it was hardly ever killed in the middle of a folder"
    assert before > 5, "it has hardly ever saved one"


def test_a_folder_takes_the_place_of_a_damaged_file_and_a_file_that_of_a_folder(tmp_path: Path):
    """Whoever wrote the one that was passed over."""
    alone = Checkpoints(tmp_path, 1)
    for sharing in (False, True, False):
        alone.sharing = sharing
        trained = Sharing(0, 1) if sharing else Trained()
        alone.save(trained.step(8))
        alone.wait()
        path = newest(tmp_path)
        assert path is not None
        assert path.is_dir() == sharing
        broken = path / "rest.pt" if sharing else path
        os.truncate(broken, 20)
        with pytest.raises(UserError, match="damaged"):
            newest(tmp_path)
    assert not list(tmp_path.glob("*.partial"))
    assert json.loads(json.dumps(alone.best_steps())) == []
