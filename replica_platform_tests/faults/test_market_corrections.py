"""Random days of corrections, splits, listings and delistings equal a rebuild, to the bit."""

import random
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from replica_platform.market.checks import TABLES, broken_rules
from replica_platform.market.sessions import sessions
from replica_platform.market.sources import Fetched
from replica_platform.market.tables import load_bars, update_indicators, write_symbols
from replica_platform.replica import Master
from replica_platform_tests.market.test_indicators import all_rows, rebuilt

FIRST = date(2018, 1, 2)
PRICES = ("open", "high", "low", "close")


class Living:
    """A source that changes from day to day.

    Attributes:
        closes: The close of each day and symbol; NaN where there is no bar.
        listed: The symbols of today.
        done: How many events of each kind there were.
    """

    name, first_day = "living", FIRST

    def __init__(self, seed: int, days: Sequence[date]) -> None:
        self.rng = random.Random(seed)
        self.days = list(days)
        self.today = 0
        self.closes: dict[str, np.ndarray] = {}
        self.listed: set[str] = set()
        self.done = dict.fromkeys(("correction", "split", "listing", "delisting", "late bar"), 0)
        for _ in range(6):
            self._list(0)

    @property
    def expected_day(self) -> date:
        return self.days[self.today]

    def _list(self, since: int) -> None:
        rng = np.random.default_rng(self.rng.randrange(2**32))
        closes = np.round(40 * np.exp(np.cumsum(rng.normal(0, 0.02, len(self.days)))), 2)
        closes[:since] = np.nan
        name = f"S{len(self.closes):03d}"
        self.closes[name] = closes
        self.listed.add(name)

    def go_on(self) -> date | None:
        """Let a day pass; return the oldest day that a backfill has to read, if any."""
        self.today += 1
        chance = self.rng.random()
        name = self.rng.choice(sorted(self.listed))
        if chance < 0.30:
            return self._correct(name)
        if chance < 0.36:
            self.closes[name] = np.round(self.closes[name] / self.rng.choice([2, 3, 0.5]), 2)
            self.done["split"] += 1
        elif chance < 0.42:
            self._list(max(0, self.today - self.rng.choice([0, 1, 30, 400])))
            self.done["listing"] += 1
        elif chance < 0.46 and len(self.listed) > 3:
            self.listed.remove(name)
            self.done["delisting"] += 1
        elif chance < 0.50:  # a session that the source did not have yet
            self.closes[name][self.today] = np.nan
            self.done["late bar"] += 1
        return None

    def _correct(self, name: str) -> date | None:
        back = self.rng.choice([0, 1, 2, 5, 300])
        at = max(0, self.today - back)
        if np.isnan(self.closes[name][at]):
            return None
        self.closes[name][at] = round(
            float(self.closes[name][at]) * self.rng.uniform(0.99, 1.01), 2
        )
        self.done["correction"] += 1
        return self.days[at] if back > 5 else None

    def symbols(self) -> pd.DataFrame:
        names = sorted(self.listed)
        return pd.DataFrame({"symbol": names, "name": names, "exchange": "XNAS"})

    def bars(self, symbols: Sequence[str], start: date, end: date) -> Fetched:
        days = [d for d in self.days[: self.today + 1] if start <= d <= end]
        at = [self.days.index(day) for day in days]
        frame = pd.DataFrame(
            {
                "symbol": np.tile(np.array(symbols, dtype=object), len(days)),
                "day": np.repeat(pd.to_datetime(pd.Series(days)).to_numpy(), len(symbols)),
                "close": np.array([self.closes[s][at] for s in symbols]).T.ravel(),
                "volume": 1000,
            }
        ).dropna()
        return Fetched(
            frame.assign(open=frame["close"], high=frame["close"] + 1, low=frame["close"] * 0.9)
        )


def test_500_days_of_corrections_equal_a_rebuild(tmp_path: Path, torture: bool) -> None:
    days = sessions(FIRST, FIRST + timedelta(days=3000))
    count = 500 if torture else 30
    source = Living(7, days)
    source.today = 900
    master = Master(tmp_path / "stock_data.duckdb")
    for day in range(count):
        backfilled = source.go_on()
        write_symbols(master, source)
        load_bars(master, source, pause=lambda _: None)
        if backfilled:
            load_bars(master, source, start=backfilled, end=backfilled)
        update_indicators(master)
        if day % 100 == 99:
            assert all_rows(master) == rebuilt(master), day
    found = all_rows(master)
    assert found == rebuilt(master)
    with master.read() as connection:
        # The bars themselves are the source's, of what is listed.
        bars = connection.execute(
            "select symbol, day, close from ohlcv join symbols using (symbol)"
            " where delisted_on is null order by all"
        ).fetchall()
        rules = [r.rule for t in TABLES[1:3] for r in broken_rules(connection, t)]
    answer = source.bars(sorted(source.listed), FIRST, source.expected_day).frame
    answer = answer.sort_values(["symbol", "day"])
    expected_bars = [
        (row.symbol, row.day.date(), row.close) for row in answer.itertuples(index=False)
    ]
    print(f"\n{count} days, {len(found):,} bars: {source.done}")
    assert bars == expected_bars
    # A bar that came late is a gap until then; nothing else may be wrong.
    assert set(rules) <= {"no session lacks more than 1% of its bars"}
    assert min(source.done.values()) > 0 or not torture
