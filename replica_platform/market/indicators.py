"""Technical indicators of daily closes, by TA-Lib.

The indicators of a bar are those of TA-Lib over the bars of its own calendar year and the two years
before it. So a bar costs at most three years of closes, however long the history is, a correction
reaches no further than two years ahead, and a bar has the same value, bit by bit, whether it was
computed on its day or in a rebuild. TA-Lib itself over the whole history differs by the rounding of
some 500 bars: an exponential average forgets all but 1e-17 of what is older.
"""

from datetime import date

import numpy as np
import numpy.typing as npt
import talib

Floats = npt.NDArray[np.float64]

COLUMNS = [
    "sma_20", "sma_50", "ema_20", "rsi_14",
    "macd", "macd_signal", "macd_histogram",
    "bollinger_upper", "bollinger_middle", "bollinger_lower",
]  # fmt: skip
YEARS_BEFORE = 2


def window_start(year: int) -> date:
    """Return the first day whose close counts for the indicators of a year."""
    return date(year - YEARS_BEFORE, 1, 1)


def compute_indicators(closes: Floats) -> list[Floats]:
    """Return the indicators of the bars of one symbol.

    SMA over 20 and 50 days, EMA over 20, RSI over 14 (0 to 100), MACD 12/26/9, Bollinger bands
    20 days and 2 standard deviations. NaN until a window has enough days; the table has a null
    there.

    Args:
        closes: Closes of one window by day, shape (bars,), in the unit of the price.

    Returns:
        An array of shape (bars,) for each of `COLUMNS`, in the unit of the close; RSI in percent.
    """
    macd, macd_signal, macd_histogram = talib.MACD(closes, 12, 26, 9)
    upper, middle, lower = talib.BBANDS(closes, timeperiod=20, nbdevup=2.0, nbdevdn=2.0)
    return [
        talib.SMA(closes, 20),
        talib.SMA(closes, 50),
        talib.EMA(closes, 20),
        talib.RSI(closes, 14),
        macd,
        macd_signal,
        macd_histogram,
        upper,
        middle,
        lower,
    ]


def compute_many(
    codes: npt.NDArray[np.integer], closes: Floats, wanted: npt.NDArray[np.bool_]
) -> Floats:
    """Return the indicators of the wanted bars of many symbols.

    Args:
        codes: The symbol of each bar as a number, shape (bars,); bars are ordered by day.
        closes: The close of each bar, shape (bars,).
        wanted: Whether the indicators of a bar are wanted, shape (bars,).

    Returns:
        Shape (columns, wanted bars): a row for each of `COLUMNS`, bars in the given order.
    """
    places = np.cumsum(wanted) - 1  # the column of a wanted bar in the result
    result = np.empty((len(COLUMNS), int(wanted.sum())))
    by_symbol = np.argsort(codes, kind="stable")
    ordered = closes[by_symbol]
    bounds = np.flatnonzero(np.diff(codes[by_symbol])) + 1
    for start, end in zip([0, *bounds], [*bounds, len(codes)], strict=True):
        bars = by_symbol[start:end]
        mine = wanted[bars]
        # Days are in order, so that all bars from the first wanted one on are wanted.
        first = int(mine.argmax()) if mine.any() else len(mine)
        if first == len(mine):
            continue
        columns = places[bars[first:]]
        for row, values in enumerate(compute_indicators(ordered[start:end])):
            result[row, columns] = values[first:]
    return result
