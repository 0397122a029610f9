"""The connection to the target: its transactions with their settings, and its tables.

A transaction pooler may stand between, which gives each transaction another session. So no lock
and no setting outlives its transaction, and no statement is prepared. The SQL of a delivery does
not belong here (see `statements`, `ledger`).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from replica_platform.core import postgres

SCHEMA_LOCK = 0x6F7574626F78  # "outbox"

SCHEMA = """
create schema if not exists outbox;
create table if not exists outbox.record (
    id uuid primary key, file_uuid uuid not null, seq bigint not null, kind text not null,
    payload jsonb not null, payload_sha bytea not null, created_at timestamptz not null,
    landed_at timestamptz not null default now()
);
-- Half of each page stays empty, so that an update needs no new index entry.
create table if not exists outbox.chain (
    file_uuid uuid primary key, number bigint not null, chain bytea not null,
    previous bytea not null, last_seq bigint not null, landed bigint not null,
    moved_at timestamptz not null default now()
) with (fillfactor = 50);
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

# With `synchronous_commit=off` a correct outbox lost 313 rows. The transaction of a killed drain
# must not keep its locks, so the server ends silent ones. A wait for a lock ends first, so that it
# is not mistaken for a slow row, and a statement ends before the connection is cut.
STATEMENT_SHARE = 0.8  # of the deadline
LOCK_SHARE = 0.5
SETTINGS = """
select set_config('synchronous_commit', case when current_setting('synchronous_commit')
        in ('off', 'local') then 'on' else current_setting('synchronous_commit') end, true),
    set_config('statement_timeout', %(statement)s, true),
    set_config('lock_timeout', %(lock)s, true),
    set_config('idle_in_transaction_session_timeout', %(limit)s, true)
"""


class Target:
    """The one connection of a drain, opened when it is needed and again after it broke.

    Args:
        dsn: The connection string of the target.
        deadline_s: The limit of each statement, of each wait for a lock, and of silence.
    """

    def __init__(self, dsn: str, deadline_s: float) -> None:
        self._dsn = dsn
        self._deadline_s = deadline_s
        self._connection: psycopg.Connection | None = None
        self._unreachable: postgres.CannotConnect | None = None

    def check(self) -> None:
        """Close a kept connection that the server has ended; forget that it was unreachable."""
        self._unreachable = None
        if self._connection is None:
            return
        try:
            with postgres.deadline(self._connection, self._deadline_s):
                self._connection.execute("select 1")
        except (psycopg.Error, postgres.DeadlinePassed):
            self.close()

    def connect(self) -> psycopg.Connection:
        """Return the open connection, in autocommit, to a target that has the tables.

        Raises:
            CannotConnect: The server does not answer, or did not the first time.
            BadDsn: The connection string is malformed.
            DeadlinePassed: The server went silent.
        """
        if self._connection is not None and not self._connection.broken:
            return self._connection
        self.close()
        if self._unreachable is not None:
            raise self._unreachable  # fifty files must not each wait for the same server
        try:
            connection = postgres.connect(
                self._dsn, application_name="replica outbox drain", autocommit=True
            )
        except postgres.CannotConnect as error:
            self._unreachable = error
            raise
        connection.prepare_threshold = None
        self._connection = connection
        with begin(connection, self._deadline_s):
            create_tables(connection)
        return connection

    def close(self) -> None:
        """Close the connection; `connect` opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


@contextmanager
def begin(connection: psycopg.Connection, deadline_s: float) -> Iterator[None]:
    """Run the block in a durable transaction; cut the connection after `deadline_s`."""
    with postgres.deadline(connection, deadline_s), transaction(connection, deadline_s):
        yield


@contextmanager
def transaction(connection: psycopg.Connection, deadline_s: float) -> Iterator[None]:
    """Run the block in a durable transaction whose statements the server ends in time."""
    with connection.transaction():
        set_local(connection, deadline_s)
        yield


def set_local(connection: psycopg.Connection, deadline_s: float) -> None:
    """Set what durability and the deadline need, until the end of the transaction."""
    limit_ms = deadline_s * 1000
    values = {
        "lock": limit_ms * LOCK_SHARE,
        "statement": limit_ms * STATEMENT_SHARE,
        "limit": limit_ms,
    }
    connection.execute(SETTINGS, {name: str(int(value)) for name, value in values.items()})


def create_tables(connection: psycopg.Connection) -> None:
    """Create the tables of the outbox, inside the caller's transaction, if they are missing."""
    if connection.execute("select to_regclass('outbox.chain')").fetchone() == (None,):
        connection.execute("select pg_advisory_xact_lock(%s)", (SCHEMA_LOCK,))
        connection.execute(SCHEMA)
