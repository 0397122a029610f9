"""A Postgres database as a Dagster resource: its DSN, hidden from the Dagster UI."""

from dataclasses import dataclass, field


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
