"""The master's tables: symbols → ohlcv → indicators, watchlist; written only when they change.

The caller passes a connection to the master in a transaction; nothing here opens, commits or
closes. A write compares first: an unchanged batch leaves the file as it is, and readers need no
new generation.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any

import duckdb
import pandas as pd

from replica_platform.market.bars import NAMES
from replica_platform.market.indicators import compute_indicators
from replica_platform.market.reader import MarketReader

WATCHED = ("AAPL", "GOOG", "IBM", "MSFT")


@dataclass(frozen=True)
class Written:
    """A table after a write.

    Attributes:
        table: The name of the table.
        rows: The number of its rows.
        changed: Whether the write changed anything.
        columns: The name and DuckDB type of each column.
    """

    table: str
    rows: int
    changed: bool
    columns: tuple[tuple[str, str], ...]


def write_symbols(connection: duckdb.DuckDBPyConnection, bars: pd.DataFrame) -> Written:
    """Write one row per symbol: its name, and the first and last day with a bar."""
    days = bars.groupby("symbol")["day"].agg(first_day="min", last_day="max").reset_index()
    days["name"] = days["symbol"].map(lambda symbol: NAMES.get(symbol, symbol))
    return _write(
        connection,
        "symbols",
        "select symbol, name, first_day::date first_day, last_day::date last_day"
        " from incoming order by symbol",
        days,
    )


def write_ohlcv(connection: duckdb.DuckDBPyConnection, bars: pd.DataFrame) -> Written:
    """Write one bar per symbol and trading day, for the symbols in the table `symbols`."""
    return _write(
        connection,
        "ohlcv",
        "select symbol, day::date as day, open, high, low, close, volume::bigint volume"
        " from incoming semi join symbols using (symbol) order by symbol, day",
        bars,
    )


def write_indicators(connection: duckdb.DuckDBPyConnection) -> Written:
    """Write the technical indicators of every bar; see `indicators`."""
    bars = connection.execute("select symbol, day, close from ohlcv order by symbol, day").df()
    return _write(
        connection,
        "indicators",
        "select symbol, day::date as day, columns(* exclude (symbol, day))::double"
        " from incoming order by symbol, day",
        compute_indicators(bars),
    )


def write_watchlist(connection: duckdb.DuckDBPyConnection) -> Written:
    """Write the symbols that the quote producer follows, with newest close and its change."""
    return _write(
        connection,
        "watchlist",
        """
        with recent as (
            select symbol, day, close, lag(close) over by_day as previous
            from ohlcv where symbol in (select symbol from incoming)
            window by_day as (partition by symbol order by day)
            qualify lead(day) over by_day is null
        )
        select symbol, name, day as as_of, close as last_price, close / previous - 1 as change
        from recent join symbols using (symbol) order by symbol
        """,
        pd.DataFrame({"symbol": WATCHED}),
    )


def read_watchlist(reader: MarketReader) -> pd.DataFrame:
    """Return symbol, name, as_of, last_price and change of the watchlist, by symbol."""
    return reader.df("select * from watchlist order by symbol")


def newest_day(connection: duckdb.DuckDBPyConnection) -> date | None:
    """Return the last trading day in the table of bars; None while it is empty."""
    row = connection.execute("select max(day) from ohlcv").fetchone()
    return row[0] if row else None


def data_as_of(connection: duckdb.DuckDBPyConnection) -> datetime | None:
    """Return the newest day of the bars, at midnight UTC; None where there are no bars."""
    newest = newest_day(connection)
    return datetime.combine(newest, time(), UTC) if newest else None


def _write(
    connection: duckdb.DuckDBPyConnection, table: str, query: str, incoming: pd.DataFrame
) -> Written:
    connection.register("incoming", incoming)
    name = f'"{table}"'
    connection.execute(f"create or replace temp table candidate as {query}")
    connection.unregister("incoming")
    changed = not _same(connection, name)
    if changed:
        connection.execute(f"create or replace table {name} as from candidate")
    columns = connection.execute(f"describe {name}").fetchall()
    rows = _value(connection, f"select count(*) from {name}")
    connection.execute("drop table candidate")
    return Written(table, rows, changed, tuple((column[0], column[1]) for column in columns))


def _same(connection: duckdb.DuckDBPyConnection, name: str) -> bool:
    """Return whether table `name` exists with exactly the rows of `candidate`."""
    try:
        columns = connection.execute(f"describe {name}").fetchall()
    except duckdb.CatalogException:
        return False
    if columns != connection.execute("describe candidate").fetchall():
        return False
    return not _value(
        connection,
        f"select exists (from candidate except all from {name})"
        f" or exists (from {name} except all from candidate)",
    )


def _value(connection: duckdb.DuckDBPyConnection, query: str) -> Any:
    row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]
