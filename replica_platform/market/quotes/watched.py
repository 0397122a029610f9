"""The symbols to quote: the replica's watchlist, else the previous one, else the defaults."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from replica_platform.core.errors import PlatformError
from replica_platform.market.reader import MarketReader

WATCHLIST = "select symbol, last_price, as_of from watchlist order by symbol"


@dataclass(frozen=True)
class Watched:
    """A watched symbol with its last close.

    Attributes:
        symbol: The symbol.
        close: Its newest close in US dollars; None where it is not known.
        as_of: The day of this close.
    """

    symbol: str
    close: float | None = None
    as_of: date | None = None


class Watchlist:
    """The watched symbols, read again when asked to.

    Args:
        reader: A reader of the replica.
        defaults: Symbols to quote as long as no watchlist could be read.

    Attributes:
        symbols: The watched symbols by name.
        origin: `watchlist`, `previous` or `defaults`: where they are from.
        error: Why the watchlist could not be read; None if it could.
    """

    def __init__(self, reader: MarketReader, defaults: Sequence[str] = ()) -> None:
        self._reader = reader
        self.symbols = {symbol: Watched(symbol) for symbol in defaults}
        self.origin = "defaults"
        self.error: str | None = None

    def refresh(self) -> None:
        """Read the watchlist; keep what is known where it is missing, empty or unreadable."""
        try:
            rows = self._reader.query(WATCHLIST, default=[])
            self.error = None if rows else "the watchlist is missing or empty"
        except PlatformError as error:
            rows, self.error = [], str(error)
        except Exception as error:  # a query's error: no table, another column
            rows, self.error = [], f"{type(error).__name__}: {' '.join(str(error).split())}"
        found = {watched.symbol: watched for watched in map(_watched, rows) if watched}
        if found:
            self.symbols, self.origin = found, "watchlist"
        elif self.origin == "watchlist":
            self.origin = "previous"


def _watched(row: tuple[Any, ...]) -> Watched | None:
    symbol, close, as_of = row
    if symbol is None:
        return None
    return Watched(str(symbol), price_of(close), as_of if isinstance(as_of, date) else None)


def price_of(value: Any) -> float | None:
    """Return a price as a float; None for a null, a word, or a number that is no price."""
    try:
        price = float(value)
    except (TypeError, ValueError):
        return None
    return price if math.isfinite(price) and price > 0 else None
