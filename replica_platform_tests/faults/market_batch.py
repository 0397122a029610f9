"""The market's batch in a loop, one more day each time, until it is killed.

    python -m replica_platform_tests.faults.market_batch MASTER STORE

Prints a line after each publication.
"""

import sys
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from replica_platform.market.checks import TABLES, broken_rules
from replica_platform.market.sessions import sessions
from replica_platform.market.sources import Fetched
from replica_platform.market.tables import (
    load_bars,
    newest_day,
    update_indicators,
    write_symbols,
    write_watchlist,
)
from replica_platform.market.watch import WatchRules
from replica_platform.replica import Master, publish

SYMBOLS = [f"S{number:02d}" for number in range(20)]
FIRST = date(2015, 1, 2)


class ByFormula:
    """Bars that depend on symbol and day alone; so a batch that was killed finds the same."""

    name, first_day = "by formula", FIRST

    def __init__(self, last: date) -> None:
        self.expected_day = last

    def symbols(self) -> pd.DataFrame:
        return pd.DataFrame({"symbol": SYMBOLS, "name": SYMBOLS, "exchange": "XNAS"})

    def bars(self, symbols: Sequence[str], start: date, end: date) -> Fetched:
        days = sessions(start, min(end, self.expected_day))
        numbers = np.array([SYMBOLS.index(symbol) for symbol in symbols])
        closes = np.array([50 + numbers + 5 * np.sin(d.toordinal() / 9 + numbers) for d in days])
        closes = np.round(closes, 2).ravel()
        frame = pd.DataFrame(
            {
                "symbol": np.tile(np.array(symbols, dtype=object), len(days)),
                "day": np.repeat(pd.to_datetime(pd.Series(days)).to_numpy(), len(symbols)),
                "open": closes,
                "high": closes + 1,
                "low": closes - 1,
                "close": closes,
                "volume": 1000,
            }
        )
        return Fetched(frame)


def one_more_day(master: Master, store: Path) -> int:
    """Run the batch up to the session after the newest bar, and publish; return the generation."""
    newest = None
    if master.path.exists():
        with master.read() as connection:
            newest = newest_day(connection)
    last = FIRST + timedelta(days=200)
    if newest is not None:
        last = sessions(newest + timedelta(days=1), newest + timedelta(days=10))[0]
    source = ByFormula(last)
    write_symbols(master, source)
    load_bars(master, source)
    update_indicators(master)
    write_watchlist(master, WatchRules())
    with master.read() as connection:
        for table in TABLES:
            assert not broken_rules(connection, table), table
    return publish(master.path, store, min_age_s=1).generation


if __name__ == "__main__":
    while True:
        print(one_more_day(Master(sys.argv[1]), Path(sys.argv[2])), flush=True)
