"""The connection to the target: its session settings, and the lock of a file.

The SQL of a delivery does not belong here (see `statements`).
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from replica_platform.core import postgres
from replica_platform.outbox.delivery import statements

LOCK = "select pg_try_advisory_lock(%s)"


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
        """Return the open connection, with its session prepared.

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
        self._connection = connection
        with postgres.deadline(connection, self._deadline_s):
            prepare_session(connection, self._deadline_s)
        return connection

    def close(self) -> None:
        """Close the connection; `connect` opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def prepare_session(connection: psycopg.Connection, deadline_s: float) -> None:
    """Set what durability and the deadline need of an autocommit session; create the tables.

    With `synchronous_commit=off` a correct outbox lost 313 rows, so it is set to on. The session
    of a killed drain must not keep its lock, so the server ends silent sessions.
    """
    limit_ms = f"{int(deadline_s * 1000)}"
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
            connection.execute("select set_config(%s, %s, false)", (name, limit_ms))
        statements.create_tables(connection)


@contextmanager
def file_lock(connection: psycopg.Connection, file_uuid: str, deadline_s: float) -> Iterator[bool]:
    """Hold the advisory lock of a file during the block; yield False if another drain holds it.

    The lock avoids duplicate work; correctness does not depend on it. It ends with the connection.
    """
    key = int.from_bytes(hashlib.sha256(file_uuid.encode()).digest()[:8], "big", signed=True)
    with postgres.deadline(connection, deadline_s):
        row = connection.execute(LOCK, (key,)).fetchone()
    is_ours = row == (True,)
    try:
        yield is_ours
    finally:
        if is_ours and not connection.closed and not connection.broken:
            with postgres.deadline(connection, deadline_s):
                connection.execute("select pg_advisory_unlock(%s)", (key,))
