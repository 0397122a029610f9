"""Candlesticks with indicators of one symbol, as a PNG by mplfinance or as text by plotext."""

import base64
import logging
from io import BytesIO
from typing import Any

import duckdb
import pandas as pd

from replica_platform.market.errors import NotInstalled, SourceFailed
from replica_platform.market.reader import MarketReader
from replica_platform.market.tables.master import MarketMaster

DAYS = 180
DPI = 70
# Bars of a symbol's last days with the indicators that are drawn over them.
BARS = """
select day, open, high, low, close, volume, sma_20, sma_50,
    bollinger_upper, bollinger_lower, rsi_14, macd, macd_signal, macd_histogram
from ohlcv left join indicators using (symbol, day)
where symbol = '{symbol}' and day > (select max(day) from ohlcv where symbol = '{symbol}') - {days}
order by day
"""


class UnknownSymbol(SourceFailed):
    """The replica has no bar of this symbol."""


class ChartNotInstalled(NotInstalled):
    """The chart's library is missing: pip install 'replica-platform[chart]'."""


def read_chart(reader: MarketReader, symbol: str, days: int = DAYS) -> pd.DataFrame:
    """Return the bars and indicators of a symbol's last days.

    Args:
        reader: A reader of the replica.
        symbol: The symbol.
        days: How many calendar days, up to its newest bar.

    Returns:
        One row per bar, by day: prices and indicators as floats, an index of days.

    Raises:
        UnknownSymbol: There is no bar of it.
    """
    frame = reader.df(_query(symbol, days))
    if frame.empty:
        raise UnknownSymbol(
            f"There is no bar of {symbol}; see the symbols of the table ohlcv, or run the batch."
        )
    return _indexed(frame)


def chart_columns(
    reader: MarketReader, symbol: str | None = None, days: int = DAYS
) -> tuple[str, dict[str, list[Any]]] | None:
    """Return a symbol and its bars and indicators as columns, for a page that draws them.

    Args:
        reader: A reader of a replica.
        symbol: The symbol; the first of the watchlist if left out.
        days: How many calendar days, up to its newest bar.

    Returns:
        The symbol and its columns, each of one value a bar; None where the replica has no bars.

    Raises:
        UnknownSymbol: There is no bar of it.
    """
    names = reader.query("select table_name from information_schema.tables", default=[])
    if not {("ohlcv",), ("indicators",)} <= set(names):
        return None
    if symbol is None:
        listed = "watchlist" if ("watchlist",) in names else "ohlcv"
        rows = reader.query(f"select min(symbol) from {listed}", default=[])
        symbol = rows[0][0] if rows else None
    if symbol is None:
        return None
    frame = read_chart(reader, symbol, days)
    columns: dict[str, list[Any]] = {"day": [f"{day:%Y-%m-%d}" for day in frame.index]}
    for name in frame.columns:
        values = frame[name].astype(float).round(4).tolist()
        columns[name.lower()] = [None if value != value else value for value in values]
    return symbol, columns


def chart_png(frame: pd.DataFrame, symbol: str) -> bytes:
    """Return candlesticks, averages, bands, volume, RSI and MACD as a PNG.

    Args:
        frame: As `read_chart` returns it.
        symbol: The title.

    Raises:
        ChartNotInstalled: mplfinance is missing.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        # It says that a font lacks a weight.
        logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
        import mplfinance
    except ImportError as error:
        raise ChartNotInstalled(
            "A PNG needs mplfinance: pip install 'replica-platform[chart]'."
        ) from error
    overlays = {"sma_20": "tab:orange", "sma_50": "tab:purple",
                "bollinger_upper": "lightgrey", "bollinger_lower": "lightgrey"}  # fmt: skip
    below = {"rsi_14": (2, "tab:blue"), "macd": (3, "tab:blue"), "macd_signal": (3, "tab:orange")}
    plots = [
        *(
            mplfinance.make_addplot(frame[name], color=color, width=0.8)
            for name, color in overlays.items()
            if frame[name].notna().any()
        ),
        *(
            mplfinance.make_addplot(frame[name], panel=panel, color=color, width=0.8,
                                    ylabel=name.split("_")[0].upper(), secondary_y=False)
            for name, (panel, color) in below.items()
            if frame[name].notna().any()
        ),
    ]  # fmt: skip
    picture = BytesIO()
    mplfinance.plot(
        frame, type="candle", volume=True, addplot=plots, style="yahoo", title=symbol,
        figsize=(11, 8), warn_too_much_data=100_000,
        savefig={"fname": picture, "format": "png", "dpi": DPI, "bbox_inches": "tight"},
    )  # fmt: skip
    return picture.getvalue()


def chart_text(
    frame: pd.DataFrame, symbol: str, width: int, height: int = 30, *, colour: bool = True
) -> str:
    """Return candlesticks with their 20-day average as text.

    Args:
        frame: As `read_chart` returns it.
        symbol: The title.
        width: The width in characters.
        height: The height in lines.
        colour: Whether the text may have the terminal's colours.

    Raises:
        ChartNotInstalled: plotext is missing.
    """
    try:
        import plotext
    except ImportError as error:
        raise ChartNotInstalled(
            "A chart in the terminal needs plotext: pip install 'replica-platform[chart]'."
        ) from error
    drawn = _drawn(plotext, frame, symbol, width, height)
    return drawn if colour else str(plotext.uncolorize(drawn))


def _drawn(plotext: Any, frame: pd.DataFrame, symbol: str, width: int, height: int) -> str:
    plotext.clear_figure()
    plotext.limit_size(False, False)
    plotext.date_form("Y-m-d")
    plotext.plotsize(width, height)
    days = [day.strftime("%Y-%m-%d") for day in frame.index]
    prices = {name: frame[name].tolist() for name in ("Open", "Close", "High", "Low")}
    plotext.candlestick(days, prices)
    average = frame["sma_20"].dropna()
    if len(average):
        plotext.plot([day.strftime("%Y-%m-%d") for day in average.index], average.tolist(),
                     label="SMA 20")  # fmt: skip
    plotext.title(f"{symbol}, {days[0]} to {days[-1]}, US dollars")
    return str(plotext.build())


def chart_markdown(master: MarketMaster, symbol: str | None, days: int = DAYS) -> str | None:
    """Return a picture for an asset's page: of a symbol, or of the first one of the watchlist.

    None where there is no bar of it, or the library is not installed.
    """
    with master.read() as connection:
        if symbol is None:
            row = connection.execute("select min(symbol) from watchlist").fetchone()
            symbol = row[0] if row else None
        if symbol is None:
            return None
        frame = _indexed(_rows(connection, _query(symbol, days)))
    if frame.empty:
        return None
    try:
        encoded = base64.b64encode(chart_png(frame, symbol)).decode()
    except ChartNotInstalled:
        return None
    return f"![{symbol}](data:image/png;base64,{encoded})"


def _query(symbol: str, days: int) -> str:
    return BARS.format(symbol=symbol.replace("'", "''"), days=int(days))


def _rows(connection: duckdb.DuckDBPyConnection, query: str) -> pd.DataFrame:
    return connection.execute(query).df()


def _indexed(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows in the form that mplfinance draws."""
    frame["day"] = pd.to_datetime(frame["day"])
    return (
        frame.set_index("day")
        .rename(columns=str.capitalize)[["Open", "High", "Low", "Close", "Volume"]]
        .join(frame.set_index("day").drop(columns=["open", "high", "low", "close", "volume"]))
    )
