"""What the deck shows, as plain data: the history, the replicas, the next runs, a chart.

A part that cannot be read is a sentence instead; the others are shown.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from replica_platform import replica
from replica_platform.app import state
from replica_platform.app.configured import Configured
from replica_platform.app.cron import tick_after
from replica_platform.app.entries import DuckDBReplicaEntry, Entry
from replica_platform.app.health import Health, platform_health
from replica_platform.app.settings import Settings
from replica_platform.core.errors import PlatformError
from replica_platform.core.reports import format_age, format_bytes
from replica_platform.history import Past, Span, read

HOURS, DAYS = 7 * 24, 90
BY_HOUR = ("lag_s", "rows_moved", "pending", "dead", "oldest_s", "data_age_s")
BY_DAY = ("integrity", "proven_age_s", "differing", "lag_s", "backup_age_s")
Found = TypeVar("Found")
ReadBars = Callable[[replica.ReplicaReader], tuple[str, Mapping[str, Sequence[Any]]] | None]


@dataclass
class Contents:
    """What one deck shows.

    Attributes:
        at: When it was made, in seconds since 1970.
        health: The health of each pillar.
        hours: By series, the last `HOURS` hours of each name.
        days: By series, the last `DAYS` days of each name.
        generations: A row for each kept generation: replica, generation, current, readers, age of
            the data, size.
        next_runs: When each schedule runs next, the next one first.
        candles: The bars of a symbol as columns; None where no replica has any.
        symbol: Their symbol.
        missing: What cannot be shown, and what to do.
    """

    at: float
    health: Sequence[Health] = ()
    hours: Mapping[str, Past] = field(default_factory=dict)
    days: Mapping[str, Past] = field(default_factory=dict)
    generations: Sequence[Sequence[str]] = ()
    next_runs: Sequence[Sequence[str]] = ()
    candles: Mapping[str, Sequence[Any]] | None = None
    symbol: str | None = None
    missing: list[str] = field(default_factory=list)


def look(settings: Settings, found: Configured, read_bars: ReadBars = lambda _: None) -> Contents:
    """Return what a deck shows now.

    Args:
        settings: The settings of the platform; its databases should run.
        found: What is configured.
        read_bars: Returns a symbol and its bars from a replica, None where it has none.
    """
    contents = Contents(time.time())

    def tried(part: Callable[[], Found], otherwise: Found) -> Found:
        try:
            return part()
        except PlatformError as error:
            if str(error) not in contents.missing:
                contents.missing.append(str(error))
            return otherwise

    target = settings.target
    contents.health = platform_health(settings, found)
    contents.hours = tried(lambda: read(target, BY_HOUR, Span.HOUR, HOURS), {})
    contents.days = tried(lambda: read(target, BY_DAY, Span.DAY, DAYS), {})
    contents.generations = tried(lambda: list(_generations(settings, found)), [])
    contents.next_runs = _next_runs(found, contents.at)
    candles = tried(lambda: _candles(settings, found, read_bars), None)
    if candles is not None:
        contents.symbol, contents.candles = candles
    return contents


def _generations(settings: Settings, found: Configured) -> Iterator[tuple[str, ...]]:
    for name, status in state.replicas(settings, found):
        for generation in status.kept:
            current = generation == status.generation
            readers = [str(one.pid) for one in status.readers if one.generation == generation]
            yield (
                name,
                str(generation),
                "current" if current else "",
                f"{len(readers)} ({', '.join(readers)})" if readers else "0",
                format_age(status.data_age_s) if current and status.data_age_s else "",
                format_bytes(status.replica_bytes) if current and status.replica_bytes else "",
            )


def _next_runs(found: Configured, at: float) -> list[tuple[str, str, str]]:
    """Return when each schedule of an entry runs next: moment, in how long, what."""
    runs: list[tuple[datetime, str]] = []
    for _, entry in found.entries:
        for attribute in sorted(type(entry).model_fields):
            cron = getattr(entry, attribute)
            if not attribute.endswith("cron_schedule") or not cron:
                continue
            now = datetime.fromtimestamp(at, ZoneInfo(getattr(entry, "timezone", "UTC")))
            try:
                tick = tick_after(cron, now)
            except ValueError:  # an extension of cron, which only Dagster reads
                continue
            if tick is not None:
                runs.append((tick, f"{_name(entry)}: {_purpose(attribute)}"))
    return [
        (f"{tick:%a %d %b %H:%M %Z}", f"in {format_age(tick.timestamp() - at)}", what)
        for tick, what in sorted(runs, key=lambda run: (run[0].timestamp(), run[1]))
    ]


def _name(entry: Entry) -> str:
    return str(getattr(entry, "name", type(entry).__name__.removesuffix("Entry")))


def _purpose(attribute: str) -> str:
    kind = attribute.removesuffix("cron_schedule").rstrip("_")
    return {
        "": "its schedule",
        "scrub": "a share of the generations is read again",
        "remote": "the files of other hosts",
        "catalog": "a look for new tables",
    }.get(kind, kind)


def _candles(
    settings: Settings, found: Configured, read_bars: ReadBars
) -> tuple[str, Mapping[str, Sequence[Any]]] | None:
    """Return the bars of the first replica that has some; None where none has."""
    for entry in found.here(DuckDBReplicaEntry):
        store = settings.path(entry.store_folder)
        if store.is_dir():
            with replica.ReplicaReader(store) as reader:
                bars = read_bars(reader)
            if bars is not None:
                return bars
    return None
