"""Trading days of the NASDAQ, by exchange-calendars: when a session closes, and whether one is."""

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
    """Whether the exchange opens on `day`."""
    return bool(_calendar().is_session(pd.Timestamp(day)))


def last_closed_session(now: datetime | None = None) -> date:
    """The trading day that closed last before `now` (aware; the present when absent)."""
    return _closed(now).index[-1].date()  # type: ignore[no-any-return]


def last_close(now: datetime | None = None) -> datetime:
    """The moment at which the exchange closed last before `now` (aware, UTC)."""
    return _closed(now).iloc[-1].to_pydatetime()  # type: ignore[no-any-return]


def _closed(now: datetime | None) -> pd.Series:
    """The closing times up to `now`, by session."""
    closes = _calendar().closes
    return closes[closes <= pd.Timestamp(now or datetime.now(UTC)).tz_convert("UTC")]
