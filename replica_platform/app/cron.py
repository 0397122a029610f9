"""The recent ticks of a cron schedule and its next one, without Dagster."""

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import islice

ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
LONGEST_DAYS = 366
# What some schedulers understand beyond the five fields of cron.
EXTENSION = re.compile(r"[#?@]|\b\d*[LW]\b")


def tick_before(cron: str, now: datetime, missed: int) -> datetime | None:
    """Return the last tick but `missed` at or before `now`; None where there were fewer in a year.

    Args:
        cron: Five fields, or an alias such as `@daily`.
        now: The moment to look back from, in the schedule's time zone.
        missed: The number of later ticks that are passed over.

    Raises:
        ValueError: This is not a cron schedule.
    """
    return next(islice(_ticks_back(cron, now), missed, None), None)


def tick_after(cron: str, now: datetime) -> datetime | None:
    """Return the first tick after `now`; None where there is none within a year.

    Args:
        cron: Five fields, or an alias such as `@daily`.
        now: The moment to look ahead from, in the schedule's time zone.

    Raises:
        ValueError: This is not a cron schedule.
    """
    fields = _fields(cron)
    for ahead in range(LONGEST_DAYS):
        later = [tick for tick in _ticks_of(fields, now + timedelta(days=ahead)) if tick > now]
        if later:
            return later[-1]
    return None


def assert_cron(cron: str) -> None:
    """Refuse what is no cron schedule; extensions such as `L` are left to Dagster.

    Raises:
        ValueError: It has not five fields, or a value that does not exist.
    """
    fields = _fields(cron)
    if not EXTENSION.search(cron):
        _parsed(fields)


def _fields(cron: str) -> list[str]:
    fields = ALIASES.get(cron.strip().lower(), cron).split()
    if len(fields) != 5:
        raise ValueError(f"{cron!r} is not a cron schedule of five fields, such as */5 * * * *")
    return fields


def _parsed(fields: list[str]) -> tuple[set[int], set[int], set[int], set[int], set[int]]:
    """Return the minutes, hours, days, months and days of the week."""
    return (
        _values(fields[0], 0, 59),
        _values(fields[1], 0, 23),
        _values(fields[2], 1, 31),
        _values(fields[3], 1, 12, MONTHS, 1),
        {day % 7 for day in _values(fields[4], 0, 7, DAYS, 0)},
    )


def _ticks_back(cron: str, now: datetime) -> Iterator[datetime]:
    fields = _fields(cron)
    for back in range(LONGEST_DAYS):
        yield from (tick for tick in _ticks_of(fields, now - timedelta(days=back)) if tick <= now)


def _ticks_of(fields: list[str], day: datetime) -> list[datetime]:
    """Return the ticks of a day, the last one first."""
    minutes, hours, days, months, weekdays = _parsed(fields)
    day = day.replace(hour=0, minute=0, second=0, microsecond=0)
    in_month, in_week = day.day in days, day.isoweekday() % 7 in weekdays
    # As in cron: where both are restricted, one of them is enough.
    both = fields[2] != "*" and fields[4] != "*"
    if day.month not in months or not (in_month or in_week if both else in_month and in_week):
        return []
    return [
        day.replace(hour=hour, minute=minute)
        for hour in sorted(hours, reverse=True)
        for minute in sorted(minutes, reverse=True)
    ]


def _values(
    field: str, low: int, high: int, names: tuple[str, ...] = (), first: int = 0
) -> set[int]:
    """Return the values of a field: `*`, lists, ranges and steps."""

    def number(text: str) -> int:
        value = names.index(text.lower()) + first if text.lower() in names else int(text)
        if not low <= value <= high:
            raise ValueError(f"{text} is not between {low} and {high}")
        return value

    found: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        if span == "*":
            start, end = low, high
        else:
            start_text, dash, end_text = span.partition("-")
            start = number(start_text)
            end = number(end_text) if dash else high if step else start
        found |= set(range(start, end + 1, int(step or 1)))
    return found
