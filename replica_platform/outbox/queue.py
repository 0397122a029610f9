"""The rows of a file that wait for delivery, and the notes of what became of them.

A drain reads the next batch here and writes down here what Postgres has committed. The SQL that
Postgres runs does not belong here (see `delivery.statements`).
"""

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import file
from replica_platform.outbox.errors import RowRefused
from replica_platform.outbox.file import Row

MAX_SEQ = 2**63 - 1
_COLUMNS = "seq, id, kind, payload, sha, created_at"


class LedgerEntry(NamedTuple):
    """A batch in the ledger: its number, the digest of all up to it, and when it was delivered.

    The time is the target's, in seconds since 1970, so that a wrong clock here changes nothing.
    """

    number: int
    chain: bytes
    landed_at: float


@dataclass(frozen=True)
class Delivery:
    """What became of a batch in the target.

    Attributes:
        entry: The batch in the target's ledger; None if no row was delivered.
        rows: The delivered rows, in order of `seq`.
        new: How many of them were new in the target.
        absorbed: How many the target already had with the same content.
        conflicts: `seq` and table for each row whose id or key the target has with other content.
        refused: The rows to set aside, each with the target's error.
    """

    entry: LedgerEntry | None
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


def another(connection: sqlite3.Connection, seq: int, among: int) -> Row | None:
    """Return one of the `among` rows after `seq`, at random; None if there is none."""
    values = connection.execute(
        f"select {_COLUMNS} from (select * from record where seq > ? order by seq limit ?) "
        "order by random() limit 1",
        (seq, among),
    ).fetchone()
    return None if values is None else Row(*values)


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
        if delivery.entry is not None:
            seqs = (delivery.rows[0].seq, delivery.rows[-1].seq)
            note_batch(connection, file_uuid, delivery.entry, seqs, len(delivery.rows))
            file.set_meta(connection, "last_delivery", str(now))
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


def note_batch(
    connection: sqlite3.Connection,
    file_uuid: str,
    entry: LedgerEntry,
    seqs: tuple[int, int],
    count: int,
) -> None:
    """Write the file's own ledger row of a batch: its first and last `seq` and how many rows.

    The column `digest` holds the chain; before the chain existed, the batch's own digest.
    """
    connection.execute(
        "insert or replace into batch values (?, ?, ?, ?, ?, ?, ?)",
        (file_uuid, entry.number, *seqs, count, entry.chain, entry.landed_at),
    )


def last_entry(connection: sqlite3.Connection, file_uuid: str) -> LedgerEntry:
    """Return the last batch of an identity that the file notes; number 0 if there is none."""
    row = connection.execute(
        "select number, digest, delivered_at from batch where file_uuid = ? "
        "order by number desc limit 1",
        (file_uuid,),
    ).fetchone()
    return LedgerEntry(0, b"", 0.0) if row is None else LedgerEntry(*row)


def chain_at(connection: sqlite3.Connection, file_uuid: str, number: int) -> bytes | None:
    """Return the chain through a batch; None if the file does not know it."""
    if number == 0:
        return b""
    row = connection.execute(
        "select digest from batch where file_uuid = ? and number = ?", (file_uuid, number)
    ).fetchone()
    return None if row is None else bytes(row[0])


def chains(
    connection: sqlite3.Connection, file_uuid: str, after: int, limit: int
) -> list[tuple[int, bytes]]:
    """Return the next `limit` batches of an identity after a number, each with its chain."""
    return connection.execute(
        "select number, digest from batch where file_uuid = ? and number > ? "
        "order by number limit ?",
        (file_uuid, after, limit),
    ).fetchall()


def batches_after(connection: sqlite3.Connection, file_uuid: str, number: int) -> int:
    """Return how many batches of an identity the file notes after a number."""
    (count,) = connection.execute(
        "select count(*) from batch where file_uuid = ? and number > ?", (file_uuid, number)
    ).fetchone()
    return int(count)


def resend_batches(connection: sqlite3.Connection, file_uuid: str, after: int) -> int:
    """Queue the rows of all batches after a number for resending, and forget these batches.

    Return how many rows were queued.
    """
    lost = connection.execute(
        "select first_seq, last_seq from batch where file_uuid = ? and number > ? "
        "order by first_seq",
        (file_uuid, after),
    )
    queued = 0
    for first_seq, last_seq in _merged(lost):
        queued += resend(connection, first_seq, last_seq)
    connection.execute("delete from batch where file_uuid = ? and number > ?", (file_uuid, after))
    return queued


def _merged(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Join ranges that touch: one statement for each of a million batches would take minutes."""
    first, last = 0, -1
    for start, end in ranges:
        if start > last + 1:
            if last >= first:
                yield first, last
            first, last = start, end
        else:
            last = max(last, end)
    if last >= first:
        yield first, last


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
