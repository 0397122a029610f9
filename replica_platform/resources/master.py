"""The master DuckDB file as a Dagster resource: read and write, closed whatever happens."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import duckdb
from dagster_duckdb import DuckDBResource

from replica_platform.replica import Master


class MasterDuckDB(DuckDBResource):
    """The one writable DuckDB file; hold the pool `master` to write to it.

    Dagster's own resource leaks the write lock when a body raises, and knows no read-only
    connection; `get_connection` here is `write`.
    """

    @property
    def path(self) -> Path:
        """Where the file is."""
        return Path(self.database)

    def write(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """A read-write connection in one transaction: committed, or rolled back on an error."""
        return Master(self.path).write()

    def read(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """A read-only connection."""
        return Master(self.path).read()

    @contextmanager
    def get_connection(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """The same as `write`."""
        with self.write() as connection:
            yield connection
