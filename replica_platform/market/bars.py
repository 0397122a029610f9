"""Where daily bars come from: the sample that ships with bokeh, or a file of your own.

What is computed from bars belongs in `indicators`, how they are kept in `tables`.
"""

from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pandas as pd

from replica_platform.core.errors import TerminalError
from replica_platform.market.sessions import last_closed_session

COLUMNS = ["symbol", "day", "open", "high", "low", "close", "volume"]
NAMES = {
    "AAPL": "Apple Inc.",
    "FB": "Facebook, Inc.",
    "GOOG": "Google Inc.",
    "IBM": "International Business Machines Corp.",
    "MSFT": "Microsoft Corp.",
}


class BadBars(TerminalError):
    """The file of bars is missing or lacks columns; the text names them."""


@dataclass(frozen=True)
class Bars:
    """Daily bars, one row a symbol and trading day, and the day they ought to reach.

    `frame` has the columns of `COLUMNS`: text, datetime64, four float prices in US dollars,
    and the volume in shares; sorted by symbol and day.
    """

    frame: pd.DataFrame
    source: str
    expected_day: date

    @property
    def newest_day(self) -> date | None:
        """The last trading day that any symbol has, None without a row."""
        return None if self.frame.empty else self.frame["day"].max().date()


def load_bars(path: Path | None = None) -> Bars:
    """Bars from a CSV or Parquet file with the columns of `COLUMNS`, else the sample.

    A file is expected to reach the last closed session of the exchange; the sample, which is
    history (2000 to 2013), only its own last day. Errors: `BadBars`.
    """
    if path is None:
        frame = _sample()
        return Bars(frame, "bokeh_sampledata", frame["day"].max().date())
    if not path.is_file():
        raise BadBars(f"There is no file of bars at {path}; check REPLICA_BARS.")
    frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    missing = [column for column in COLUMNS if column not in frame]
    if missing:
        raise BadBars(f"{path} lacks the columns {', '.join(missing)}; it needs {COLUMNS}.")
    return Bars(_tidy(frame), path.name, last_closed_session())


def _sample() -> pd.DataFrame:
    from bokeh_sampledata import stocks

    frames = [
        pd.DataFrame(getattr(stocks, symbol)).assign(symbol=symbol).rename(columns={"date": "day"})
        for symbol in NAMES
    ]
    return _tidy(pd.concat(frames))


def _tidy(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame[COLUMNS].astype({"volume": "int64"})
    frame["day"] = pd.to_datetime(frame["day"])
    return frame.sort_values(["symbol", "day"], ignore_index=True)
