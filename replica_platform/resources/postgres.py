"""A Postgres database as a Dagster resource: no more than its address."""

import dagster as dg


class PostgresDatabase(dg.ConfigurableResource):
    """A database by its DSN; give an `EnvVar`, so that no password shows in the pages."""

    dsn: str
