"""The master's tables: symbols → ohlcv → indicators, watchlist; written only when they change.

`write_symbols`, `load_bars`, `update_indicators` and `write_watchlist` each take the master, read
what they need, ask their source and compute while nobody waits for them, and hold the master for
writing only to put in what changed. Each write is one transaction and one row of `batches`.
"""

from replica_platform.market.tables.bars import BarsLoaded, has_bars_since, load_bars
from replica_platform.market.tables.indicators import update_indicators
from replica_platform.market.tables.master import MarketMaster, Written, data_as_of, newest_day
from replica_platform.market.tables.symbols import write_symbols
from replica_platform.market.tables.watchlist import read_watchlist, write_watchlist

__all__ = [
    "BarsLoaded",
    "MarketMaster",
    "Written",
    "data_as_of",
    "has_bars_since",
    "load_bars",
    "newest_day",
    "read_watchlist",
    "update_indicators",
    "write_symbols",
    "write_watchlist",
]
