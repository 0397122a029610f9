"""Who holds what: advisory locks on files, and the kernel's own list of them.

`flock` is ours (a lock belongs to an open file and dies with its process); the locks DuckDB takes
on its files are POSIX record locks, which belong to a process and are lost when that process
closes any handle of the file. Both kinds show in /proc/locks on Linux; elsewhere nobody is listed.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROC_LOCKS = Path("/proc/locks")
PAUSE_S = 0.02


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock: `kind` is FLOCK or POSIX."""

    pid: int
    kind: str
    exclusive: bool


class Held(Exception):
    """Somebody else holds the lock."""


def holders(path: Path) -> list[Holder]:
    """Who holds locks on the file at `path`, by the kernel's list; none where it has no list."""
    try:
        seen = path.stat()
        lines = PROC_LOCKS.read_text().splitlines()
    except OSError:
        return []
    return [found for line in lines if (found := _holder(line.split(), seen))]


def _holder(fields: list[str], file: os.stat_result) -> Holder | None:
    # "12: POSIX ADVISORY READ 5193 fe:00:2385667 0 EOF"; a waiting one has "->" in second place.
    if len(fields) < 6 or fields[1] == "->" or not _is_of(fields[5], file):
        return None
    return Holder(int(fields[4]), fields[1], fields[3] == "WRITE")


def _is_of(place: str, file: os.stat_result) -> bool:
    major, minor, inode = place.split(":")
    device = os.major(file.st_dev), os.minor(file.st_dev)
    found = int(major, 16), int(minor, 16)
    # Devices of no disk have major number 0, and btrfs tells `stat` another minor number than the
    # one in the list. Then the inode decides: better a holder too many than one too few.
    return int(inode) == file.st_ino and (found == device or found[0] == device[0] == 0)


@contextmanager
def flocked(path: Path, *, shared: bool = False, patience_s: float = 0) -> Iterator[None]:
    """Hold a lock on the file at `path` (made if absent), waiting for it at most `patience_s`.

    Errors: `Held`, when it was somebody else's to the end.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _take(fd, shared, patience_s)
        yield
    finally:
        os.close(fd)


def _take(fd: int, shared: bool, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise Held from None
            time.sleep(PAUSE_S)


def try_flock(fd: int, *, shared: bool) -> bool:
    """Take the lock on an open file if nobody else stands in the way."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def names(found: list[Holder]) -> str:
    """The processes, for a sentence."""
    pids = sorted({holder.pid for holder in found})
    if not pids:
        return "a process that the system does not name"
    return ", ".join(f"PID {pid}{' (this process)' if pid == os.getpid() else ''}" for pid in pids)
