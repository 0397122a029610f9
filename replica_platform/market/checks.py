"""Rules of the master's tables; a broken rule comes with the rows that break it.

Nothing here writes. Each rule is a query for the rows that break it: no row means that it holds.
"""

from dataclasses import dataclass
from typing import Any

import duckdb

SHOWN = 20

RULES = {
    "symbols": {
        "symbol is unique": "select symbol, count(*) n from symbols group by all having n > 1",
        "every symbol is named": "select symbol from symbols where symbol is null or name is null",
    },
    "ohlcv": {
        "there are bars": "select 'no bar at all' where not exists (from ohlcv)",
        "one bar a symbol and day": (
            "select symbol, day, count(*) n from ohlcv group by all having n > 1"
        ),
        "prices are sane": (
            "select symbol, day, open, high, low, close from ohlcv where not coalesce("
            "low > 0 and low <= open and low <= close and high >= open and high >= close"
            " and isfinite(high), false)"
        ),
        "volume is not negative": (
            "select symbol, day, volume from ohlcv where not coalesce(volume >= 0, false)"
        ),
        "every symbol has bars": "from symbols anti join ohlcv using (symbol) select symbol",
    },
    "indicators": {
        "one row a bar": (
            "select coalesce(o.symbol, i.symbol) symbol, coalesce(o.day, i.day) as day"
            " from ohlcv o full join indicators i using (symbol, day)"
            " where o.symbol is null or i.symbol is null"
        ),
        "RSI lies between 0 and 100": (
            "select symbol, day, rsi_14 from indicators"
            " where not isnan(rsi_14) and rsi_14 not between 0 and 100"
        ),
        "bands enclose their middle": (
            "select symbol, day from indicators where not isnan(bollinger_middle)"
            " and not bollinger_middle between bollinger_lower and bollinger_upper"
        ),
    },
    "watchlist": {
        "something is watched": "select 'nothing watched' where not exists (from watchlist)",
        "every watched symbol has a price": (
            "select symbol, last_price from watchlist where not coalesce(last_price > 0, false)"
        ),
        "prices are those of the newest bar": (
            "select w.symbol, w.as_of, max(o.day) newest from watchlist w join ohlcv o"
            " using (symbol) group by all having w.as_of <> newest"
        ),
    },
}


@dataclass(frozen=True)
class Broken:
    """A broken rule.

    Attributes:
        rule: The rule in words.
        rows: Up to `SHOWN` rows that break it.
    """

    rule: str
    rows: list[tuple[Any, ...]]


def broken_rules(connection: duckdb.DuckDBPyConnection, table: str) -> list[Broken]:
    """Return the broken rules of `table`; an empty list where all hold."""
    broken = []
    for rule, query in RULES[table].items():
        rows = connection.execute(f"from ({query}) limit {SHOWN}").fetchall()
        if rows:
            broken.append(Broken(rule, rows))
    return broken
