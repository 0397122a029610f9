"""Trading days of the NASDAQ and their closing times, by exchange-calendars."""

from datetime import UTC, date, datetime
from functools import cache
from typing import Any

import pandas as pd

EXCHANGE = "XNYS"  # the NASDAQ keeps the same sessions, and the library carries this one
TIME_ZONE = "America/New_York"


@cache
def _calendar() -> Any:
    import exchange_calendars

    return exchange_calendars.get_calendar(EXCHANGE)


def is_trading_day(day: date) -> bool:
    """Return whether the exchange opens on `day`."""
    return bool(_calendar().is_session(pd.Timestamp(day)))


def last_closed_session(now: datetime | None = None) -> date:
    """Return the last trading day that closed before `now` (aware; the present when absent)."""
    return _closes(now).index[-1].date()  # type: ignore[no-any-return]


def last_close(now: datetime | None = None) -> datetime:
    """Return the exchange's last closing time before `now` (aware, UTC)."""
    return _closes(now).iloc[-1].to_pydatetime()  # type: ignore[no-any-return]


def _closes(now: datetime | None) -> pd.Series:
    """Return the closing times up to `now`, by session."""
    closes = _calendar().closes
    return closes[closes <= pd.Timestamp(now or datetime.now(UTC)).tz_convert("UTC")]
