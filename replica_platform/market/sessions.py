"""Trading days of the NASDAQ and their closing times, by exchange-calendars."""

from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import Any

import pandas as pd

EXCHANGE = "XNYS"  # the NASDAQ keeps the same sessions, and the library carries this one
TIME_ZONE = "America/New_York"
# From the close of a session to its bars.
DELIVERY = timedelta(hours=2)
# What the calendar is asked for; bars before this day are not compared with it.
FIRST_SESSION = date(1970, 1, 2)


@cache
def _calendar() -> Any:
    import exchange_calendars

    return exchange_calendars.get_calendar(EXCHANGE, start=FIRST_SESSION.isoformat())


def is_trading_day(day: date) -> bool:
    """Return whether the exchange opens on `day`."""
    return bool(_calendar().is_session(pd.Timestamp(day)))


def last_closed_session(now: datetime | None = None) -> date:
    """Return the last trading day that closed before `now` (aware; the present when absent)."""
    return _closes(now).index[-1].date()  # type: ignore[no-any-return]


def last_delivered_session(now: datetime | None = None) -> date:
    """Return the last trading day whose bars should have come: two hours after its close."""
    return last_closed_session((now or datetime.now(UTC)) - DELIVERY)


def last_close(now: datetime | None = None) -> datetime:
    """Return the exchange's last closing time before `now` (aware, UTC)."""
    return _closes(now).iloc[-1].to_pydatetime()  # type: ignore[no-any-return]


def sessions(start: date, end: date) -> list[date]:
    """Return the trading days from `start` to `end`, both included.

    Days beyond the calendar's range, from 1970 to a year ahead, are left out.
    """
    calendar = _calendar()
    first = max(pd.Timestamp(start), calendar.first_session)
    last = min(pd.Timestamp(end), calendar.last_session)
    if first > last:
        return []
    return [day.date() for day in calendar.sessions_in_range(first, last)]


def _closes(now: datetime | None) -> pd.Series:
    """Return the closing times up to `now`, by session."""
    closes = _calendar().closes
    return closes[closes <= pd.Timestamp(now or datetime.now(UTC)).tz_convert("UTC")]
