"""The deletion of delivered rows from a file, late and only after the target confirmed each.

An acknowledged commit can still be lost (`synchronous_commit=off`, a restore to a point in time).
Until the grace period is over, the file can deliver the rows again. Its time is the target's: a
wrong clock on this machine neither prunes early nor ends pruning.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import psycopg

from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import file, queue
from replica_platform.outbox.delivery import statements
from replica_platform.outbox.delivery.target import begin

KEEP_DELIVERED_S = 7 * 86400.0
# A delete holds the write lock: 500 rows of 1 KB block the worker for some milliseconds.
ROWS_PER_STEP = 500
# On a full disk each step must fit into what the reserve left of the log.
ROWS_PER_SHORT_STEP = 50
# Free pages that stay in the file for the next records: as many as are in use, or at least this.
KEEP_FREE_BYTES = 16 * 1024**2
PAGES_PER_STEP = 256


@dataclass(frozen=True)
class Pruning:
    """What to prune.

    Attributes:
        through: The highest `seq` to delete.
        step_rows: How many rows to delete in one transaction.
        deadline_s: The limit of each query of the target, in seconds.
        is_enough: Gets the rows deleted so far; True ends the pruning.
    """

    through: int
    step_rows: int
    deadline_s: float
    is_enough: Callable[[int], bool]


def prune(
    local: sqlite3.Connection,
    connection: psycopg.Connection,
    what: Pruning,
    counts: Counter[str],
) -> None:
    """Delete delivered rows that the target still has; queue those that it lacks for resending.

    Both are added to `counts` as `pruned` and `reopened`, also if a later step fails.
    """
    pruned = after = 0
    while not what.is_enough(pruned):
        rows = local.execute(
            "select seq, id, sha from record where seq > ? and seq <= ? "
            "and seq not in (select seq from again) and seq not in (select seq from dead) "
            "and seq not in (select seq from conflict) order by seq limit ?",
            (after, what.through, what.step_rows),
        ).fetchall()
        if not rows:
            break
        with begin(connection, what.deadline_s):
            present = statements.present(connection, rows)
        missing = [seq for seq, _, _ in rows if seq not in present]
        with file.writing(local):
            local.executemany("delete from record where seq = ?", [(seq,) for seq in present])
            queued = sum(queue.resend(local, seq, seq) for seq in missing)
        after = rows[-1][0]
        pruned += len(present)
        counts.update(pruned=len(present), reopened=queued)
    if pruned:
        _forget_batches(local, after)


def delivered_before(local: sqlite3.Connection, now: float, keep_s: float) -> int:
    """Return the highest `seq` up to which all rows were last delivered `keep_s` before `now`.

    A delivery noted in the future comes from a wrong clock; its grace period begins now. The index
    `batch_by_seq` makes this one step after the batches to prune.
    """
    while True:
        young = local.execute(
            "select first_seq, delivered_at from batch where delivered_at > ? "
            "order by first_seq limit 1",
            (now - keep_s,),
        ).fetchone()
        if young is None:
            return file.delivered_through(local)
        first_seq, delivered_at = young
        if delivered_at <= now:
            return int(first_seq) - 1
        with file.writing(local):
            local.execute("update batch set delivered_at = ?1 where delivered_at > ?1", (now,))


def give_space_back(local: sqlite3.Connection) -> None:
    """Shrink the file to what it uses and what the next records will need.

    A file of an earlier version cannot be shrunk in steps. It is rewritten when little is left in
    it, so that the worker waits for less than a second.
    """
    used_bytes, free_bytes = _sizes(local)
    if free_bytes <= max(used_bytes, KEEP_FREE_BYTES):
        return
    # On a full or busy disk, the next drain does it.
    with suppress(sqlite3.OperationalError):
        (mode,) = local.execute("pragma auto_vacuum").fetchone()
        if mode != file.INCREMENTAL_VACUUM:
            if used_bytes <= KEEP_FREE_BYTES:
                local.execute("pragma auto_vacuum = incremental")
                local.execute("vacuum")
            return
        while free_bytes > max(used_bytes, KEEP_FREE_BYTES):
            local.execute(f"pragma incremental_vacuum({PAGES_PER_STEP})").fetchall()
            before, (used_bytes, free_bytes) = free_bytes, _sizes(local)
            if free_bytes >= before:
                return


def _sizes(local: sqlite3.Connection) -> tuple[int, int]:
    """Return the bytes of the file that are in use, and those that are free."""
    (pages,) = local.execute("pragma page_count").fetchone()
    (free,) = local.execute("pragma freelist_count").fetchone()
    (page_bytes,) = local.execute("pragma page_size").fetchone()
    return (pages - free) * page_bytes, free * page_bytes


def _forget_batches(local: sqlite3.Connection, through: int) -> None:
    """Delete the ledger rows of batches without a row left; keep the last, which proves them."""
    with file.writing(local):
        local.execute(
            "delete from batch where first_seq <= ?1 and last_seq <= ?1 "
            "and number < (select max(number) from batch as b where b.file_uuid = batch.file_uuid) "
            "and not exists "
            "(select 1 from record where seq between batch.first_seq and batch.last_seq)",
            (through,),
        )
