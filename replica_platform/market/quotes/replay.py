"""A replay of real bars at a chosen speed: the source of quotes that needs nothing else."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from replica_platform.market.errors import SourceFailed
from replica_platform.market.quotes.protocol import Quote
from replica_platform.market.quotes.watched import price_of
from replica_platform.market.reader import MarketReader

BARS = """
select symbol, day, open, high, low, close from ohlcv
where day >= (select max(day) from ohlcv) - {days} and symbol in ({symbols})
order by symbol, day
"""
# Each bar is shown as its open, low, high and close when it rises, and high before low otherwise.
STEPS = 4


class ReplaySource:
    """The bars of the last days of the replica, again and again.

    Args:
        reader: A reader of the replica.
        speed: How many days are shown per second.
        days: How many calendar days are shown before it starts again.
        clock: A monotonic clock, in seconds.
    """

    name = "replay"

    def __init__(
        self,
        reader: MarketReader,
        *,
        speed: float = 1.0,
        days: int = 90,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reader = reader
        self._speed = speed
        self._days = days
        self._clock = clock
        self._began = clock()
        self._paths: dict[str, list[float]] = {}
        self._loaded: tuple[str, ...] = ()

    def quotes(self, symbols: Sequence[str]) -> Mapping[str, Quote]:
        """Return the price that each symbol has reached; none for a symbol without bars.

        Raises:
            SourceFailed: The bars cannot be read, and none were read before.
        """
        if self._loaded != tuple(symbols):
            self._load(tuple(symbols))
        step = int((self._clock() - self._began) * self._speed * STEPS)
        now = datetime.now(UTC)
        return {
            symbol: Quote(symbol, path[step % len(path)], now, self.name)
            for symbol in symbols
            if (path := self._paths.get(symbol))
        }

    def _load(self, symbols: tuple[str, ...]) -> None:
        if not symbols:
            return
        names = ", ".join("'" + symbol.replace("'", "''") + "'" for symbol in symbols)
        try:
            rows = self._reader.query(BARS.format(days=self._days, symbols=names), default=[])
        except Exception as error:  # of a query: another column, no table
            raise SourceFailed(f"The bars to replay cannot be read: {error}") from error
        paths: dict[str, list[float]] = {}
        for symbol, _, opened, high, low, close in rows:
            prices = [price_of(value) for value in (opened, low, high, close)]
            path = [price for price in prices if price is not None]
            if len(path) == STEPS and path[3] < path[0]:
                path[1], path[2] = path[2], path[1]
            paths.setdefault(symbol, []).extend(path)
        if not rows and not self._paths:
            raise SourceFailed("The replica has no bars to replay; run the batch.")
        if rows:
            self._paths, self._loaded = paths, symbols
