"""The mark: what a finished sync remembers, kept in the target, committed with the rows.

Reading and writing marks belongs here; what they mean for the next sync is `plan`'s.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

import psycopg
from psycopg import sql

from replica_platform.xmin.names import columns_sql
from replica_platform.xmin.session import may_create
from replica_platform.xmin.source.snapshot import Identity

SCHEMA = "replica_platform"
# One number for our advisory locks' first key, so that they meet nobody else's.
LOCK_SPACE = 0x786D696E  # "xmin"
DELIVERED_CAP = 10_000


@dataclass(frozen=True)
class Mark:
    """`(W, delivered xids, identity, fingerprint, leaves)` and what helps to check them."""

    target_table: str
    source_table: str
    mode: str
    w: int
    next: int
    snapshot: str
    delivered: tuple[int, ...]
    """Distinct full xids >= W seen by then; capped, and then `complete` is False."""
    complete: bool
    identity: Identity
    fingerprint: dict[str, Any]
    leaves: dict[str, int]
    """oid (as text, for JSON) → filenode."""
    rows: int | None
    """Rows in the target; None where they were not counted."""
    target_oid: int
    deletes: str
    timestamp_from: str | None = None
    """Timestamp mode: where the next read starts."""


# `lsn` and `history` are no longer used; an earlier version that writes here needs the columns.
_SETUP = f"""
create schema if not exists {SCHEMA};
create table if not exists {SCHEMA}.mark (
    target_table text primary key,
    source_table text not null,
    mode text not null,
    w bigint not null,
    next bigint not null check (next >= w),
    snapshot text not null,
    delivered bigint[] not null,
    complete boolean not null,
    identity jsonb not null,
    fingerprint jsonb not null,
    leaves jsonb not null,
    lsn pg_lsn,
    rows bigint check (rows >= 0),
    target_oid oid not null,
    deletes text not null,
    timestamp_from timestamptz,
    history jsonb not null default '[]',
    synced_at timestamptz not null default clock_timestamp()
);
create unlogged table if not exists {SCHEMA}.first_copy (
    target_table text, part text, state jsonb not null, primary key (target_table, part)
);
comment on table {SCHEMA}.mark is
    'What each finished sync remembers of its source; written by replica_platform, not by hand.';
"""
_COLUMNS = [column.name for column in fields(Mark)]
_READ = sql.SQL("select {columns} from {schema}.mark where target_table = any(%s)")
_WRITE = sql.SQL(
    "insert into {schema}.mark ({columns}) values ({values}) "
    "on conflict (target_table) do update set "
    "({columns}, synced_at) = ({excluded}, clock_timestamp())"
)
_NAMES = {
    "schema": sql.Identifier(SCHEMA),
    "columns": columns_sql(_COLUMNS),
    "values": sql.SQL(", ").join([sql.Placeholder()] * len(_COLUMNS)),
    "excluded": columns_sql(_COLUMNS, "excluded"),
}


def prepare(connection: psycopg.Connection) -> None:
    """Make the schema and the table of marks when they are absent."""
    found = connection.execute(f"select to_regclass('{SCHEMA}.first_copy') is not null").fetchone()
    if found and found[0]:
        return
    with may_create(connection, "the marks"), connection.transaction():
        # CREATE … IF NOT EXISTS is no match for a twin that does the same at the same time.
        connection.execute("select pg_advisory_xact_lock(%s, 0)", [LOCK_SPACE])
        connection.execute(_SETUP)


def read(connection: psycopg.Connection, targets: Iterable[str]) -> dict[str, Mark]:
    """The marks of some target tables, in one statement."""
    marks = {}
    for row in connection.execute(_READ.format(**_NAMES), [list(targets)]):
        values = dict(zip(_COLUMNS, row, strict=True))
        values["delivered"] = tuple(values["delivered"])
        values["identity"] = Identity(
            **{**values["identity"], "former": tuple(values["identity"].get("former", ()))}
        )
        values["timestamp_from"] = values["timestamp_from"] and str(values["timestamp_from"])
        marks[values["target_table"]] = Mark(**values)
    return marks


def write(connection: psycopg.Connection, mark: Mark) -> None:
    """Store a mark, in the transaction of the rows that it speaks of."""
    values = {**mark.__dict__, "delivered": list(mark.delivered)}
    for name in ("identity", "fingerprint", "leaves"):
        value = values[name]
        values[name] = json.dumps(asdict(value) if isinstance(value, Identity) else value)
    connection.execute(_WRITE.format(**_NAMES), [values[name] for name in _COLUMNS])


def lock(connection: psycopg.Connection, target: str) -> bool:
    """Hold the target table for this session until it ends; False where another one has it."""
    query = "select pg_try_advisory_lock(%s, hashtext(%s))"
    row = connection.execute(query, [LOCK_SPACE, target]).fetchone()
    return bool(row and row[0])


def age_s(connection: psycopg.Connection, target: str) -> float | None:
    """Seconds since the target table's last sync, by the target's clock; None without a mark."""
    query = sql.SQL(
        "select extract(epoch from clock_timestamp() - synced_at)::float8 "
        "from {}.mark where target_table = %s"
    )
    row = connection.execute(query.format(sql.Identifier(SCHEMA)), [target]).fetchone()
    return float(row[0]) if row else None
