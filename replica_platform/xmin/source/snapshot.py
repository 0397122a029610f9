"""The leader on the source: one lock, one snapshot, and what both say about the server.

The lock comes before the snapshot: TRUNCATE and rewriting ALTERs are not bound to snapshots,
so they are either over before it or wait until the read is done.
"""

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from replica_platform.xmin.errors import MissingGrant, NoSuchTable, NotFlushed
from replica_platform.xmin.names import TableName
from replica_platform.xmin.session import open_source, translate
from replica_platform.xmin.source.catalog import Table, describe
from replica_platform.xmin.source.timestamp import next_start

FLUSH_TIMEOUT_S = 30
NUDGE_AFTER_S = 0.3
LOW32 = 4294967295


@dataclass(frozen=True)
class Identity:
    """Which history of which database the xids belong to."""

    system: str
    timeline: int
    database: int
    name: str = field(default="", compare=False)
    """The database's name; empty in watermarks of versions that did not keep it."""
    former: tuple[str, ...] = field(default=(), compare=False)
    """In a watermark: where the source table was before, see `owner`."""


@dataclass(frozen=True)
class Snapshot:
    """What the leader's snapshot sees."""

    text: str
    """`xmin:xmax:xip`: equal texts under one identity see the same rows."""
    w: int
    next: int
    """Every xid seen is below it."""
    insert_lsn: str | None
    """Everything seen was written below it; None on a standby."""
    exported: str
    identity: Identity

    @property
    def quiet(self) -> bool:
        """Whether no transaction with an xid was running."""
        return self.w == self.next


_SNAPSHOT = """
-- W and the rows come from the same snapshot: this one.
select s::text, pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint,
       pg_export_snapshot(), pg_is_in_recovery(),
       (select system_identifier::text from pg_control_system()),
       (select oid::bigint from pg_database where datname = current_database()),
       current_database()::text
from (select pg_current_snapshot() as s) s
"""
# Right after a promotion the control file still names the old timeline; a WAL file's name does
# not lie, but has no meaning during recovery.
_TIMELINE = """
select ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int,
       pg_current_wal_insert_lsn()::text
"""
_TIMELINE_STANDBY = """
select greatest((select timeline_id from pg_control_checkpoint()),
                (select min_recovery_end_timeline from pg_control_recovery())), null
"""
_RESOLVE = """
-- Which of the names exist, what they are, and whether we may read them.
select w.schema, w.name, c.oid, c.relkind::text, has_schema_privilege(n.oid, 'USAGE'),
       has_table_privilege(c.oid, 'SELECT')
from unnest(%s::text[], %s::text[]) w(schema, name)
left join pg_namespace n on n.nspname = w.schema
left join pg_class c on c.relnamespace = n.oid and c.relname = w.name
     and c.relkind in ('r', 'p', 'v', 'm', 'f')
"""


