"""What the tables need of the master, and what a write reports."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any, Protocol

import duckdb

Connection = duckdb.DuckDBPyConnection


class MarketMaster(Protocol):
    """The master: `replica.Master` and the resource `MasterDuckDB` offer this."""

    @property
    def path(self) -> Path:
        """The path of the file; absent before the first write."""

    def read(self) -> AbstractContextManager[Connection]:
        """Open a read-only connection; writers wait for it."""

    def write(self) -> AbstractContextManager[Connection]:
        """Open a read-write connection in one transaction: commit, or roll back on an error."""


@dataclass(frozen=True)
class Written:
    """A table after a write.

    Attributes:
        table: The name of the table.
        rows: The number of its rows.
        changed: Whether the write changed anything.
        columns: The name and DuckDB type of each column.
        inserted: The number of new rows.
        updated: The number of rows whose values changed.
        first_day: The earliest day of these; None where none changed or the table has no days.
        held_s: How long the master was held for writing, in seconds.
        failed: Why each symbol that could not be read failed, by symbol.
    """

    table: str
    rows: int
    changed: bool
    columns: tuple[tuple[str, str], ...] = ()
    inserted: int = 0
    updated: int = 0
    first_day: date | None = None
    held_s: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)


def value(connection: Connection, query: str, parameters: Any = None) -> Any:
    """Return the first column of the first row of a query."""
    row = connection.execute(query, parameters or []).fetchone()
    assert row is not None
    return row[0]


def has_table(connection: Connection, table: str) -> bool:
    """Return whether the master has a table of this name."""
    return bool(
        value(
            connection,
            "select count(*) from duckdb_tables()"
            " where database_name = current_database() and table_name = ?",
            [table],
        )
    )


def columns_of(connection: Connection, table: str) -> tuple[tuple[str, str], ...]:
    """Return the name and type of each column; none where the table is absent."""
    if not has_table(connection, table):
        return ()
    rows = connection.execute(f'describe "{table}"').fetchall()
    return tuple((row[0], row[1]) for row in rows)


def row_count(connection: Connection, table: str) -> int:
    """Return the number of rows; 0 where the table is absent."""
    if not has_table(connection, table):
        return 0
    return int(value(connection, f'select count(*) from "{table}"'))


def newest_day(connection: Connection) -> date | None:
    """Return the last trading day in the table of bars; None while it is empty."""
    if not has_table(connection, "ohlcv"):
        return None
    newest = value(connection, "select max(day) from ohlcv")
    return newest if newest is None else date(newest.year, newest.month, newest.day)


def data_as_of(connection: Connection) -> datetime | None:
    """Return the newest day of the bars, at midnight UTC; None where there are no bars."""
    newest = newest_day(connection)
    return datetime.combine(newest, time(), UTC) if newest else None
