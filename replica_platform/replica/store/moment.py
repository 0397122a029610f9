"""Which generation is meant: a number, a day, or a time with its zone; standard library only."""

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, time

from replica_platform.replica.store.manifest import Manifest

# A number, or a text that `parse_at` reads, or a day, or a time with its zone.
At = int | str | date | datetime
NAMED = 10
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


def parse_at(at: At) -> int | datetime:
    """Return the number, or the time up to which a generation was published.

    A day stands for its end, in UTC; a text of digits for a number.

    Args:
        at: What a caller or a command was given.

    Raises:
        ValueError: It is neither, or a time without a zone.
    """
    if isinstance(at, str):
        at = _parsed(at.strip())
    if isinstance(at, int):
        return at
    if not isinstance(at, datetime):
        return datetime.combine(at, time.max, UTC)
    if at.tzinfo is None:
        raise ValueError(
            f"{at} has no time zone; give one, such as {at.isoformat()}Z or datetime.UTC."
        )
    return at


def at_in_words(at: int | datetime) -> str:
    """Return what was asked for, as the subject of a sentence."""
    if isinstance(at, int):
        return f"Generation {at}"
    return f"A generation that was published by {at.isoformat(timespec='seconds')}"


def kept_in_words(kept: Sequence[Manifest]) -> str:
    """Return the generations that are kept, newest first, with when they were published."""
    named = [
        f"{one.generation} ({one.published_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC)"
        for one in kept[:NAMED]
    ]
    if len(kept) > NAMED:
        named.append(f"and {len(kept) - NAMED} older ones down to {kept[-1].generation}")
    return ", ".join(named) or "none"


def _parsed(text: str) -> int | date | datetime:
    if text.isdecimal():
        return int(text)
    try:
        return date.fromisoformat(text) if _DAY.fullmatch(text) else datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is no generation's number, day or time; write 12, 2026-01-31 (its end, in "
            "UTC) or 2026-01-31T18:00+01:00."
        ) from None