class Leader:
    """The session whose snapshot everything is read at. Close it as soon as the read is over."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.connection = open_source(dsn)
        self.tables: dict[TableName, Table] = {}
        self.failures: dict[TableName, Exception] = {}
        self.snapshot: Snapshot
        self.running_since = ""
        """Older than any transaction the snapshot does not see; for reading by timestamp."""

    def __enter__(self) -> "Leader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the snapshot and give back the locks."""
        self.connection.close()

    def begin(self, names: Iterable[TableName]) -> None:
        """Lock the tables against rewriting, take the snapshot, describe them under it.

        A table that is not there or may not be read lands in `failures`; the rest goes on.
        """
        oids = self._resolve(list(names))
        run = self.connection.execute
        # Before the snapshot: a transaction that ends in between would be seen by neither.
        self.running_since = next_start(self.connection)
        self._lock([name for name, (_, kind) in oids.items() if kind in "rpv"])
        oids = {name: found for name, found in oids.items() if name not in self.failures}
        text, w, upper, exported, recovery, system, database, datname = _one(run(_SNAPSHOT))
        timeline, lsn = _one(run(_TIMELINE_STANDBY if recovery else _TIMELINE))
        identity = Identity(system, timeline, database, datname)
        self.snapshot = Snapshot(text, w, upper, lsn, exported, identity)
        described = describe(self.connection, [oid for oid, _ in oids.values()])
        for name, (oid, _) in oids.items():
            if oid in described:
                self.tables[name] = described[oid]
            else:
                self.failures[name] = NoSuchTable(f"{name} vanished from the source; try again.")

    def _lock(self, names: list[TableName]) -> None:
        """Begin, and lock all at once; where that fails one by one, so that the rest goes on."""
        begin = "begin isolation level repeatable read read only"
        lock = sql.SQL("lock table {} in access share mode")
        self.connection.execute(begin)
        try:
            if names:
                tables = sql.SQL(", ").join(name.sql for name in names)
                self.connection.execute(lock.format(tables))
            return
        except psycopg.Error:
            self.connection.execute("rollback")
        self.connection.execute(begin)
        for name in names:
            try:
                with self.connection.transaction():
                    self.connection.execute(lock.format(name.sql))
            except psycopg.Error as error:
                self.failures[name] = translate(error, "source", str(name))

    def _resolve(self, names: list[TableName]) -> dict[TableName, tuple[int, str]]:
        rows = self.connection.execute(
            _RESOLVE, [[name.schema for name in names], [name.table for name in names]]
        ).fetchall()
        role = _one(self.connection.execute("select quote_ident(current_user)"))[0]
        found: dict[TableName, tuple[int, str]] = {}
        for schema, table, oid, kind, usage, select in rows:
            name = TableName(schema, table)
            if oid is None:
                self.failures[name] = NoSuchTable(
                    f"The source has no table {name}; check its name (psql: \\d {name})."
                )
            elif not (usage and select):
                grant = (
                    f"GRANT SELECT ON TABLE {name.sql.as_string()} TO {role}"
                    if usage
                    else f"GRANT USAGE ON SCHEMA {sql.Identifier(schema).as_string()} TO {role}"
                )
                self.failures[name] = MissingGrant(
                    f"The source role {role} may not read {name}; run there: {grant};"
                )
            else:
                found[name] = (oid, kind)
        return found

    def wait_until_flushed(self) -> None:
        """Wait until all that was seen would survive a crash of the source.

        After a crash, the xids of transactions that never reached the disk are given out
        again, below a W that had counted them as finished. Errors: `NotFlushed`.
        """
        lsn = self.snapshot.insert_lsn
        began = time.monotonic()
        nudged = False
        while lsn is not None:
            query = "select pg_current_wal_flush_lsn() >= %s::pg_lsn"
            if _one(self.connection.execute(query, [lsn]))[0]:
                return
            waited = time.monotonic() - began
            if waited > FLUSH_TIMEOUT_S:
                raise NotFlushed(
                    f"The source did not flush its WAL up to {lsn} in {FLUSH_TIMEOUT_S} s; "
                    "check that its disk is not full or stuck, then sync again."
                )
            if waited > NUDGE_AFTER_S and not nudged:
                nudged = True
                self._nudge()
            time.sleep(0.01)

    def _nudge(self) -> None:
        """Make an idle server flush a half-filled page, which its WAL writer may leave for long."""
        with suppress(psycopg.Error), open_source(self.dsn) as other:
            if other.info.server_version >= 170000:
                other.execute("select pg_logical_emit_message(false, 'replica_platform', '', true)")
            else:  # costs an xid: only a commit flushes
                other.execute("set synchronous_commit = local")
                other.execute("select pg_logical_emit_message(true, 'replica_platform', '')")


def reader(dsn: str, snapshot: Snapshot) -> psycopg.Connection:
    """Another session that sees exactly what the leader sees."""
    connection = open_source(dsn)
    connection.execute("begin isolation level repeatable read read only")
    connection.execute(
        sql.SQL("set transaction snapshot {}").format(sql.Literal(snapshot.exported))
    )
    return connection


def _one(cursor: psycopg.Cursor) -> tuple[Any, ...]:
    row = cursor.fetchone()
    assert row is not None
    return row
