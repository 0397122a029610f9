"""Delivered rows leave the file late, and only after the target was asked for each of them.

A commit that was acknowledged can still be gone (`synchronous_commit=off`, a restore to a point
in time); until the grace period is over the file can deliver it again.
"""

import time

import psycopg

from replica_platform.core.postgres import deadline
from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import file
from replica_platform.outbox.delivery import queue as marking
from replica_platform.outbox.delivery import target as landing

KEEP_DELIVERED_S = 7 * 86400.0
# A delete holds the write lock: 500 rows of 1 KB are some milliseconds for the worker.
ROWS_A_STEP = 500
STEPS_A_DRAIN = 200


def prune(
    local: sqlite3.Connection, connection: psycopg.Connection, keep_s: float, deadline_s: float
) -> tuple[int, int]:
    """Delete rows delivered more than `keep_s` ago that the target still has.

    Rows it lacks go again instead. Returns (rows deleted, rows reopened).
    """
    limit = _delivered_before(local, time.time() - keep_s)
    pruned = reopened = after = 0
    for _ in range(STEPS_A_DRAIN):
        rows = local.execute(
            "select seq, id, sha from record where seq > ? and seq <= ? "
            "and seq not in (select seq from again) and seq not in (select seq from dead) "
            "and seq not in (select seq from conflict) order by seq limit ?",
            (after, limit, ROWS_A_STEP),
        ).fetchall()
        if not rows:
            break
        after = rows[-1][0]
        with deadline(connection, deadline_s):
            there = landing.present(connection, rows)
        lacking = [seq for seq, _, _ in rows if seq not in there]
        with file.writing(local):
            local.executemany("delete from record where seq = ?", [(seq,) for seq in there])
            reopened += sum(marking.reopen(local, seq, seq) for seq in lacking)
        pruned += len(there)
    if pruned:
        _forget_batches(local, limit)
    return pruned, reopened


def _delivered_before(local: sqlite3.Connection, moment: float) -> int:
    """The highest `seq` such that it and all below were last delivered before `moment`."""
    (young,) = local.execute(
        "select min(first_seq) from batch where delivered_at > ?", (moment,)
    ).fetchone()
    (old,) = local.execute(
        "select max(last_seq) from batch where delivered_at <= ?", (moment,)
    ).fetchone()
    if old is None:
        return 0
    return int(old) if young is None else min(int(old), int(young) - 1)


def _forget_batches(local: sqlite3.Connection, limit: int) -> None:
    """Ledger rows of batches of which no row is left; the newest stays as the proof."""
    with file.writing(local):
        local.execute(
            "delete from batch where last_seq <= ? "
            "and delivered_at < (select max(delivered_at) from batch) and not exists "
            "(select 1 from record where seq between batch.first_seq and batch.last_seq)",
            (limit,),
        )
