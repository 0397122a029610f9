"""The table `indicators`: one row per bar, computed where closes changed.

`bar_coverage.indicators_from` says since which day a symbol's indicators are behind. They are
computed a calendar year at a time, outside any lock, and a year of many symbols is one transaction:
a rebuild holds the master for a second at a time, and goes on where it was interrupted.
"""

import time
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt

from replica_platform.core.reports import Progress
from replica_platform.market.errors import MarketChanging
from replica_platform.market.indicators import COLUMNS, compute_many, window_start
from replica_platform.market.tables.batches import log_batch, newest_batch
from replica_platform.market.tables.coverage import (
    count_again,
    indicators_behind,
    is_counted,
    make_tables,
)
from replica_platform.market.tables.master import (
    Connection,
    MarketMaster,
    Written,
    columns_of,
    has_table,
    row_count,
    value,
)

ATTEMPTS = 5
# Bars that are computed and written at a time, some 250 each: about 150 MB.
SYMBOL_YEARS = 5_000
TABLE = (
    "create table if not exists indicators (symbol varchar, day date, "
    + ", ".join(f"{name} double" for name in COLUMNS)
    + ")"
)
DIFFERS = " or ".join(f"o.{name} is distinct from i.{name}" for name in COLUMNS)
EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class _Year:
    """The indicators of a year that are to be written.

    Attributes:
        start: The first day, included.
        end: The last day, included.
        symbols: The symbol of each number in `codes`.
        codes: The symbol of each row as a number.
        days: The day of each row, in days since 1970.
        values: Shape (columns, rows).
    """

    start: date
    end: date
    symbols: list[str]
    codes: npt.NDArray[np.integer]
    days: npt.NDArray[np.int32]
    values: npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Change:
    """The rows that a write of a year changed: how many are new, how many differ, the first day."""

    inserted: int
    updated: int
    first_day: date | None


