"""A little disk kept back, so that a full disk does not stop what would empty it.

Delivering needs a few pages to note what was delivered. A worker that fills the disk with what
an outage left must not thereby forbid the drain: a file beside the outbox is given up first.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from replica_platform.core.disk_space import free_bytes
from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import file

RESERVE_BYTES = 1024**2
# Of the cap or the disk: above it delivered rows are pruned at once, for a refused `append`
# loses a record for certain, and a target that forgets only may.
PRESSURE = 0.9
LOW_DISK_BYTES = 16 * RESERVE_BYTES


def reserve_of(path: Path) -> Path:
    return path.with_name(path.name + ".reserve")


def keep_reserve(path: Path) -> None:
    """Set the reserve aside where it is missing and the disk has room."""
    reserve = reserve_of(path)
    if reserve.exists() or free_bytes(path.parent) < LOW_DISK_BYTES:
        return
    with contextlib.suppress(OSError), reserve.open("wb") as kept:
        kept.write(os.urandom(RESERVE_BYTES))  # zeros take no room on a disk that compresses


def despite_a_full_disk(path: Path, write: Callable[[], None]) -> None:
    """Write; where the disk is full, give the reserve up and write again."""
    try:
        write()
    except sqlite3.OperationalError as error:
        is_full = file.error_code(error) == sqlite3.SQLITE_FULL
        if not is_full or not reserve_of(path).exists():
            raise
        reserve_of(path).unlink(missing_ok=True)
        write()


def is_under_pressure(path: Path, local: sqlite3.Connection) -> bool:
    """Whether the disk or the file's own cap is nearly used up."""
    if free_bytes(path.parent) < LOW_DISK_BYTES:
        return True
    cap = file.get_meta(local, "max_bytes")
    if not cap:
        return False
    (pages,) = local.execute("pragma page_count").fetchone()
    (unused,) = local.execute("pragma freelist_count").fetchone()
    (page_bytes,) = local.execute("pragma page_size").fetchone()
    return bool((pages - unused) * page_bytes > PRESSURE * int(cap))
