"""Rules of the master's tables; a broken rule comes with the rows that break it.

Nothing here writes. Each rule is a query for the rows that break it: no row means that it holds.
What a write can break is looked for in the days that were written; `audit_rules` are those for a
candidate.
"""

from dataclasses import dataclass
from datetime import date
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pandas as pd

from replica_platform.market.indicators import COLUMNS, compute_indicators, window_start
from replica_platform.market.sessions import FIRST_SESSION, last_closed_session, sessions
from replica_platform.market.tables.master import has_table

SHOWN = 20
BEGINNING = date(1, 1, 1)
NEVER = date(9999, 12, 31)
# Shares that a set of thousands of symbols loses on an ordinary day; a smaller set loses none.
MOST_LOST = 0.05
MOST_GAPS = 0.01
# Symbols whose indicators are computed again, and the relative difference that is rounding.
SAMPLED = 20
ROUNDING = 1e-9
TABLES = ("symbols", "ohlcv", "indicators", "watchlist")

# {since}: the first day to look at. {last_session}: the last one that closed.
RULES = {
    "symbols": {
        "symbol is unique": "select symbol, count(*) n from symbols group by all having n > 1",
        "every symbol is named": "select symbol from symbols where symbol is null or name is null",
        f"at most {MOST_LOST:.0%} of the symbols are delisted at once": f"""
            select listed, before from (
                select count(*) filter (delisted_on is null) as listed, (
                    select total from batches where table_name = 'symbols'
                    order by batch desc limit 1 offset 1
                ) as before from symbols
            ) where listed < before * {1 - MOST_LOST}
        """,
    },
    "ohlcv": {
        "there are bars": "select 'no bar at all' where not exists (from ohlcv)",
        "one bar a symbol and day": (
            "select symbol, day, count(*) n from ohlcv where day >= {since} group by all"
            " having n > 1"
        ),
        "prices are sane": (
            "select symbol, day, open, high, low, close from ohlcv where day >= {since}"
            " and not coalesce(low > 0 and low <= open and low <= close and high >= open"
            " and high >= close and isfinite(high), false)"
        ),
        "volume is not negative": (
            "select symbol, day, volume from ohlcv where day >= {since}"
            " and not coalesce(volume >= 0, false)"
        ),
        "every symbol is known": (
            "select symbol, bars from bar_coverage anti join symbols using (symbol)"
        ),
        "no bar is of a day that is not over": (
            "select symbol, day from ohlcv where day > {last_session}"
        ),
        "no bar is of a day without a session": (
            "select day, count(*) n from ohlcv anti join sessions using (day)"
            " where day between greatest({since}, {first_session}) and {last_session} group by day"
        ),
        f"no session lacks more than {MOST_GAPS:.0%} of its bars": f"""
            with bars as (
                select day, count(*) as bars from ohlcv where day >= {{since}} group by day
            ), expected as (
                select day, count(*) as expected from sessions
                join bar_coverage on day between first_day and last_day
                where day >= {{since}} group by day
            )
            select day, coalesce(bars, 0) as bars, expected
            from expected left join bars using (day)
            where coalesce(bars, 0) < expected * {1 - MOST_GAPS} order by day
        """,
        "as many bars as were written": """
            select bars, written from (
                select (select count(*) from ohlcv) as bars,
                    (select coalesce(sum(bars), 0) from bar_coverage) as written
            ) where bars <> written
        """,
    },
    "indicators": {
        "one row a bar": (
            "select coalesce(o.symbol, i.symbol) symbol, coalesce(o.day, i.day) as day"
            " from (from ohlcv where day >= {since}) o"
            " full join (from indicators where day >= {since}) i using (symbol, day)"
            " where o.symbol is null or i.symbol is null"
        ),
        "as many rows as bars": """
            select rows, bars from (
                select (select count(*) from indicators) as rows,
                    (select count(*) from ohlcv) as bars
            ) where rows <> bars
        """,
        "none are behind their bars": (
            "select symbol, indicators_from from bar_coverage where indicators_from is not null"
        ),
        "RSI lies between 0 and 100": (
            "select symbol, day, rsi_14 from indicators where day >= {since}"
            " and not isnan(rsi_14) and rsi_14 not between 0 and 100"
        ),
        "bands enclose their middle": (
            "select symbol, day from indicators where day >= {since}"
            " and not isnan(bollinger_middle)"
            " and not bollinger_middle between bollinger_lower and bollinger_upper"
        ),
    },
    "watchlist": {
        "something is watched": "select 'nothing watched' where not exists (from watchlist)",
        "every watched symbol has a price": (
            "select symbol, last_price from watchlist where not coalesce(last_price > 0, false)"
        ),
        "prices are those of the newest bar": (
            "select w.symbol, w.as_of, c.last_day from watchlist w join bar_coverage c"
            " using (symbol) where w.as_of <> c.last_day"
        ),
    },
}
NEEDED = {
    "symbols": ("symbols", "batches"),
    "ohlcv": ("symbols", "ohlcv", "bar_coverage", "batches"),
    "indicators": ("ohlcv", "indicators", "bar_coverage"),
    "watchlist": ("watchlist", "bar_coverage"),
}
NOT_PUBLISHED = f"""(
    select coalesce(min(first_day), date '{NEVER}') from batches
    where batch > (select coalesce(max(batch), 0) from published.batches)
)"""
BY_TALIB = f"{SAMPLED} symbols have the values of TA-Lib"
COMPLETE = "the tables of this version are there"


