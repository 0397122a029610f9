"""Daily bars: the sample that comes with bokeh, or a file.

What is computed from bars belongs in `indicators`, how the master keeps them in `tables`.
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
    """Daily bars, one row per symbol and trading day.

    Attributes:
        frame: The columns of `COLUMNS` (text, datetime64, four float prices in US dollars, the
            volume in shares), sorted by symbol and day.
        source: The name of the file, or of the sample.
        expected_day: The last trading day that the bars should include.
    """

    frame: pd.DataFrame
    source: str
    expected_day: date

    @property
    def newest_day(self) -> date | None:
        """The last trading day of any symbol; None where there are no rows."""
        return None if self.frame.empty else self.frame["day"].max().date()


def load_bars(path: Path | None = None) -> Bars:
    """Return the bars of a file, or of the sample.

    A file should include the last closed session of the exchange; the sample (2000 to 2013) only
    its own last day.

    Args:
        path: A CSV or Parquet file with the columns of `COLUMNS`; None: the sample.

    Returns:
        The bars, sorted by symbol and day.

    Raises:
        BadBars: The file is missing or lacks columns.
    """
    if path is None:
        frame = _read_sample()
        return Bars(frame, "bokeh_sampledata", frame["day"].max().date())
    if not path.is_file():
        raise BadBars(f"There is no file of bars at {path}; check REPLICA_BARS.")
    frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    missing = [column for column in COLUMNS if column not in frame]
    if missing:
        raise BadBars(f"{path} lacks the columns {', '.join(missing)}; it needs {COLUMNS}.")
    return Bars(_sorted(frame), path.name, last_closed_session())


def _read_sample() -> pd.DataFrame:
    from bokeh_sampledata import stocks

    frames = [
        pd.DataFrame(getattr(stocks, symbol)).assign(symbol=symbol).rename(columns={"date": "day"})
        for symbol in NAMES
    ]
    return _sorted(pd.concat(frames))


def _sorted(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame[COLUMNS].astype({"volume": "int64"})
    frame["day"] = pd.to_datetime(frame["day"])
    return frame.sort_values(["symbol", "day"], ignore_index=True)
