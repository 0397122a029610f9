"""Technical indicators of daily closes, by TA-Lib, one symbol at a time."""

import pandas as pd
import talib

COLUMNS = [
    "sma_20", "sma_50", "ema_20", "rsi_14",
    "macd", "macd_signal", "macd_histogram",
    "bollinger_upper", "bollinger_middle", "bollinger_lower",
]  # fmt: skip


def compute_indicators(bars: pd.DataFrame) -> pd.DataFrame:
    """Return the indicators of every bar.

    SMA over 20 and 50 days, EMA over 20, RSI over 14 (0 to 100), MACD 12/26/9, Bollinger bands
    20 days and 2 standard deviations. NaN until a window has enough days.

    Args:
        bars: Rows with symbol, day and close, sorted by day within a symbol.

    Returns:
        One row per bar: symbol, day and `COLUMNS`, floats in the unit of the close.
    """
    parts = [_for_symbol(part) for _, part in bars.groupby("symbol", sort=False)]
    empty = pd.DataFrame(columns=["symbol", "day", *COLUMNS])
    return pd.concat(parts, ignore_index=True) if parts else empty


def _for_symbol(bars: pd.DataFrame) -> pd.DataFrame:
    close = bars["close"].to_numpy(dtype=float)
    macd, macd_signal, macd_histogram = talib.MACD(close, 12, 26, 9)
    upper, middle, lower = talib.BBANDS(close, timeperiod=20, nbdevup=2.0, nbdevdn=2.0)
    return bars[["symbol", "day"]].assign(
        sma_20=talib.SMA(close, 20),
        sma_50=talib.SMA(close, 50),
        ema_20=talib.EMA(close, 20),
        rsi_14=talib.RSI(close, 14),
        macd=macd,
        macd_signal=macd_signal,
        macd_histogram=macd_histogram,
        bollinger_upper=upper,
        bollinger_middle=middle,
        bollinger_lower=lower,
    )
