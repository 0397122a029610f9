"""The master DuckDB file as a Dagster resource: connections to read and to write."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import duckdb
from dagster_duckdb import DuckDBResource

from replica_platform.replica import Master


class MasterDuckDB(DuckDBResource):
    """The one writable DuckDB file; take the pool `master` to write to it.

    Dagster's own resource leaks the write lock when the body of its `with` raises, and has no
    read-only connection. Here `get_connection` is the same as `write`.
    """

    @property
    def path(self) -> Path:
        """The path of the file."""
        return Path(self.database)

    def write(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """Open a read-write connection in one transaction: commit, or roll back on an error."""
        return Master(self.path).write()

    def read(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """Open a read-only connection."""
        return Master(self.path).read()

    @contextmanager
    def get_connection(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open the same connection as `write`."""
        with self.write() as connection:
            yield connection
