"""Advisory locks on files, and the kernel's list of the processes that hold them.

The engines use `flock`: such a lock belongs to an open file and ends with its process. DuckDB and
SQLite use POSIX record locks, which belong to a process and are lost when that process closes any
handle of the file. Linux lists both kinds in /proc/locks; on other systems the list is empty.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

PROC_LOCKS = Path("/proc/locks")
POLL_S = 0.02


class LockHolder(NamedTuple):
    """A process that holds a lock on a file.

    Attributes:
        pid: The process.
        kind: FLOCK or POSIX.
        exclusive: Whether it excludes readers too.
    """

    pid: int
    kind: str
    exclusive: bool


class LockHeld(Exception):
    """Another process, or another open file of this one, holds the lock."""


@contextmanager
def file_lock(path: Path, *, shared: bool = False, wait_s: float = 0) -> Iterator[int]:
    """Hold a lock on the file at `path`, created if absent; yield its descriptor.

    Args:
        path: The file to lock; never a live DuckDB or SQLite file.
        shared: Whether other processes may hold a shared lock at the same time.
        wait_s: How long to wait for another holder, in seconds; `math.inf` for no limit.

    Raises:
        LockHeld: Another process, or another open file of this one, held it longer than
            `wait_s`.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + wait_s
        while not try_lock(fd, shared=shared):
            if time.monotonic() >= deadline:
                raise LockHeld
            time.sleep(POLL_S)
        yield fd
    finally:
        os.close(fd)


def try_lock(fd: int, *, shared: bool = False) -> bool:
    """Lock an open file without waiting; return whether it is locked."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def holders(path: Path) -> list[LockHolder]:
    """Return the processes that hold locks on the file at `path`, from the kernel's list."""
    try:
        file = path.stat()
        lines = PROC_LOCKS.read_text().splitlines()
    except OSError:
        return []
    return [found for line in lines if (found := _holder(line.split(), file))]


def describe(found: list[LockHolder]) -> str:
    """Return the processes as text for a sentence: `PID 12, PID 40 (this process)`."""
    pids = sorted({holder.pid for holder in found})
    if not pids:
        return "a process that the system does not list"
    return ", ".join(f"PID {pid}{' (this process)' if pid == os.getpid() else ''}" for pid in pids)


def _holder(fields: list[str], file: os.stat_result) -> LockHolder | None:
    # "12: POSIX ADVISORY READ 5193 fe:00:2385667 0 EOF"; a waiting one has "->" in second place.
    if len(fields) < 6 or fields[1] == "->" or not _is_lock_on(fields[5], file):
        return None
    return LockHolder(int(fields[4]), fields[1], fields[3] == "WRITE")


def _is_lock_on(device_and_inode: str, file: os.stat_result) -> bool:
    major, minor, inode = device_and_inode.split(":")
    device = os.major(file.st_dev), os.minor(file.st_dev)
    listed = int(major, 16), int(minor, 16)
    # Devices without a disk have major number 0, and btrfs gives `stat` another minor number than
    # the list. There the inode alone decides: one holder too many is better than one too few.
    return int(inode) == file.st_ino and (listed == device or listed[0] == device[0] == 0)
