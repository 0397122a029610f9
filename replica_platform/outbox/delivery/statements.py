"""The SQL that a delivery runs in Postgres.

`outbox.record` takes records of every kind as jsonb. `outbox.conflict` keeps records that came with
a known id or key and other content. `outbox.file` lists the files that delivered. The SQL of the
ledger, written in the same transaction, belongs to `ledger`.
"""

import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from replica_platform.outbox.delivery import ledger
from replica_platform.outbox.delivery.kinds import KindTable
from replica_platform.outbox.file import Row

# One statement for a batch: 48k rows/s; executemany reached 38k, row by row 3.7k.
# ON CONFLICT names its column: without it, another unique index would silently drop rows.
INSERT = """
insert into outbox.record (id, file_uuid, seq, kind, payload, payload_sha, created_at)
select id, %(file_uuid)s, seq, kind, payload, payload_sha, to_timestamp(created_at)
from jsonb_to_recordset(%(rows)s::jsonb) as sent (
    id uuid, seq bigint, kind text, payload jsonb, payload_sha bytea, created_at float8
)
order by seq
on conflict (id) do nothing
"""

# Sent rows whose id the target has with other content.
OTHER_CONTENT = """
select sent.seq
from unnest(%(seqs)s::bigint[], %(ids)s::uuid[], %(shas)s::bytea[]) as sent (seq, id, sha)
join outbox.record as there using (id)
where there.payload_sha <> sent.sha
order by sent.seq
"""

# Sent rows that the target has with the same content, as a record or as a kept conflict.
PRESENT = """
select sent.seq
from unnest(%(seqs)s::bigint[], %(ids)s::uuid[], %(shas)s::bytea[]) as sent (seq, id, sha)
where exists (select from outbox.record as r where r.id = sent.id and r.payload_sha = sent.sha)
   or exists (select from outbox.conflict as c where c.id = sent.id and c.payload_sha = sent.sha)
"""

KEEP_CONFLICT = """
insert into outbox.conflict (id, payload_sha, place, file_uuid, seq, kind, payload, created_at)
select id, payload_sha, %(place)s, %(file_uuid)s, seq, kind, payload, to_timestamp(created_at)
from jsonb_to_recordset(%(rows)s::jsonb) as sent (
    id uuid, seq bigint, kind text, payload jsonb, payload_sha bytea, created_at float8
)
on conflict (id, payload_sha, place) do nothing
"""

# Lists each file that delivered, so that its removal is noticed.
REMEMBER_FILE = """
insert into outbox.file as known (file_uuid, host, path) values (%s, %s, %s)
on conflict (file_uuid) do update set host = excluded.host, path = excluded.path, seen_at = now()
where (known.host, known.path) is distinct from (excluded.host, excluded.path)
   or known.seen_at < now() - interval '1 hour'
"""

KNOWN_FILES = """
select file_uuid::text, path, coalesce(landed, 0)
from outbox.file left join outbox.chain using (file_uuid) where host = %s order by path
"""


@dataclass(frozen=True)
class Inserted:
    """What one insertion did with its rows.

    Attributes:
        new: How many rows were new.
        absorbed: How many the target already had with the same content.
        conflicts: `seq` and table for each row that the table has with other content.
    """

    new: int
    absorbed: int
    conflicts: tuple[tuple[int, str], ...]


def insert_records(
    connection: psycopg.Connection,
    file_uuid: str,
    rows: Sequence[Row],
    mappings: Mapping[str, KindTable],
) -> Inserted:
    """Insert `rows` inside the caller's transaction; rows that are there already are absorbed."""
    new = connection.execute(INSERT, {"file_uuid": file_uuid, "rows": _as_json(rows)}).rowcount
    conflicts = [] if new == len(rows) else _keep_other_content(connection, file_uuid, rows)
    known = {seq for seq, _ in conflicts}
    absorbed = len(rows) - new - len(conflicts)
    for kind in {row.kind for row in rows} & mappings.keys():
        mapped = [row for row in rows if row.kind == kind and row.seq not in known]
        conflicts += _fill_table(connection, file_uuid, mapped, mappings[kind])
    return Inserted(new, absorbed, tuple(conflicts))


def _keep_other_content(
    connection: psycopg.Connection, file_uuid: str, rows: Sequence[Row]
) -> list[tuple[int, str]]:
    """Keep the rows whose id the target has with other content; return them as conflicts."""
    found = connection.execute(OTHER_CONTENT, _columns(rows)).fetchall()
    seqs = {seq for (seq,) in found}
    return _keep_conflicts(
        connection, file_uuid, [row for row in rows if row.seq in seqs], "outbox.record"
    )


def _fill_table(
    connection: psycopg.Connection, file_uuid: str, rows: Sequence[Row], mapping: KindTable
) -> list[tuple[int, str]]:
    """Fill the kind's own table, where the worker may have put the row; return conflicts."""
    ids = {"ids": list({row.id for row in rows})}
    if connection.execute(mapping.insert(), ids).rowcount == len(rows):
        return []
    differing = {id for (id,) in connection.execute(mapping.differing(), ids)}
    return _keep_conflicts(
        connection,
        file_uuid,
        [row for row in rows if row.id in differing],
        ".".join(mapping.table),
    )


def _keep_conflicts(
    connection: psycopg.Connection, file_uuid: str, rows: Sequence[Row], table: str
) -> list[tuple[int, str]]:
    """Store rows whose content differs from that in `table`; return them as conflicts."""
    if rows:
        values = {"file_uuid": file_uuid, "rows": _as_json(rows), "place": table}
        connection.execute(KEEP_CONFLICT, values)
    return [(row.seq, table) for row in rows]


def remember_file(connection: psycopg.Connection, file_uuid: str, path: Path) -> None:
    """Note in the target that this file of this host delivers to it."""
    connection.execute(REMEMBER_FILE, (file_uuid, socket.gethostname(), str(path.resolve())))


def known_files(connection: psycopg.Connection) -> list[tuple[str, Path, int]]:
    """Return the files of this host that ever delivered here: (file_uuid, path, rows)."""
    found = connection.execute(KNOWN_FILES, (socket.gethostname(),)).fetchall()
    former = ledger.landed_by_former(connection)
    return [
        (file_uuid, Path(path), rows + (former.get(file_uuid, 0) if rows == 0 else 0))
        for file_uuid, path, rows in found
    ]


def now(connection: psycopg.Connection) -> float:
    """Return the target's time, in seconds since 1970."""
    row = connection.execute("select extract(epoch from now())::float8").fetchone()
    return 0.0 if row is None else float(row[0])


def present(connection: psycopg.Connection, rows: Sequence[tuple[int, str, bytes]]) -> set[int]:
    """Return the `seq`s of those rows (seq, id, sha) whose content the target has.

    A row counts as a record or as a kept conflict.
    """
    seqs, ids, shas = zip(*rows, strict=True)
    found = connection.execute(PRESENT, {"seqs": list(seqs), "ids": list(ids), "shas": list(shas)})
    return {seq for (seq,) in found}


def _columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    return {
        "seqs": [row.seq for row in rows],
        "ids": [row.id for row in rows],
        "shas": [row.sha for row in rows],
    }


def _as_json(rows: Sequence[Row]) -> str:
    # The payload is JSON already; joining texts avoids parsing and writing it again.
    return (
        "["
        + ",".join(
            f'{{"id":"{row.id}","seq":{row.seq},"kind":{json.dumps(row.kind)},'
            f'"payload_sha":"\\\\x{row.sha.hex()}","created_at":{row.created_at!r},'
            f'"payload":{row.payload}}}'
            for row in rows
        )
        + "]"
    )
