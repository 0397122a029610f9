"""The snapshot that a sync reads the source at, the session that holds it, and its identity.

The tables are locked before the snapshot is taken: TRUNCATE and rewriting ALTERs are not bound to
snapshots, so they either end before it or wait until the read is over.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from replica_platform.core.errors import PlatformError
from replica_platform.core.postgres import one_row, one_value
from replica_platform.xmin.errors import (
    MissingGrant,
    NoSuchTable,
    NotFlushed,
    translate_errors,
    translated,
)
from replica_platform.xmin.names import TableName
from replica_platform.xmin.session import close_session, end_session, open_source
from replica_platform.xmin.source.catalog import SourceTable, describe
from replica_platform.xmin.source.start_point import StartPoint, parse_lsn, read_start_point
from replica_platform.xmin.source.timestamp import next_start

FLUSH_TIMEOUT_S = 30
FORCE_FLUSH_AFTER_S = 0.3
LOW32 = 4294967295
# age() is a signed 32-bit distance; the margin is what may pass during a read.
FARTHEST = 2**31 - 10_000_000
LOCKABLE_KINDS = "rpv"  # tables, partitioned tables, views


@dataclass(frozen=True)
class Identity:
    """The history, of one database, that xids belong to.

    Attributes:
        system: The server's system identifier.
        timeline: Its timeline, which a promotion changes.
        database: The database's oid.
        name: The database's name; empty in watermarks of versions that did not keep it.
        former: In a watermark: the servers the source table was on before, see `target.owner`.
    """

    system: str
    timeline: int
    database: int
    name: str = field(default="", compare=False)
    former: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Snapshot:
    """What the snapshot of a sync sees.

    Attributes:
        text: `xmin:xmax:xip`; equal texts under one identity see the same rows.
        w: The oldest xid that may still be running; every older one has ended.
        next: One more than the newest xid that has ended; every xid seen is below it.
        insert_lsn: All that is seen was written below it; None on a standby.
        exported: Its name for other sessions.
        identity: The history that its xids belong to.
        lsn: Like `insert_lsn`, in bytes, and on a standby how far it had replayed.
    """

    text: str
    w: int
    next: int
    insert_lsn: str | None
    exported: str
    identity: Identity
    lsn: int = 0

    @property
    def quiet(self) -> bool:
        """Whether no transaction with an xid was running."""
        return self.w == self.next


_SNAPSHOT = """
-- W and the rows must come from the same snapshot: this one.
select s::text, pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint,
       pg_export_snapshot(), pg_is_in_recovery(),
       (select system_identifier::text from pg_control_system()),
       (select oid::bigint from pg_database where datname = current_database()),
       current_database()::text
from (select pg_current_snapshot() as s) s
"""
# Right after a promotion the control file still names the old timeline. The name of a WAL file is
# right by then, but has no meaning during recovery.
_TIMELINE = """
select ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int,
       pg_current_wal_insert_lsn()::text, pg_current_wal_insert_lsn()::text
"""
_TIMELINE_STANDBY = """
select greatest((select timeline_id from pg_control_checkpoint()),
                (select min_recovery_end_timeline from pg_control_recovery())), null,
       pg_last_wal_replay_lsn()::text
"""
_RESOLVE = """
-- Which of the names exist, their kind, and whether the role may read them, and all their rows.
select w.schema, w.name, c.oid, c.relkind::text, has_schema_privilege(n.oid, 'USAGE'),
       has_table_privilege(c.oid, 'SELECT'), row_security_active(c.oid)
from unnest(%s::text[], %s::text[]) w(schema, name)
left join pg_namespace n on n.nspname = w.schema
left join pg_class c on c.relnamespace = n.oid and c.relname = w.name
     and c.relkind in ('r', 'p', 'v', 'm', 'f')
