"""A source of bars that a test can change, and masters filled from it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from replica_platform.market.errors import SourceFailed
from replica_platform.market.sessions import sessions
from replica_platform.market.sources import Fetched, open_source
from replica_platform.market.tables import (
    load_bars,
    update_indicators,
    write_symbols,
    write_watchlist,
)
from replica_platform.market.watch import WatchRules
from replica_platform.replica import Master


@dataclass
class Changeable:
    """A source whose bars, symbols and failures are set by the test.

    Attributes:
        frame: All its bars.
        names: The symbols that are listed.
        failing: How many further times each symbol fails, by symbol.
        asked: The symbols and days of each question.
    """

    frame: pd.DataFrame
    names: list[str]
    failing: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[tuple[str, ...], date, date]] = field(default_factory=list)
    name: str = "changeable"

    @property
    def expected_day(self) -> date:
        day: date = self.frame["day"].max().date()
        return day

    @property
    def first_day(self) -> date:
        day: date = self.frame["day"].min().date()
        return day

    def symbols(self) -> pd.DataFrame:
        return pd.DataFrame({"symbol": self.names, "name": self.names, "exchange": "XNAS"})

    def bars(self, symbols: Sequence[str], start: date, end: date) -> Fetched:
        self.asked.append((tuple(symbols), start, end))
        if len(symbols) == 1 and self.failing.get(symbols[0], 0):
            self.failing[symbols[0]] -= 1
            raise SourceFailed(f"no answer for {symbols[0]}")
        failed = {one: f"no answer for {one}" for one in symbols if self.failing.get(one, 0)}
        for one in failed:
            self.failing[one] -= 1
        days = self.frame["day"].between(pd.Timestamp(start), pd.Timestamp(end))
        mine = self.frame["symbol"].isin([one for one in symbols if one not in failed])
        return Fetched(self.frame[days & mine].copy(), failed)


def walk(symbols: Sequence[str], days: Sequence[date], seed: int = 1) -> pd.DataFrame:
    """Random bars that keep the rules of a bar."""
    rng = np.random.default_rng(seed)
    shape = (len(days), len(symbols))
    closes = np.round(50 * np.exp(np.cumsum(rng.normal(0, 0.02, shape), axis=0)), 2).ravel()
    return pd.DataFrame(
        {
            "symbol": np.tile(np.array(symbols, dtype=object), len(days)),
            "day": np.repeat(pd.to_datetime(pd.Series(list(days))).to_numpy(), len(symbols)),
            "open": np.round(closes * 0.995, 2),
            "high": np.round(closes * 1.01, 2),
            "low": np.round(closes * 0.99, 2),
            "close": closes,
            "volume": rng.integers(10_000, 1_000_000, closes.size),
        }
    ).astype({"symbol": "str"})


def run_batch(master: Master, source: object, rules: WatchRules | None = None) -> None:
    """Run the whole batch."""
    write_symbols(master, source)  # type: ignore[arg-type]
    load_bars(master, source, pause=lambda _: None)  # type: ignore[arg-type]
    update_indicators(master)
    write_watchlist(master, rules or WatchRules())


@pytest.fixture
def source() -> Changeable:
    """Four symbols of three years, up to 10 October 2025."""
    days = sessions(date(2022, 10, 10), date(2025, 10, 10))
    return Changeable(walk(["A", "B", "C", "D"], days), ["A", "B", "C", "D"])


@pytest.fixture
def master(tmp_path: Path) -> Master:
    """A master that is not made yet."""
    return Master(tmp_path / "stock_data.duckdb")


@pytest.fixture
def sample(tmp_path: Path) -> Master:
    """A master with the whole sample."""
    made = Master(tmp_path / "sample.duckdb")
    run_batch(made, open_source())
    return made
