"""Disk space kept in reserve, so that a drain can finish on a full disk.

Noting a delivery in the file needs a few pages. When the backlog of an outage has filled the
disk, deleting the reserve file beside the outbox makes room for them.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from replica_platform.core.disk_space import free_bytes
from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import file
from replica_platform.outbox.errors import result_code

RESERVE_BYTES = 1024**2
# A share of the cap. Above it, and below LOW_DISK_BYTES of free disk, delivered rows are pruned at
# once: a refused `append` certainly loses a record, a target only might.
NEARLY_FULL = 0.9
LOW_DISK_BYTES = 16 * RESERVE_BYTES


def reserve_path(path: Path) -> Path:
    """Return the path of the reserve of an outbox file."""
    return path.with_name(path.name + ".reserve")


def ensure_reserve(path: Path) -> None:
    """Create the reserve if it is missing and the disk has enough space."""
    reserve = reserve_path(path)
    if reserve.exists() or free_bytes(path.parent) < LOW_DISK_BYTES:
        return
    with contextlib.suppress(OSError), reserve.open("wb") as output:
        # Zeros take no space on a disk that compresses.
        output.write(os.urandom(RESERVE_BYTES))


def release_reserve(path: Path) -> bool:
    """Delete the reserve; return whether there was one."""
    try:
        reserve_path(path).unlink()
    except FileNotFoundError:
        return False
    return True


def write_with_reserve(path: Path, write: Callable[[], None]) -> None:
    """Call `write`; if the disk is full, delete the reserve and call it again."""
    try:
        write()
    except sqlite3.OperationalError as error:
        if result_code(error) != sqlite3.SQLITE_FULL or not release_reserve(path):
            raise
        write()


def is_nearly_full(path: Path, connection: sqlite3.Connection) -> bool:
    """Return whether the disk or the file's own cap is nearly used up."""
    if free_bytes(path.parent) < LOW_DISK_BYTES:
        return True
    cap = file.get_meta(connection, "max_bytes")
    if not cap:
        return False
    (pages,) = connection.execute("pragma page_count").fetchone()
    (unused,) = connection.execute("pragma freelist_count").fetchone()
    (page_bytes,) = connection.execute("pragma page_size").fetchone()
    return bool((pages - unused) * page_bytes > NEARLY_FULL * int(cap))
