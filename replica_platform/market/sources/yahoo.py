"""Bars of Yahoo Finance by yfinance, an extra: `pip install 'replica-platform[yfinance]'`."""

from collections.abc import Callable, Sequence
from datetime import date, timedelta
from typing import Any

import pandas as pd

from replica_platform.market.errors import BadBars, NotInstalled, SourceFailed
from replica_platform.market.sessions import last_closed_session
from replica_platform.market.sources.protocol import COLUMNS, Fetched, empty_bars

EARLIEST = date(1990, 1, 1)
NAMES = {"Open": "open", "High": "high", "Low": "low", "Close": "close", "Volume": "volume"}
Download = Callable[..., Any]


class YahooSource:
    """Bars by `yfinance.download`, adjusted for splits.

    Args:
        download: `yfinance.download`, or a recording of it; imported when absent.

    Raises:
        NotInstalled: yfinance is missing.
    """

    name = "yfinance"

    def __init__(self, download: Download | None = None) -> None:
        self._download = download or _import_download()

    @property
    def expected_day(self) -> date:
        """The exchange's last closed session."""
        return last_closed_session()

    @property
    def first_day(self) -> date:
        """The earliest day worth asking for."""
        return EARLIEST

    def symbols(self) -> pd.DataFrame:
        """Raise: Yahoo has no list of symbols.

        Raises:
            BadBars: Always; the directory or `symbols.csv` says which symbols are listed.
        """
        raise BadBars(
            "yfinance has no list of symbols; set REPLICA_SYMBOLS to a file or address of the "
            "NASDAQ's symbol directory."
        )

    def bars(self, symbols: Sequence[str], start: date, end: date) -> Fetched:
        """Return the bars of some symbols from `start` to `end`; a symbol without any has failed.

        Raises:
            SourceFailed: The download failed as a whole.
        """
        try:
            answer = self._download(
                tickers=list(symbols),
                start=start.isoformat(),
                end=(end + timedelta(days=1)).isoformat(),
                group_by="ticker",
                auto_adjust=False,
                progress=False,
                threads=True,
            )
        except Exception as error:  # yfinance raises classes of several libraries
            raise SourceFailed(f"yfinance: {type(error).__name__}: {error}") from error
        if answer is None or answer.empty:
            return Fetched(empty_bars(), dict.fromkeys(symbols, "yfinance returned no row"))
        frames, failed = [], {}
        known = set(answer.columns.get_level_values(0))
        for symbol in symbols:
            rows = answer[symbol].dropna(subset=["Close"]) if symbol in known else None
            if rows is None or rows.empty:
                failed[symbol] = "yfinance returned no row"
                continue
            frames.append(_as_bars(symbol, rows))
        return Fetched(pd.concat(frames) if frames else empty_bars(), failed)


def _as_bars(symbol: str, rows: pd.DataFrame) -> pd.DataFrame:
    frame = rows.rename(columns=NAMES).rename_axis("day").reset_index()
    days = pd.to_datetime(frame["day"])
    frame["day"] = days.dt.tz_localize(None) if days.dt.tz is not None else days
    return frame.assign(symbol=symbol, volume=frame["volume"].fillna(0))[COLUMNS]


def _import_download() -> Download:
    try:
        import yfinance
    except ImportError as error:
        raise NotInstalled(
            "Bars of Yahoo need yfinance: pip install 'replica-platform[yfinance]'."
        ) from error
    return yfinance.download  # type: ignore[no-any-return]
