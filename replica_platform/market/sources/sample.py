"""The sample: five symbols from 2000 to 2013, the data of bokeh's examples."""

from collections.abc import Sequence
from datetime import date
from functools import cache

import pandas as pd

from replica_platform.market.sources.protocol import Fetched, normalise_bars

NAMES = {
    "AAPL": "Apple Inc.",
    "FB": "Facebook, Inc.",
    "GOOG": "Google Inc.",
    "IBM": "International Business Machines Corp.",
    "MSFT": "Microsoft Corp.",
}


class SampleSource:
    """The bars that come with the package bokeh_sampledata."""

    name = "bokeh_sampledata"

    @property
    def expected_day(self) -> date:
        """The sample's own last day."""
        return sample_bars()["day"].max().date()  # type: ignore[no-any-return]

    @property
    def first_day(self) -> date:
        """The sample's own first day."""
        return sample_bars()["day"].min().date()  # type: ignore[no-any-return]

    def symbols(self) -> pd.DataFrame:
        """Return the five symbols."""
        return pd.DataFrame(
            {"symbol": list(NAMES), "name": list(NAMES.values()), "exchange": "XNAS"}
        )

    def bars(self, symbols: Sequence[str], start: date, end: date) -> Fetched:
        """Return the bars of some symbols from `start` to `end`."""
        frame = sample_bars()
        days = frame["day"].between(pd.Timestamp(start), pd.Timestamp(end))
        return Fetched(frame[days & frame["symbol"].isin(symbols)])


@cache
def sample_bars() -> pd.DataFrame:
    """Return all 12,154 bars of the sample, by day and symbol."""
    from bokeh_sampledata import stocks

    frames = [
        pd.DataFrame(getattr(stocks, symbol)).assign(symbol=symbol).rename(columns={"date": "day"})
        for symbol in NAMES
    ]
    return normalise_bars(pd.concat(frames), SampleSource.name)