"""


class SourceSnapshot:
    """The session on the source whose snapshot all rows of a sync are read at.

    While it is open the source keeps row versions that it could remove otherwise: close it as soon
    as the read is over.

    Attributes:
        dsn: The source.
        connection: The session.
        snapshot: The snapshot, once `begin` has taken it.
        tables: The tables as the snapshot sees them, by name.
        failures: The tables that cannot be read, each with its error.
        running_since: A time before the start of any transaction that the snapshot does not see,
            for reading by timestamp.
        start_point: Where the WAL of transactions begins that are newer than this sync.
        held_s: Seconds that the snapshot was held, once it is released.
    """

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.connection = open_source(dsn)
        self.tables: dict[TableName, SourceTable] = {}
        self.failures: dict[TableName, PlatformError] = {}
        self.snapshot: Snapshot
        self.running_since = ""
        self.start_point: StartPoint
        self.held_s = 0.0
        self._taken_at: float | None = None

    def __enter__(self) -> "SourceSnapshot":
        """Return the session itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the session."""
        self.close()

    @property
    def age_s(self) -> float:
        """Seconds since the snapshot was taken; 0 where none is held."""
        return time.monotonic() - self._taken_at if self._taken_at is not None else 0.0

    def release(self) -> None:
        """Release the snapshot and the locks, before anything else is done."""
        end_session(self.connection)
        self._released()

    def close(self) -> None:
        """Close the session, which the server notices soon."""
        close_session(self.connection)
        self._released()

    def _released(self) -> None:
        self.held_s = max(self.held_s, self.age_s)
        self._taken_at = None

    def begin(self, names: Iterable[TableName]) -> None:
        """Lock the tables against rewriting, take the snapshot, and describe them as it sees them.

        A table that is absent or may not be read goes to `failures`; the others are used.
        """
        found = self._resolve(list(names))
        # Before the snapshot: a transaction that ends in between would be seen by neither.
        self.running_since = next_start(self.connection)
        # Before the locks: the snapshot's transaction would keep an `age` of its own.
        self.start_point = read_start_point(self.connection)
        self._lock([name for name, (_, kind) in found.items() if kind in LOCKABLE_KINDS])
        oids = {name: oid for name, (oid, _) in found.items() if name not in self.failures}
        self._taken_at = time.monotonic()
        self.snapshot = self._take()
        described = describe(self.connection, oids.values())
        for name, oid in oids.items():
            if oid in described:
                self.tables[name] = described[oid]
            else:
                self.failures[name] = NoSuchTable(f"{name} was dropped meanwhile; sync again.")

    def _resolve(self, names: list[TableName]) -> dict[TableName, tuple[int, str]]:
        """Return the oid and kind of each table that exists and may be read."""
        rows = self.connection.execute(
            _RESOLVE, [[name.schema for name in names], [name.table for name in names]]
        ).fetchall()
        role = one_value(self.connection.execute("select quote_ident(current_user)"))
        found: dict[TableName, tuple[int, str]] = {}
        for schema, table, oid, kind, usage, select, hidden in rows:
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
            elif hidden:  # the leaves of a partitioned table, which are read, have other policies
                self.failures[name] = MissingGrant(
                    f"A policy of row-level security hides rows of {name} from the source role "
                    f"{role}; run there: ALTER ROLE {role} BYPASSRLS;"
                )
            else:
                found[name] = (oid, kind)
        return found

    def _lock(self, names: list[TableName]) -> None:
        """Begin the transaction and lock the tables: all at once, or else each one it can."""
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
                self.failures[name] = translated(error, "source", name)

    def _take(self) -> Snapshot:
        run = self.connection.execute
        text, w, upper, exported, recovery, system, database, name = one_row(run(_SNAPSHOT))
        timeline, insert, lsn = one_row(run(_TIMELINE_STANDBY if recovery else _TIMELINE))
        identity = Identity(system, timeline, database, name)
        return Snapshot(text, w, upper, insert, exported, identity, parse_lsn(lsn))

    def wait_until_flushed(self) -> None:
        """Wait until all that the snapshot sees would survive a crash of the source.

        After a crash the xids of transactions that never reached the disk are given out again,
        below a W that has counted them as ended.

        Raises:
            NotFlushed: The source did not flush its WAL in time.
        """
        lsn = self.snapshot.insert_lsn
        began = time.monotonic()
        forced = False
        while lsn is not None:
            query = "select pg_current_wal_flush_lsn() >= %s::pg_lsn"
            if one_value(self.connection.execute(query, [lsn])):
                return
            waited = time.monotonic() - began
            if waited > FLUSH_TIMEOUT_S:
                raise NotFlushed(
                    f"The source did not flush its WAL up to {lsn} in {FLUSH_TIMEOUT_S} s; "
                    "check that its disk is not full or stuck, then sync again."
                )
            if waited > FORCE_FLUSH_AFTER_S and not forced:
                forced = True
                self._force_flush()
            time.sleep(0.01)

    def _force_flush(self) -> None:
        """Make an idle server flush a half-filled page, which its WAL writer may delay for long."""
        with suppress(psycopg.Error, PlatformError), open_source(self.dsn) as other:
            if other.info.server_version >= 170000:
                other.execute("select pg_logical_emit_message(false, 'replica_platform', '', true)")
            else:  # costs an xid: only a commit flushes
                other.execute("set synchronous_commit = local")
                other.execute("select pg_logical_emit_message(true, 'replica_platform', '')")


@dataclass
class HeldSnapshots:
    """How long the snapshots of one sync were held.

    Attributes:
        count: How many there were.
        longest_s: Seconds of the longest one.
    """

    count: int = 0
    longest_s: float = 0.0

    @contextmanager
    def noting(self, source: SourceSnapshot) -> Iterator[None]:
        """Take note of one snapshot."""
        try:
            yield
        finally:
            noted = self.including(source)
            self.count, self.longest_s = noted.count, noted.longest_s

    def including(self, source: SourceSnapshot) -> "HeldSnapshots":
        """Return the same with a snapshot that may still be held."""
        return HeldSnapshots(self.count + 1, max(self.longest_s, source.held_s, source.age_s))


def open_reader(dsn: str, snapshot: Snapshot) -> psycopg.Connection:
    """Open another session on the source that sees exactly the rows of the snapshot."""
    connection = open_source(dsn)
    try:
        with translate_errors("source", "its tables"):
            connection.execute("begin isolation level repeatable read read only")
            connection.execute(
                sql.SQL("set transaction snapshot {}").format(sql.Literal(snapshot.exported))
            )
    except BaseException:
        connection.close()
        raise
    return connection
