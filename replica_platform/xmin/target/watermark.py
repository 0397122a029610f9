"""The watermark: what a finished sync remembers, kept in the target, committed with the rows.

Reading, writing and locking belong here; what a watermark means for the next sync is `decide`'s.
The SQL table is called `mark`.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql

from replica_platform.core.postgres import one_value
from replica_platform.xmin.names import TableName, columns_sql
from replica_platform.xmin.source.snapshot import Identity, Snapshot
from replica_platform.xmin.target.schemas import SCHEMA, create_schema, naming_the_grant

# The first key of all advisory locks of the sync, so that they meet no other program's.
LOCK_SPACE = 0x786D696E  # "xmin"
DELIVERED_CAP = 10_000


@dataclass(frozen=True)
class Watermark:
    """What a finished sync remembers of one target table and its source.

    Attributes:
        target_table: The target table, by which the watermark is found.
        source_table: The source table that was read.
        mode: How it was read.
        w: W of the snapshot: every transaction below it has been delivered.
        next: The snapshot's next xid.
        snapshot: The snapshot as text.
        delivered: The distinct full xids at or above W whose rows were delivered; empty when there
            are more than `DELIVERED_CAP`.
        complete: Whether `delivered` lists all of them.
        identity: The history that the xids belong to.
        fingerprint: The source table's definition.
        leaves: The source's leaves: oid (as text, for JSON) → filenode.
        rows: Rows in the target; None where they were not counted.
        target_oid: The target table's oid.
        deletes: How deletes were found.
        timestamp_from: In mode timestamp: where the next read starts.
        locations: The leaves' files (oid → filenode) in which the target knows the location of each
            row; empty where it does not.
        located_at: The snapshot that `locations` is true of: an earlier version leaves it behind.
        counted_at: When the rows of both sides were last counted.
    """

    target_table: str
    source_table: str
    mode: str
    w: int
    next: int
    snapshot: str
    delivered: tuple[int, ...]
    complete: bool
    identity: Identity
    fingerprint: dict[str, Any]
    leaves: dict[str, int]
    rows: int | None
    target_oid: int
    deletes: str
    timestamp_from: str | None = None
    locations: dict[str, int] = field(default_factory=dict)
    located_at: str | None = None
    counted_at: datetime | None = None


# `lsn` and `history` are no longer used; an earlier version that writes here needs the columns.
_SETUP = f"""
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
alter table {SCHEMA}.mark
    add column if not exists locations jsonb not null default '{{}}',
    add column if not exists located_at text,
    add column if not exists counted_at timestamptz;
create table if not exists {SCHEMA}.block_counts (
    target_table text primary key, snapshot text not null, blocks int not null,
    counts bigint[] not null
);
create table if not exists {SCHEMA}.start_point (
    system text, timeline int, lsn pg_lsn, next_xid bigint not null,
    primary key (system, timeline, lsn)
);
comment on table {SCHEMA}.mark is
    'What each finished sync remembers of its source; written by replica_platform, not by hand.';
"""
_COLUMNS = [column.name for column in fields(Watermark)]
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


def prepare(target: psycopg.Connection) -> None:
    """Create the sync's schema and tables when they are absent, or the newest of them."""
    if one_value(target.execute(f"select to_regclass('{SCHEMA}.start_point') is not null")):
        return
    with naming_the_grant(target, f"{SCHEMA!r}"), target.transaction():
        # CREATE … IF NOT EXISTS fails beside another session that does the same.
        target.execute("select pg_advisory_xact_lock(%s, 0)", [LOCK_SPACE])
        create_schema(target, SCHEMA)  # not where an administrator has made it for the role
        target.execute(_SETUP)


def lock(target: psycopg.Connection, table: TableName) -> bool:
    """Lock a target table until the session ends; return False where another session has it."""
    query = "select pg_try_advisory_lock(%s, hashtext(%s))"
    return bool(one_value(target.execute(query, [LOCK_SPACE, str(table)])))


