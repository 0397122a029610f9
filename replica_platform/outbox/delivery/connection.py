"""The way to the target: one connection a drain, made when needed and again after it broke."""

import psycopg

from replica_platform.core import postgres
from replica_platform.outbox.delivery import target as landing


class Target:
    """The one connection of a drain. Errors: as `postgres.connect`, and `DeadlinePassed`."""

    def __init__(self, dsn: str, deadline_s: float) -> None:
        self._dsn = dsn
        self._deadline_s = deadline_s
        self._connection: psycopg.Connection | None = None
        self._away: postgres.CannotConnect | None = None

    def connect(self) -> psycopg.Connection:
        if self._connection is not None and not self._connection.broken:
            return self._connection
        self.close()
        if self._away is not None:
            raise self._away  # waiting for the same server once for each of fifty files
        try:
            connection = postgres.connect(
                self._dsn, application_name="replica outbox drain", autocommit=True
            )
        except postgres.CannotConnect as error:
            self._away = error
            raise
        self._connection = connection
        with postgres.deadline(connection, self._deadline_s):
            landing.prepare(connection, self._deadline_s)
        return connection

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