def update_indicators(
    master: MarketMaster, *, rebuild: bool = False, progress: Progress | None = None
) -> Written:
    """Compute the indicators of all bars whose closes changed.

    Args:
        master: The master, with its bars.
        rebuild: Compute all of them again; only rows that differ are written.
        progress: Told the finished years.

    Returns:
        The table after the write.

    Raises:
        MarketChanging: Bars were written during every attempt.
    """
    written = Written("indicators", 0, False)
    with master.read() as connection:
        stale = rebuild or _is_behind_bars(connection)
    if stale:
        with master.write() as connection:
            _mark_behind(connection, everything=rebuild)
    began_with = None
    while (behind := _behind(master)) is not None:
        first, last, symbols = behind
        began_with = began_with or first
        step = max(1, SYMBOL_YEARS // symbols)
        years = range(first, min(first + step - 1, last) + 1)
        written = _write_years(master, years, written)
        if progress:
            progress(years[-1] - began_with + 1, last - began_with + 1, "steps")
    with master.read() as connection:
        return replace(
            written,
            rows=row_count(connection, "indicators"),
            columns=columns_of(connection, "indicators"),
        )


def _behind(master: MarketMaster) -> tuple[int, int, int] | None:
    """Return the first year that is behind, the last year, and how many symbols are behind."""
    with master.read() as connection:
        if indicators_behind(connection) is None:
            return None
        return connection.execute(
            "select year(min(indicators_from)), year(max(last_day)), count(indicators_from)"
            " from bar_coverage where indicators_from is not null"
        ).fetchone()


def _is_behind_bars(connection: Connection) -> bool:
    """Return whether the tables differ in a way that the coverage does not know.

    After a write by hand, a version without coverage, or another list of indicators.
    """
    if not has_table(connection, "ohlcv"):
        return False
    if not is_counted(connection):
        return True
    if not has_table(connection, "indicators"):
        return indicators_behind(connection) is None and row_count(connection, "ohlcv") > 0
    if [name for name, _ in columns_of(connection, "indicators")] != ["symbol", "day", *COLUMNS]:
        return True
    if indicators_behind(connection) is not None:
        return False
    return row_count(connection, "indicators") != row_count(connection, "ohlcv")


def _mark_behind(connection: Connection, *, everything: bool) -> None:
    """Say which symbols have to be computed again."""
    known = [name for name, _ in columns_of(connection, "indicators")]
    if not has_table(connection, "bar_coverage"):
        connection.execute("drop table if exists indicators")  # of a version with other windows
    if known and known != ["symbol", "day", *COLUMNS]:
        connection.execute("drop table indicators")
    connection.execute(TABLE)
    if not is_counted(connection):
        make_tables(connection)
        count_again(connection)
    connection.execute(
        "delete from indicators i where not exists"
        " (from ohlcv o where o.symbol = i.symbol and o.day = i.day)"
    )
    connection.execute(
        """
        update bar_coverage c set indicators_from = c.first_day
        where $1 or c.bars <>
            coalesce((select count(*) from indicators i where i.symbol = c.symbol), 0)
        """,
        [everything],
    )


def _write_years(master: MarketMaster, years: range, written: Written) -> Written:
    """Compute some years and write what differs; again if bars were written meanwhile."""
    for _ in range(ATTEMPTS):
        with master.read() as connection:
            batch = newest_batch(connection, "ohlcv")
            computed = [_compute_year(connection, year) for year in years]
        with master.write() as connection:
            began = time.monotonic()
            if newest_batch(connection, "ohlcv") != batch:
                continue
            changes = [_merge(connection, year) for year in computed]
            inserted = sum(change.inserted for change in changes)
            updated = sum(change.updated for change in changes)
            days = [change.first_day for change in changes] + [written.first_day]
            first_day = min((day for day in days if day), default=None)
            if inserted or updated:
                log_batch(
                    connection,
                    "indicators",
                    first_day=first_day,
                    inserted=inserted,
                    updated=updated,
                    total=row_count(connection, "indicators"),
                )
            return replace(
                written,
                changed=written.changed or bool(inserted or updated),
                inserted=written.inserted + inserted,
                updated=written.updated + updated,
                first_day=first_day,
                held_s=written.held_s + time.monotonic() - began,
            )
    raise MarketChanging(
        f"Bars were written {ATTEMPTS} times while their indicators of {years[0]} were computed; "
        "nothing was written. Run this again when the other writer has finished."
    )


def _compute_year(connection: Connection, year: int) -> _Year:
    """Return the indicators of a year, for the symbols that are behind in it."""
    end = date(year, 12, 31)
    connection.execute(
        """
        create or replace temp table behind as
        select symbol, (row_number() over (order by symbol) - 1)::integer as code,
            indicators_from
        from bar_coverage where indicators_from <= ?
        """,
        [end],
    )
    symbols = [
        row[0] for row in connection.execute("select symbol from behind order by code").fetchall()
    ]
    bars = connection.execute(
        """
        select code, (day - date '1970-01-01')::integer as day, close,
            day >= greatest(indicators_from, $start) as wanted
        from ohlcv join behind using (symbol) where day between $window and $end
        """,
        {"start": date(year, 1, 1), "window": window_start(year), "end": end},
    ).fetchnumpy()
    connection.execute("drop table behind")
    # Days count from the window's first one, so that they fit 16 bits, as most numbers of symbols
    # do: numpy sorts these by radix.
    since = (window_start(year) - EPOCH).days
    by_day = np.argsort((_plain(bars["day"]) - since).astype(np.int16), kind="stable")
    codes, wanted = _plain(bars["code"])[by_day], _plain(bars["wanted"])[by_day]
    if len(symbols) <= np.iinfo(np.int16).max:
        codes = codes.astype(np.int16)
    closes = np.ascontiguousarray(_plain(bars["close"])[by_day], dtype=np.float64)
    values = compute_many(codes, closes, wanted)
    days = _plain(bars["day"])[by_day][wanted]
    return _Year(date(year, 1, 1), end, symbols, codes[wanted], days, values)


def _plain(column: Any) -> npt.NDArray[Any]:
    """Return a column as an array; a null close becomes NaN."""
    if isinstance(column, np.ma.MaskedArray):
        return np.asarray(column.filled(np.nan if column.dtype.kind == "f" else 0))
    return np.asarray(column)


def _merge(connection: Connection, year: _Year) -> _Change:
    """Write the rows of a year that are new or differ."""
    connection.execute(TABLE)
    named = {name: values for name, values in zip(COLUMNS, year.values, strict=True)}
    rows = {"code": year.codes, "day": year.days, **named}  # noqa: F841  (DuckDB reads it by name)
    connection.execute("create or replace temp table codes (code integer, symbol varchar)")
    connection.execute(
        "insert into codes select generate_subscripts($1, 1) - 1, unnest($1)", [year.symbols]
    )
    incoming = (
        "select c.symbol, (date '1970-01-01' + r.day)::date as day,"
        f" {', '.join('r.' + name for name in COLUMNS)} from rows r join codes c using (code)"
    )
    bounds = {"low": year.start, "high": year.end}
    existing = value(
        connection, "select count(*) from indicators where day between $low and $high", bounds
    )
    inserted, updated, first_day = len(year.codes), 0, None
    if existing:
        connection.execute(
            f"""
            create or replace temp table changed as
            select i.*, o.symbol is not null as known from ({incoming}) i
            left join (from indicators where day between $low and $high) o using (symbol, day)
            where o.symbol is null or {DIFFERS}
            """,
            bounds,
        )
        updated = int(value(connection, "select count(*) from changed where known"))
        if updated:
            connection.execute(
                "delete from indicators using changed c"
                " where indicators.day between $low and $high and c.known"
                " and indicators.symbol = c.symbol and indicators.day = c.day",
                bounds,
            )
        inserted = int(value(connection, "select count(*) from changed")) - updated
        first_day = value(connection, "select min(day) from changed")
        connection.execute(
            "insert into indicators select * exclude (known) from changed order by day, symbol"
        )
        connection.execute("drop table changed")
    elif inserted:
        first_day = date.fromordinal(EPOCH.toordinal() + int(year.days.min()))
        connection.execute(f"insert into indicators {incoming} order by day, symbol")
    connection.execute("drop table codes")
    connection.execute(
        """
        update bar_coverage set indicators_from =
            case when last_day > $high then $high::date + 1 end
        where indicators_from <= $high
        """,
        {"high": year.end},
    )
    return _Change(inserted, updated, first_day)
