"""A Postgres database as a Dagster resource: its DSN, and nothing that the pages could show."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class PostgresDatabase:
    """A database by its DSN.

    A plain object instead of a `ConfigurableResource`: Dagster shows and stores the config of
    those, the password of a DSN included, unless it comes from an environment variable, and two
    platforms in one process have only one environment. Functions ask for it as
    `dg.ResourceParam[PostgresDatabase]`.

    Attributes:
        dsn: The connection string; never part of `repr`.
    """

    dsn: str = field(repr=False)
