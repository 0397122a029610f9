"""The deletion of delivered rows from a file, late and only after the target confirmed each.

An acknowledged commit can still be lost (`synchronous_commit=off`, a restore to a point in time).
Until the grace period is over, the file can deliver the rows again.
"""

import time

import psycopg

from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import file, queue
from replica_platform.outbox.delivery import statements
from replica_platform.outbox.delivery.target import begin

KEEP_DELIVERED_S = 7 * 86400.0
# A delete holds the write lock: 500 rows of 1 KB block the worker for some milliseconds.
ROWS_PER_STEP = 500
STEPS_PER_DRAIN = 200


def prune(
    local: sqlite3.Connection, connection: psycopg.Connection, keep_s: float, deadline_s: float
) -> tuple[int, int]:
    """Delete rows that were delivered more than `keep_s` ago and that the target still has.

    Rows that it lacks are queued for resending. Return how many rows were deleted, and how many
    queued.
    """
    limit = _delivered_before(local, time.time() - keep_s)
    pruned = reopened = after = 0
    for _ in range(STEPS_PER_DRAIN):
        rows = local.execute(
            "select seq, id, sha from record where seq > ? and seq <= ? "
            "and seq not in (select seq from again) and seq not in (select seq from dead) "
            "and seq not in (select seq from conflict) order by seq limit ?",
            (after, limit, ROWS_PER_STEP),
        ).fetchall()
        if not rows:
            break
        after = rows[-1][0]
        with begin(connection, deadline_s):
            present = statements.present(connection, rows)
        missing = [seq for seq, _, _ in rows if seq not in present]
        with file.writing(local):
            local.executemany("delete from record where seq = ?", [(seq,) for seq in present])
            reopened += sum(queue.resend(local, seq, seq) for seq in missing)
        pruned += len(present)
    if pruned:
        _forget_batches(local, limit)
    return pruned, reopened


def _delivered_before(local: sqlite3.Connection, moment: float) -> int:
    """Return the highest `seq` up to which all rows were last delivered before `moment`.

    The index `batch_by_seq` makes this one step after the batches to prune.
    """
    young = local.execute(
        "select first_seq from batch where delivered_at > ? order by first_seq limit 1", (moment,)
    ).fetchone()
    return file.delivered_through(local) if young is None else int(young[0]) - 1


def _forget_batches(local: sqlite3.Connection, limit: int) -> None:
    """Delete the ledger rows of batches without a row left; keep the last, which proves them."""
    with file.writing(local):
        local.execute(
            "delete from batch where first_seq <= ?1 and last_seq <= ?1 "
            "and number < (select max(number) from batch as b where b.file_uuid = batch.file_uuid) "
            "and not exists "
            "(select 1 from record where seq between batch.first_seq and batch.last_seq)",
            (limit,),
        )