@dataclass(frozen=True)
class Broken:
    """A broken rule.

    Attributes:
        rule: The rule in words.
        rows: Up to `SHOWN` rows that break it.
    """

    rule: str
    rows: list[tuple[Any, ...]]


def rules_of(table: str) -> list[str]:
    """Return the rules of a table in words."""
    return [*RULES[table], *([BY_TALIB] if table == "indicators" else [])]


def broken_rules(
    connection: duckdb.DuckDBPyConnection, table: str, since: date = BEGINNING
) -> list[Broken]:
    """Return the broken rules of `table`; an empty list where all hold.

    Args:
        connection: The master or a candidate.
        table: One of `TABLES`.
        since: The first day to look at; all days by default.
    """
    missing = [name for name in NEEDED[table] if not has_table(connection, name)]
    if missing:
        return [Broken(COMPLETE, [(name,) for name in missing])]
    last_session = last_closed_session()
    days = sessions(max(since, FIRST_SESSION), last_session)
    connection.register("sessions", pd.DataFrame({"day": pd.to_datetime(pd.Series(days))}))
    words = {
        "since": f"date '{since.isoformat()}'",
        "last_session": f"date '{last_session}'",
        "first_session": f"date '{FIRST_SESSION}'",
    }
    try:
        broken = []
        for rule, query in RULES[table].items():
            rows = connection.execute(f"from ({query.format(**words)}) limit {SHOWN}").fetchall()
            if rows:
                broken.append(Broken(rule, rows))
    finally:
        connection.unregister("sessions")
    if table == "indicators" and (rows := _unlike_talib(connection, since)):
        broken.append(Broken(BY_TALIB, rows))
    return broken


def audit_rules() -> dict[str, str]:
    """Return the rules for a candidate, by sentences that name the table.

    They look at the days that readers do not have yet: `published.batches` is the log of the
    generation that they have. What needs the exchange's calendar or TA-Lib is checked in the
    master.
    """
    words = {"since": NOT_PUBLISHED, "last_session": "current_date", "first_session": "null"}
    return {
        f"{table}: {rule}": query.format(**words)
        for table, rules in RULES.items()
        for rule, query in rules.items()
        if "sessions" not in query
    }


def _unlike_talib(
    connection: duckdb.DuckDBPyConnection, since: date
) -> list[tuple[str, date, str]]:
    """Return where the newest indicators of some symbols differ from TA-Lib's.

    The symbols are others from day to day, so that in time every one has its turn.
    """
    sampled = connection.execute(
        "select symbol, last_day from bar_coverage where last_day >= ?"
        " order by hash(symbol || last_day), symbol limit ?",
        [since, SAMPLED],
    ).fetchall()
    if not sampled:
        return []
    symbols = [symbol for symbol, _ in sampled]
    bars = connection.execute(
        "select symbol, close from ohlcv where symbol in (select unnest($symbols::varchar[]))"
        " and day between $first and $last"
        " and year(day) >= $years[list_position($symbols, symbol)] order by symbol, day",
        {
            "symbols": symbols,
            "years": [window_start(last_day.year).year for _, last_day in sampled],
            "first": min(window_start(last_day.year) for _, last_day in sampled),
            "last": max(last_day for _, last_day in sampled),
        },
    ).fetchnumpy()
    stored = connection.execute(
        f"select symbol, day, {', '.join(COLUMNS)} from indicators where day >= $first"
        " and symbol in (select unnest($symbols::varchar[]))",
        {"symbols": symbols, "first": min(last_day for _, last_day in sampled)},
    ).fetchall()
    newest = {(symbol, day): values for symbol, day, *values in stored}
    differing: list[tuple[str, date, str]] = []
    for symbol, last_day in sampled:
        closes = _filled(bars["close"])[np.asarray(bars["symbol"]) == symbol]
        expected = compute_indicators(closes)
        found = newest.get((symbol, last_day), [None] * len(COLUMNS))
        for name, values, value in zip(COLUMNS, expected, found, strict=True):
            is_value = np.nan if value is None else value
            if not np.isclose(is_value, values[-1], rtol=ROUNDING, atol=ROUNDING, equal_nan=True):
                differing.append((symbol, last_day, name))
    return differing[:SHOWN]


def _filled(column: Any) -> npt.NDArray[np.float64]:
    """Return a column of floats with NaN in place of nulls."""
    return np.ma.filled(np.ma.asarray(column).astype(float), np.nan)
