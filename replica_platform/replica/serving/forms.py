"""The forms of an answer: rows, an Arrow table or a data frame, from a query or a snapshot."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb

if TYPE_CHECKING:
    import pandas
    import pyarrow


def fetch_rows(cursor: duckdb.DuckDBPyConnection, sql: str, params: Any) -> list[tuple[Any, ...]]:
    """Return the rows of a query."""
    return cursor.execute(sql, params).fetchall()


def fetch_arrow(cursor: duckdb.DuckDBPyConnection, sql: str, params: Any) -> Any:
    """Return the rows of a query as an Arrow table."""
    # As a relation: DuckDB 2.0 copies the rows once more when they come from `execute`.
    return cursor.sql(sql, params=params).to_arrow_table()


def fetch_df(cursor: duckdb.DuckDBPyConnection, sql: str, params: Any) -> Any:
    """Return the rows of a query as a data frame."""
    return cursor.sql(sql, params=params).df()


@dataclass(frozen=True)
class Snapshot:
    """One generation for several queries; see `ReplicaReader.snapshot`.

    Attributes:
        generation: The generation's number.
    """

    generation: int
    _cursor: duckdb.DuckDBPyConnection

    def query(self, sql: str, params: Any = None) -> list[tuple[Any, ...]]:
        """Return the rows of `sql`."""
        return fetch_rows(self._cursor, sql, params)

    def arrow(self, sql: str, params: Any = None) -> "pyarrow.Table":
        """Return the rows of `sql` as an Arrow table."""
        return fetch_arrow(self._cursor, sql, params)

    def df(self, sql: str, params: Any = None) -> "pandas.DataFrame":
        """Return the rows of `sql` as a data frame."""
        return fetch_df(self._cursor, sql, params)
