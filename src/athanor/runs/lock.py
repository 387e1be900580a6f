"""One process at a time in a run's directory.

A POSIX record lock (fcntl.lockf) ends with the process that holds it, however it ends, and is not inherited by forked
data-loading workers that may outlive it. It holds on shared file systems too.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from athanor.errors import UserError

NAME = ".lock"
FLOCK = "hhqqi"  # struct flock of Linux: type, whence, start, length, pid
_held: set[Path] = (
    set()
)  # by this process, to which its own locks are no obstacle and which loses one by closing any copy


class LockedError(UserError):
    """Another process holds the lock."""


@contextmanager
def locked(directory: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock of a directory, which is made if need be; wait for it up to `patience` seconds.

    Raises:
        LockedError: a process holds it already.
    """
    path = directory.resolve() / NAME
    if path in _held:
        raise UserError(f"{directory} is being written by this very process")
    until = time.monotonic() + patience
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(descriptor, 32).decode() or "?"
            os.close(descriptor)
            if time.monotonic() < until:
                time.sleep(0.5)
                continue
            raise LockedError(f"process {holder} is working on {directory}; wait for it, or end it first") from None
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            break
        os.close(descriptor)  # its holder removed it between our open and our lock
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)
        os.close(descriptor)


def is_locked(directory: Path) -> bool:
    """Whether a living process holds the lock."""
    path = directory.resolve() / NAME
    if path in _held:
        return True
    try:
        descriptor = os.open(path, os.O_RDONLY if sys.platform == "linux" else os.O_RDWR)  # it may be another user's
    except OSError:
        return False
    try:
        if sys.platform == "linux":  # asked without taking it, which could be in the way of one who wants it just then
            asked = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            return struct.unpack(FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))[0] != fcntl.F_UNLCK
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(descriptor)
