"""The rows of a file that wait for delivery, and the notes of what became of them.

A drain reads the next batch here and writes down here what Postgres has committed. The SQL that
Postgres runs does not belong here (see `delivery.statements`).
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import file
from replica_platform.outbox.errors import RowRefused
from replica_platform.outbox.file import Row

MAX_SEQ = 2**63 - 1
_COLUMNS = "seq, id, kind, payload, sha, created_at"


@dataclass(frozen=True)
class Delivery:
    """What became of a batch in the target.

    Attributes:
        number: The batch's number in the target's ledger; None if no row was delivered.
        rows: The delivered rows, in order of `seq`.
        new: How many of them were new in the target.
        absorbed: How many the target already had with the same content.
        conflicts: `seq` and table for each row whose id or key the target has with other content.
        refused: The rows to set aside, each with the target's error.
    """

    number: int | None
    rows: tuple[Row, ...]
    new: int
    absorbed: int
    conflicts: tuple[tuple[int, str], ...]
    refused: tuple[tuple[Row, RowRefused], ...]


def next_batch(
    connection: sqlite3.Connection, max_rows: int, max_bytes: int, until: int = MAX_SEQ
) -> list[Row]:
    """Return the oldest waiting rows in order: the resend queue, then those never delivered.

    A batch has at most `max_rows` rows of together about `max_bytes`, but at least one row if any
    waits up to the `seq` `until`.
    """
    resends = connection.execute(
        f"select {_COLUMNS} from again join record using (seq) order by seq limit ?",
        (max_rows,),
    )
    rows = _read(resends, max_bytes)
    if rows:
        return rows
    waiting = connection.execute(
        f"select {_COLUMNS} from record where seq > ? and seq <= ? order by seq limit ?",
        (file.delivered_through(connection), until, max_rows),
    )
    return _read(waiting, max_bytes)


def mark_delivered(
    connection: sqlite3.Connection,
    file_uuid: str,
    sent: Sequence[Row],
    delivery: Delivery,
    code_version: str,
) -> None:
    """Note what became of `sent`. After a crash before this, the rows are only sent again."""
    now = time.time()
    with file.writing(connection):
        if delivery.number is not None:
            _note_batch(connection, file_uuid, delivery, now)
        for row, error in delivery.refused:
            connection.execute(
                "insert into dead select ?, ?, ?, 1 + coalesce("
                "(select attempts from again where seq = ?), 0), ?, ? "
                "on conflict (seq) do nothing",
                (row.seq, error.sqlstate, str(error), row.seq, now, code_version),
            )
        connection.executemany(
            "insert or ignore into conflict values (?, ?, ?)",
            [(seq, now, table) for seq, table in delivery.conflicts],
        )
        connection.executemany("delete from again where seq = ?", [(row.seq,) for row in sent])
        file.set_delivered_through(connection, sent[-1].seq)


def _note_batch(
    connection: sqlite3.Connection, file_uuid: str, delivery: Delivery, now: float
) -> None:
    """Write the file's own ledger row of a batch."""
    rows = delivery.rows
    connection.execute(
        "insert or replace into batch values (?, ?, ?, ?, ?, ?, ?)",
        (
            file_uuid,
            delivery.number,
            rows[0].seq,
            rows[-1].seq,
            len(rows),
            batch_digest(rows),
            now,
        ),
    )
    file.set_meta(connection, "last_delivery", str(now))


def batch_digest(rows: Sequence[Row]) -> bytes:
    """Return the SHA-256 of the ids and contents of a batch, in order."""
    return hashlib.sha256(b"".join(row.id.encode() + row.sha for row in rows)).digest()


def resend(connection: sqlite3.Connection, first_seq: int, last_seq: int) -> int:
    """Queue delivered rows from `first_seq` to `last_seq` for resending; return how many.

    Pruned rows, dead rows and rows that were never delivered are left out.
    """
    changed = connection.execute(
        "insert or ignore into again select seq, 0 from record "
        "where seq between ? and ? and seq <= ? and seq not in (select seq from dead)",
        (first_seq, last_seq, file.delivered_through(connection)),
    )
    return int(changed.rowcount)


def revive(connection: sqlite3.Connection, other_than: str | None = None) -> int:
    """Queue dead rows for resending; return how many.

    With `other_than`, only those whose last attempt was by another version of the code.
    """
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


def _read(cursor: sqlite3.Cursor, max_bytes: int) -> list[Row]:
    rows: list[Row] = []
    size = 0
    for values in cursor:
        row = Row(*values)
        size += len(row.payload)  # in characters, close enough to bytes
        if rows and size > max_bytes:
            break
        rows.append(row)
    cursor.close()
    return rows
