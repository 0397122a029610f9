"""What is written in the file once Postgres has committed, and which rows wait.

The questions and answers between a drain and its file belong here; what Postgres is told does
not (see `landing`).
"""

import time
from collections.abc import Sequence

from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import file
from replica_platform.outbox.delivery import target as landing
from replica_platform.outbox.delivery.isolate import Delivery
from replica_platform.outbox.file import Row

MAX_SEQ = 2**63 - 1
_COLUMNS = "seq, id, kind, payload, sha, created_at"


def next_batch(
    connection: sqlite3.Connection, max_rows: int, max_bytes: int, until: int = MAX_SEQ
) -> list[Row]:
    """The oldest rows that wait, in order: first those that go again, then those above the mark.

    At least one where any waits up to the `seq` `until`, however large it is.
    """
    again = connection.execute(
        f"select {_COLUMNS} from again join record using (seq) order by seq limit ?",
        (max_rows,),
    )
    rows = _take(again, max_bytes)
    if rows:
        return rows
    waiting = connection.execute(
        f"select {_COLUMNS} from record where seq > ? and seq <= ? order by seq limit ?",
        (file.mark(connection), until, max_rows),
    )
    return _take(waiting, max_bytes)


def mark_delivered(
    connection: sqlite3.Connection,
    file_uuid: str,
    sent: Sequence[Row],
    delivery: Delivery,
    code_version: str,
) -> None:
    """Note what became of `sent`. A crash before this only makes the rows go again."""
    now = time.time()
    with file.writing(connection):
        if delivery.number is not None:
            connection.execute(
                "insert or replace into batch values (?, ?, ?, ?, ?, ?, ?)",
                (
                    file_uuid,
                    delivery.number,
                    delivery.rows[0].seq,
                    delivery.rows[-1].seq,
                    len(delivery.rows),
                    landing.digest(delivery.rows),
                    now,
                ),
            )
            file.set_meta(connection, "last_delivery", str(now))
        for row, failure in delivery.bad:
            connection.execute(
                "insert into dead select ?, ?, ?, 1 + coalesce("
                "(select attempts from again where seq = ?), 0), ?, ? "
                "on conflict (seq) do nothing",
                (row.seq, failure.sqlstate, failure.sentence, row.seq, now, code_version),
            )
        connection.executemany(
            "insert or ignore into conflict values (?, ?, ?)",
            [(seq, now, place) for seq, place in delivery.conflicts],
        )
        connection.executemany("delete from again where seq = ?", [(row.seq,) for row in sent])
        # Never back: another drain may have come further in the meantime.
        file.set_meta(connection, "mark", str(max(file.mark(connection), sent[-1].seq)))


def reopen(connection: sqlite3.Connection, first_seq: int, last_seq: int) -> int:
    """Let the rows of a range that are still here, at or below the mark, go again."""
    changed = connection.execute(
        "insert or ignore into again select seq, 0 from record "
        "where seq between ? and ? and seq <= ? and seq not in (select seq from dead)",
        (first_seq, last_seq, file.mark(connection)),
    )
    return int(changed.rowcount)


def revive(connection: sqlite3.Connection, other_than: str | None = None) -> int:
    """Let dead rows go again: all of them, or those that other code than `other_than` tried."""
    with file.writing(connection):
        connection.execute(
            "insert or ignore into again select seq, attempts from dead "
            "where ?1 is null or code_version <> ?1",
            (other_than,),
        )
        changed = connection.execute(
            "delete from dead where ?1 is null or code_version <> ?1", (other_than,)
        )
    return int(changed.rowcount)


def _take(cursor: sqlite3.Cursor, max_bytes: int) -> list[Row]:
    rows: list[Row] = []
    taken = 0
    for values in cursor:
        row = Row(*values)
        taken += len(row.payload)  # characters, near enough to bytes
        if rows and taken > max_bytes:
            break
        rows.append(row)
    cursor.close()
    return rows
