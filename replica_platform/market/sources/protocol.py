"""What a source of market data offers, and the columns of its answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Protocol

import pandas as pd

from replica_platform.market.errors import BadBars

COLUMNS = ["symbol", "day", "open", "high", "low", "close", "volume"]
SYMBOL_COLUMNS = ["symbol", "name", "exchange"]


@dataclass(frozen=True)
class Fetched:
    """The answer of a source.

    Attributes:
        frame: Daily bars with the columns of `COLUMNS`: text, datetime64, four float prices in US
            dollars, the volume in shares.
        failed: Why each symbol without an answer failed, by symbol.
    """

    frame: pd.DataFrame
    failed: Mapping[str, str] = field(default_factory=dict)


class Source(Protocol):
    """A source of symbols and daily bars."""

    @property
    def name(self) -> str:
        """What the source is called in metadata and errors."""

    @property
    def expected_day(self) -> date:
        """The last trading day that the bars should include."""

    @property
    def first_day(self) -> date:
        """The earliest day worth asking for."""

    def symbols(self) -> pd.DataFrame:
        """Return the symbols that are listed today.

        Returns:
            One row per symbol with the columns of `SYMBOL_COLUMNS`, all of text.

        Raises:
            SourceFailed: The source does not answer.
            BadBars: Its answer cannot be used.
        """

    def bars(self, symbols: Sequence[str], start: date, end: date) -> Fetched:
        """Return the bars of some symbols from `start` to `end`, both included.

        A symbol without bars in this range is no failure.

        Raises:
            SourceFailed: The source does not answer for any of them.
            BadBars: Its answer cannot be used.
        """


def empty_bars() -> pd.DataFrame:
    """Return no bars, with the columns of `COLUMNS`."""
    frame = pd.DataFrame({column: pd.Series(dtype="float64") for column in COLUMNS})
    return frame.astype({"symbol": "str", "volume": "int64"}).assign(
        day=pd.Series(dtype="datetime64[us]")
    )[COLUMNS]


def normalise_bars(frame: pd.DataFrame, origin: str) -> pd.DataFrame:
    """Return bars with the columns and types of `COLUMNS`, by day and symbol.

    Args:
        frame: Bars with at least these columns; more are left out.
        origin: Where they are from, for errors.

    Raises:
        BadBars: A column is missing, a value has a wrong type, or a key occurs twice.
    """
    missing = [column for column in COLUMNS if column not in frame]
    if missing:
        raise BadBars(
            f"{origin} lacks the columns {', '.join(missing)}; bars need {', '.join(COLUMNS)}."
        )
    try:
        frame = frame[COLUMNS].astype(
            {"symbol": "str", **dict.fromkeys(COLUMNS[2:6], "float64"), "volume": "int64"}
        )
        frame["day"] = pd.to_datetime(frame["day"]).dt.normalize()
    except (ValueError, TypeError) as error:
        raise BadBars(f"{origin} has a value that is no bar: {error}; correct it.") from error
    frame = frame.sort_values(["day", "symbol"], ignore_index=True)
    twice = frame.duplicated(["symbol", "day"])
    if twice.any():
        first = frame[twice].iloc[0]
        raise BadBars(
            f"{origin} has {int(twice.sum())} bars twice, the first of {first['symbol']} on "
            f"{first['day'].date()}; remove one of each pair."
        )
    return frame
