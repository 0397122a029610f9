"""A Postgres database as a Dagster resource: its DSN, hidden from the Dagster UI."""

from dataclasses import dataclass, field

import dagster as dg
from psycopg import sql

from replica_platform.app.entries.base import WrongEntry, environment_dsn
from replica_platform.core.postgres import connect, one_value

# Larger tables are estimated: counting them would take longer than writing to them.
COUNTED_ROWS = 1_000_000


@dataclass(frozen=True)
class PostgresDatabase:
    """A database by its DSN.

    A plain object instead of a `ConfigurableResource`: Dagster shows and stores the
    config of those, passwords included, except what comes from environment variables, and two
    platforms in one process share one environment. Functions ask for it as
    `dg.ResourceParam[PostgresDatabase]`.

    Attributes:
        dsn: The connection string; never part of `repr`.
    """

    dsn: str = field(repr=False)

    def row_count(self, schema: str, table: str) -> int | None:
        """Return the number of rows of a table, None where there is none.

        Of a large table it is an estimate of the server.

        Raises:
            CannotConnect: The database does not answer.
        """
        name = sql.Identifier(schema, table)
        with connect(self.dsn, autocommit=True) as connection:
            estimate = one_value(
                connection.execute(
                    "select (select reltuples::bigint from pg_class where oid = to_regclass(%s))",
                    [name.as_string()],
                )
            )
            if estimate is None:
                return None
            if estimate > COUNTED_ROWS:
                return int(estimate)
            return int(
                one_value(connection.execute(sql.SQL("select count(*) from {}").format(name)))
            )


def database(variable: str | None, default: PostgresDatabase) -> PostgresDatabase:
    """Return the database whose DSN is in an environment variable; `default` for no variable.

    Raises:
        dg.Failure: The variable is not set.
    """
    if variable is None:
        return default
    try:
        return PostgresDatabase(environment_dsn(variable))
    except WrongEntry as error:
        raise dg.Failure(str(error), allow_retries=False) from error
