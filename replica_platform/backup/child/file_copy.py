"""Copy the bytes of a live database file while SQLite's locks keep them one committed state.

As fast as `cp`; SQLite's backup API takes twice that. Two cases allow it:

- In WAL mode, with an empty WAL: a read transaction that begins then keeps every checkpoint from
  writing to the file. Commits go to the WAL meanwhile.
- Without WAL mode a read transaction keeps writers from the file. So it is read in short steps, and
  compared again, in short steps, until no commit happened from the first step to the last.

The caller opens the file before SQLite does and closes it afterwards: closing it earlier would drop
the locks of SQLite's connection in this process.

A pull sends this file to the other host too (see `remote/agent.py`): only the standard library, and
the syntax of Python 3.7.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Iterator  # noqa: UP035

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

BLOCK_BYTES = 1 << 20
# How long one step may keep writers out, and how often a changing file is compared again before it
# is compared in one step.
STEP_S = 0.05
ROUNDS = 8
HEADER_BYTES = 100
FORMAT = slice(18, 20)  # of the header: 2, 2 in WAL mode
CHANGES = slice(24, 28)  # of the header: counts the commits without WAL mode
NOT_WAL = b"\x01\x01"
NOT_SUPPORTED = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


class JournalModeChanged(Exception):
    """The file came into WAL mode while it was copied in steps."""


def copy_with_empty_wal(source: sqlite3.Connection, live: int, wal: Path, copy: Path) -> bool:
    """Copy a file in WAL mode while its WAL has nothing; return False if it has something.

    Args:
        source: A connection to the file, without a transaction.
        live: The file, opened before `source` was.
        wal: The path of its WAL.
        copy: The file to make; it is not in WAL mode.
    """
    with _reading(source):
        # Looked at after the transaction began: an empty WAL had nothing at its beginning, and
        # what comes later stays in it.
        if wal.exists() and wal.stat().st_size:
            return False
        size = _database_bytes(source)
        if os.fstat(live).st_size < size:
            return False
        with _opened(copy) as target:
            copy_bytes(live, target, 0, size)
            os.pwrite(target, NOT_WAL, FORMAT.start)
    return True


def copy_in_steps(source: sqlite3.Connection, live: int, copy: Path) -> None:
    """Copy a file that is not in WAL mode; writers wait for about `STEP_S` at a time.

    A file that changes again and again is finally compared in one step: a fraction of the time of
    copying it.

    Args:
        source: A connection to the file, without a transaction.
        live: The file, opened before `source` was.
        copy: The file to make.

    Raises:
        JournalModeChanged: The file came into WAL mode.
    """
    with _opened(copy) as target:
        for number in range(ROUNDS + 1):
            if _copy_once(source, live, target, STEP_S if number < ROUNDS else float("inf")):
                return


def _copy_once(source: sqlite3.Connection, live: int, target: int, step_s: float) -> bool:
    """Make each block of the copy equal to the file's; return whether no commit happened."""
    at, size = 0, 1
    commits: set[bytes] = set()
    while at < size:
        with _reading(source):
            header = os.pread(live, HEADER_BYTES, 0)
            if header[FORMAT] != NOT_WAL:
                raise JournalModeChanged
            commits.add(header[CHANGES])
            size = _database_bytes(source)
            until = time.monotonic() + step_s
            while at < size:
                _copy_block(live, target, at, min(BLOCK_BYTES, size - at))
                at += BLOCK_BYTES
                if time.monotonic() > until:
                    break
    os.ftruncate(target, size)
    return len(commits) == 1


def _copy_block(live: int, target: int, at: int, size: int) -> None:
    """Write a block of the copy unless it is what the file has."""
    if os.fstat(target).st_size < at + size:
        copy_bytes(live, target, at, size)
        return
    block = os.pread(live, size, at)
    if block != os.pread(target, size, at):
        os.pwrite(target, block, at)


def copy_bytes(live: int, target: int, at: int, size: int) -> None:
    """Copy bytes within the kernel, or by reading them where the file systems cannot do that."""
    end, by_kernel = at + size, hasattr(os, "copy_file_range")  # Python 3.8
    while at < end:
        count = min(64 * BLOCK_BYTES, end - at)
        if by_kernel:
            try:
                done = os.copy_file_range(live, target, count, at, at)
            except OSError as error:
                if error.errno not in NOT_SUPPORTED:
                    raise
                done = 0
            if done:
                at += done
                continue
            by_kernel = False
        block = os.pread(live, min(BLOCK_BYTES, count), at)
        if not block:
            raise OSError(errno.EIO, "the file became shorter while it was locked")
        at += os.pwrite(target, block, at)


def _database_bytes(source: sqlite3.Connection) -> int:
    pages, size = (
        int(source.execute(f"pragma {name}").fetchone()[0]) for name in ("page_count", "page_size")
    )
    return pages * size


@contextmanager
def _reading(source: sqlite3.Connection) -> Iterator[None]:
    """Hold a read transaction, and with it a lock on the file, during the block."""
    source.execute("begin")
    try:
        source.execute("select count(*) from sqlite_master").fetchone()
        yield
    finally:
        source.execute("rollback")


@contextmanager
def _opened(copy: Path) -> Iterator[int]:
    target = os.open(copy, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield target
    finally:
        os.close(target)