def lock_all(target: psycopg.Connection, tables: Sequence[TableName]) -> bool:
    """Lock target tables as `lock` does, in one statement; lock none where not all are free."""
    names = [str(table) for table in tables]
    query = (
        "select array_agg(name) filter (where pg_try_advisory_lock(%s, hashtext(name)))"
        " from unnest(%s::text[]) name"
    )
    locked = one_value(target.execute(query, [LOCK_SPACE, names])) or []
    if len(locked) == len(names):
        return True
    unlock = "select pg_advisory_unlock(%s, hashtext(name)) from unnest(%s::text[]) name"
    target.execute(unlock, [LOCK_SPACE, locked])
    return False


def read(target: psycopg.Connection, tables: Iterable[TableName]) -> dict[TableName, Watermark]:
    """Return the watermarks of some target tables, in one statement."""
    names = {str(table): table for table in tables}
    found = {}
    for row in target.execute(_READ.format(**_NAMES), [list(names)]):
        watermark = _from_row(dict(zip(_COLUMNS, row, strict=True)))
        found[names[watermark.target_table]] = watermark
    return found


def _from_row(values: dict[str, Any]) -> Watermark:
    identity = values["identity"]
    return Watermark(
        **{
            **values,
            "delivered": tuple(values["delivered"]),
            "identity": Identity(**{**identity, "former": tuple(identity.get("former", ()))}),
            "timestamp_from": values["timestamp_from"] and str(values["timestamp_from"]),
            # An earlier version writes rows without their locations, and leaves `located_at`.
            "locations": values["locations"] if values["located_at"] == values["snapshot"] else {},
        }
    )


def write(target: psycopg.Connection, watermark: Watermark) -> None:
    """Store a watermark, in the transaction of the rows that it speaks of."""
    values = {
        **watermark.__dict__,
        "delivered": list(watermark.delivered),
        "identity": json.dumps(asdict(watermark.identity)),
        "fingerprint": json.dumps(watermark.fingerprint),
        "leaves": json.dumps(watermark.leaves),
        "locations": json.dumps(watermark.locations),
    }
    target.execute(_WRITE.format(**_NAMES), [values[name] for name in _COLUMNS])


_ADVANCE = """
update {mark} set
    w = %(w)s, next = %(next)s, snapshot = %(snapshot)s, synced_at = clock_timestamp(),
    located_at = case when located_at = snapshot then %(snapshot)s end,
    delivered = array(select xid from unnest(delivered) xid where xid >= %(w)s order by xid),
    complete = complete or %(quiet)s,
    counted_at = case when %(counted)s then clock_timestamp() else counted_at end
where target_table = any(%(tables)s)
"""


def advance(
    target: psycopg.Connection,
    tables: Iterable[TableName],
    snapshot: Snapshot,
    *,
    counted: bool = False,
) -> None:
    """Move the watermarks of tables of which nothing was changed, in one statement.

    Args:
        target: A session on the target.
        tables: The tables.
        snapshot: The snapshot that they were found unchanged at.
        counted: Whether the rows of both sides were counted.
    """
    values = {
        "w": snapshot.w,
        "next": snapshot.next,
        "snapshot": snapshot.text,
        "quiet": snapshot.quiet,
        "counted": counted,
        "tables": [str(table) for table in tables],
    }
    if values["tables"]:
        statement = sql.SQL(_ADVANCE).format(mark=sql.Identifier(SCHEMA, "mark"))
        target.execute(statement, values)


def confirm(target: psycopg.Connection, tables: Iterable[TableName]) -> None:
    """Store that tables were synced now, whose sources had nothing new."""
    if names := [str(table) for table in tables]:
        query = "update {} set synced_at = clock_timestamp() where target_table = any(%s)"
        target.execute(sql.SQL(query).format(sql.Identifier(SCHEMA, "mark")), [names])


def age_s(target: psycopg.Connection, table: TableName) -> float | None:
    """Return the seconds since a table's last sync, by the target's clock; None without one."""
    query = sql.SQL(
        "select extract(epoch from clock_timestamp() - synced_at)::float8 "
        "from {}.mark where target_table = %s"
    )
    row = target.execute(query.format(sql.Identifier(SCHEMA)), [str(table)]).fetchone()
    return float(row[0]) if row else None
