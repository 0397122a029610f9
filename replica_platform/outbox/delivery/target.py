"""The target's side: where records land in Postgres, and the statements that land them.

All SQL of the delivery belongs here. `outbox.record` takes every kind as jsonb; `outbox.batch`
is the ledger, written in the same transaction; `outbox.conflict` keeps what came with the id
of another record and other content.
"""

import hashlib
import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from replica_platform.core.postgres import deadline
from replica_platform.outbox.delivery.kinds import KindTable
from replica_platform.outbox.file import Row

LOCK_OF_SCHEMA = 0x6F7574626F78  # "outbox"

SCHEMA = """
create schema if not exists outbox;
create table if not exists outbox.record (
    id uuid primary key, file_uuid uuid not null, seq bigint not null, kind text not null,
    payload jsonb not null, payload_sha bytea not null, created_at timestamptz not null,
    landed_at timestamptz not null default now()
);
create table if not exists outbox.batch (
    file_uuid uuid not null, number bigint not null, first_seq bigint not null,
    last_seq bigint not null, n bigint not null, landed bigint not null, digest bytea not null,
    landed_at timestamptz not null default now(), primary key (file_uuid, number)
);
create table if not exists outbox.file (
    file_uuid uuid primary key, host text not null, path text not null,
    seen_at timestamptz not null default now()
);
create table if not exists outbox.conflict (
    id uuid not null, payload_sha bytea not null, place text not null, file_uuid uuid not null,
    seq bigint not null, kind text not null, payload jsonb not null,
    created_at timestamptz not null, found_at timestamptz not null default now(),
    primary key (id, payload_sha, place)
);
"""

# One statement a batch: 48k rows/s, where executemany did 38k and row by row 3.7k.
# ON CONFLICT names its column: without it another unique index would swallow rows.
LAND = """
insert into outbox.record (id, file_uuid, seq, kind, payload, payload_sha, created_at)
select id, %(file_uuid)s, seq, kind, payload, payload_sha, to_timestamp(created_at)
from jsonb_to_recordset(%(rows)s::jsonb) as sent (
    id uuid, seq bigint, kind text, payload jsonb, payload_sha bytea, created_at float8
)
order by seq
on conflict (id) do nothing
"""

# Of those that did not land: which have the id of a record with other content?
OTHER_CONTENT = """
select sent.seq
from unnest(%(seqs)s::bigint[], %(ids)s::uuid[], %(shas)s::bytea[]) as sent (seq, id, sha)
join outbox.record as there using (id)
where there.payload_sha <> sent.sha
order by sent.seq
"""

# Read back by id and content: as the record, or as what was kept of a conflict.
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

# The number is the target's own next one: a file restored from a backup, or a target that was
# rolled back, can so not collide with what stands there.
LEDGER = """
insert into outbox.batch (file_uuid, number, first_seq, last_seq, n, landed, digest)
select %(file_uuid)s, coalesce(max(number), 0) + 1, %(first)s, %(last)s, %(n)s, %(landed)s,
    %(digest)s
from outbox.batch where file_uuid = %(file_uuid)s
on conflict (file_uuid, number) do nothing
returning number
"""

LOCK = "select pg_try_advisory_lock(%s)"

# Which files delivered, so that one that is taken away is missed.
REMEMBER_FILE = """
insert into outbox.file as known (file_uuid, host, path) values (%s, %s, %s)
on conflict (file_uuid) do update set host = excluded.host, path = excluded.path, seen_at = now()
where (known.host, known.path) is distinct from (excluded.host, excluded.path)
   or known.seen_at < now() - interval '1 hour'
"""

KNOWN_FILES = """
select file_uuid::text, path,
    (select coalesce(sum(landed), 0) from outbox.batch as b where b.file_uuid = f.file_uuid)::int8
from outbox.file as f where host = %s order by path
"""


@dataclass(frozen=True)
class Landed:
    """What one statement did: new rows, rows that were there, (`seq`, table) of other content."""

    new: int
    absorbed: int
    conflicts: tuple[tuple[int, str], ...]


def prepare(connection: psycopg.Connection, deadline_s: float) -> None:
    """Make an autocommit session honest and the tables exist.

    `synchronous_commit=off` let a perfect outbox lose 313 rows, so it is set back on. A ghost of
    a killed drain must not keep its lock, so the server ends silent sessions.
    """
    limit = f"{int(deadline_s * 1000)}"
    with connection.transaction():
        row = connection.execute("select current_setting('synchronous_commit')").fetchone()
        if row is not None and row[0] in ("off", "local"):
            connection.execute("set synchronous_commit = on")
        for name in (
            "statement_timeout",
            "lock_timeout",
            "idle_in_transaction_session_timeout",
            "idle_session_timeout",
        ):
            connection.execute("select set_config(%s, %s, false)", (name, limit))
        found = connection.execute("select to_regclass('outbox.file')").fetchone()
        if found == (None,):
            connection.execute("select pg_advisory_xact_lock(%s)", (LOCK_OF_SCHEMA,))
            connection.execute(SCHEMA)


@contextmanager
def only_drain(connection: psycopg.Connection, file_uuid: str, deadline_s: float) -> Iterator[bool]:
    """Hold the advisory lock of a file; False when another drain holds it.

    It saves work and is not needed for correctness. It ends with the connection.
    """
    key = int.from_bytes(hashlib.sha256(file_uuid.encode()).digest()[:8], "big", signed=True)
    with deadline(connection, deadline_s):
        row = connection.execute(LOCK, (key,)).fetchone()
    mine = row == (True,)
    try:
        yield mine
    finally:
        if mine and not connection.closed and not connection.broken:
            with deadline(connection, deadline_s):
                connection.execute("select pg_advisory_unlock(%s)", (key,))


def land(
    connection: psycopg.Connection,
    file_uuid: str,
    rows: Sequence[Row],
    mappings: Mapping[str, KindTable],
) -> Landed:
    """Insert `rows` inside the caller's transaction; what is there already is absorbed."""
    new = connection.execute(LAND, {"file_uuid": file_uuid, "rows": _as_json(rows)}).rowcount
    conflicts = [] if new == len(rows) else _other_content(connection, file_uuid, rows)
    known = {seq for seq, _ in conflicts}
    absorbed = len(rows) - new - len(conflicts)
    for kind in {row.kind for row in rows} & mappings.keys():
        mapped = [row for row in rows if row.kind == kind and row.seq not in known]
        conflicts += _fill(connection, file_uuid, mapped, mappings[kind])
    return Landed(new, absorbed, tuple(conflicts))


def _other_content(
    connection: psycopg.Connection, file_uuid: str, rows: Sequence[Row]
) -> list[tuple[int, str]]:
    found = connection.execute(OTHER_CONTENT, _columns(rows)).fetchall()
    seqs = {seq for (seq,) in found}
    return _keep_conflicts(
        connection, file_uuid, [row for row in rows if row.seq in seqs], "outbox.record"
    )


def _fill(
    connection: psycopg.Connection, file_uuid: str, rows: Sequence[Row], mapping: KindTable
) -> list[tuple[int, str]]:
    """Fill the kind's own table; a worker may have put the same row there itself."""
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
    connection: psycopg.Connection, file_uuid: str, rows: Sequence[Row], place: str
) -> list[tuple[int, str]]:
    if rows:
        values = {"file_uuid": file_uuid, "rows": _as_json(rows), "place": place}
        connection.execute(KEEP_CONFLICT, values)
    return [(row.seq, place) for row in rows]


def write_ledger(
    connection: psycopg.Connection, file_uuid: str, rows: Sequence[Row], landed: int
) -> int:
    """Write the batch's ledger row inside the caller's transaction; returns its number.

    `landed` is how many of the rows were new.
    """
    values = {
        "file_uuid": file_uuid,
        "first": rows[0].seq,
        "last": rows[-1].seq,
        "n": len(rows),
        "landed": landed,
        "digest": digest(rows),
    }
    while True:
        written = connection.execute(LEDGER, values).fetchone()
        if written is not None:  # else another drain took the number: take the next
            return int(written[0])


def ledger_of(
    connection: psycopg.Connection, file_uuids: Sequence[str]
) -> dict[tuple[str, int], bytes]:
    """The target's ledger for these files: (file_uuid, number) → digest."""
    rows = connection.execute(
        "select file_uuid::text, number, digest from outbox.batch "
        "where file_uuid = any(%s::uuid[])",
        (list(file_uuids),),
    ).fetchall()
    return {(uuid, number): bytes(digest) for uuid, number, digest in rows}


def remember_file(connection: psycopg.Connection, file_uuid: str, path: Path) -> None:
    """Note that this file of this host delivers here."""
    connection.execute(REMEMBER_FILE, (file_uuid, socket.gethostname(), str(path.resolve())))


def known_files(connection: psycopg.Connection) -> list[tuple[str, Path, int]]:
    """The files of this host that ever delivered here: (file_uuid, path, rows landed)."""
    found = connection.execute(KNOWN_FILES, (socket.gethostname(),)).fetchall()
    return [(file_uuid, Path(path), landed) for file_uuid, path, landed in found]


def landed_rows(connection: psycopg.Connection, file_uuids: Sequence[str]) -> int:
    """How many rows of a file the target took in all, by its ledger."""
    row = connection.execute(
        "select coalesce(sum(landed), 0)::int8 from outbox.batch where file_uuid = any(%s::uuid[])",
        (list(file_uuids),),
    ).fetchone()
    return 0 if row is None else int(row[0])


def highest_seq(connection: psycopg.Connection, file_uuid: str) -> int:
    """The highest `seq` that the target ever took from a file."""
    row = connection.execute(
        "select coalesce(max(last_seq), 0) from outbox.batch where file_uuid = %s", (file_uuid,)
    ).fetchone()
    return 0 if row is None else int(row[0])


def present(connection: psycopg.Connection, rows: Sequence[tuple[int, str, bytes]]) -> set[int]:
    """Of (seq, id, sha): the `seq`s whose content the target holds, as record or as conflict."""
    seqs, ids, shas = zip(*rows, strict=True)
    found = connection.execute(PRESENT, {"seqs": list(seqs), "ids": list(ids), "shas": list(shas)})
    return {seq for (seq,) in found}


def digest(rows: Sequence[Row]) -> bytes:
    """SHA-256 over the ids and contents of a batch, in order."""
    return hashlib.sha256(b"".join(row.id.encode() + row.sha for row in rows)).digest()


def _columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    return {
        "seqs": [row.seq for row in rows],
        "ids": [row.id for row in rows],
        "shas": [row.sha for row in rows],
    }


def _as_json(rows: Sequence[Row]) -> str:
    # The payload is JSON already; put together by hand it is not parsed and written again.
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
