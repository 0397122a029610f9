"""The table `ohlcv`: one bar per symbol and day, brought up to date from a source.

Daily work is a window: the days since the last bar, and `LOOK_BACK_DAYS` before it that are read
again for corrections. A symbol whose oldest bar of the window changed was probably split, so that
all of it is read again. A symbol that is new, or was missed, gets what it lacks. Rows are kept in
the order of days, so that a day is read and written in one place.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta

import pandas as pd

from replica_platform.core.reports import Progress
from replica_platform.market.sources import Source, fetch_bars
from replica_platform.market.tables.batches import log_batch
from replica_platform.market.tables.coverage import (
    add_to_coverage,
    count_again,
    is_counted,
    make_tables,
)
from replica_platform.market.tables.master import (
    Connection,
    MarketMaster,
    Written,
    columns_of,
    has_table,
    newest_day,
    row_count,
    value,
)

LOOK_BACK_DAYS = 14
# Bars that are read and written at a time, some 250 each: about 150 MB.
SYMBOL_YEARS = 5_000
VALUES = ("open", "high", "low", "close", "volume")
DIFFERS = " or ".join(f"o.{name} is distinct from i.{name}" for name in VALUES)
# The bars of `incoming` that the table lacks or has with other values.
CHANGED = f"""
select i.*, o.symbol is not null as known, o.close is distinct from i.close as moves
from (select symbol, day::date as day, open, high, low, close, volume::bigint as volume
      from incoming) i
left join (from ohlcv where day between $low and $high) o using (symbol, day)
where o.symbol is null or {DIFFERS}
"""


@dataclass(frozen=True)
class Window:
    """Days to read of some symbols.

    Attributes:
        symbols: The symbols.
        start: The first day, included.
        end: The last day, included.
    """

    symbols: tuple[str, ...]
    start: date
    end: date

    def parts(self) -> Iterator["Window"]:
        """Yield parts of whole calendar years with a bounded number of bars, the oldest first."""
        step = max(1, SYMBOL_YEARS // len(self.symbols))
        for year in range(self.start.year, self.end.year + 1, step):
            yield replace(
                self,
                start=max(self.start, date(year, 1, 1)),
                end=min(self.end, date(year + step - 1, 12, 31)),
            )


@dataclass(frozen=True)
class BarsLoaded(Written):
    """The table of bars after a load.

    Attributes:
        restated: Symbols whose whole history was read again, as after a split.
    """

    restated: tuple[str, ...] = field(default=())


def load_bars(
    master: MarketMaster,
    source: Source,
    *,
    start: date | None = None,
    end: date | None = None,
    progress: Progress | None = None,
    pause: Callable[[float], object] = time.sleep,
) -> BarsLoaded:
    """Bring the bars up to date, or read a range of days again.

    A long range is written in parts, each one transaction: a load that is interrupted goes on where
    it was.

    Args:
        master: The master; the table `symbols` says which symbols are listed.
        source: The source of the bars.
        start: The first day to read; with `end`, instead of the days since the last bar.
        end: The last day to read.
        progress: Told the finished parts.
        pause: Waits between two attempts of a failed symbol, in seconds.

    Returns:
        The table after the load, and the symbols that failed.

    Raises:
        SourceFailed: The source failed for every symbol; nothing of this part was written.
    """
    load = _Load(master, source, pause)
    if start is None:
        windows = load.due(end or source.expected_day)
    else:
        windows = load.range(start, end or source.expected_day)
    parts = [part for window in windows for part in window.parts()]
    restated: dict[str, None] = {}
    for done, part in enumerate(parts):
        changed = load.read(part)
        if start is None and part.start > source.first_day:
            restated |= dict.fromkeys(changed)
        if progress:
            progress(done + 1, len(parts), "steps")
    if restated:
        for part in load.history(tuple(restated)).parts():
            load.read(part)
    return load.report(tuple(restated))


def has_bars_since(master: MarketMaster, day: date) -> bool:
    """Return whether the master has bars of this day or a later one."""
    with master.read() as connection:
        newest = newest_day(connection)
    return newest is not None and newest >= day


class _Load:
    """One load: what it wrote so far, and which symbols failed."""

    def __init__(
        self, master: MarketMaster, source: Source, pause: Callable[[float], object]
    ) -> None:
        self._master = master
        self._source = source
        self._pause = pause
        self._written = BarsLoaded("ohlcv", 0, False)

    def due(self, end: date) -> list[Window]:
        """Return the windows that bring every listed symbol up to `end`."""
        with self._master.read() as connection:
            if not is_counted(connection) and has_table(connection, "ohlcv"):
                covered = connection.execute(
                    "select symbol, max(day) from ohlcv group by symbol"
                ).fetchall()
            elif has_table(connection, "bar_coverage"):
                covered = connection.execute("select symbol, last_day from bar_coverage").fetchall()
            else:
                covered = []
            listed = _listed(connection)
        last = dict(covered)
        look_back = timedelta(days=LOOK_BACK_DAYS)
        starts: dict[date, list[str]] = {}
        # All that are about as far share one window, and each other group has its own.
        newest = max(last.values(), default=self._source.first_day)
        for symbol in listed:
            day = last.get(symbol)
            if day is None:
                start = self._source.first_day
            elif newest - day <= look_back:
                start = newest - look_back
            else:
                start = day - look_back
            starts.setdefault(start, []).append(symbol)
        return [
            Window(tuple(symbols), start, end)
            for start, symbols in sorted(starts.items())
            if start <= end
        ]

    def range(self, start: date, end: date) -> list[Window]:
        """Return the window of a range of days, for every symbol that was ever listed."""
        with self._master.read() as connection:
            symbols = connection.execute("select symbol from symbols order by symbol").fetchall()
        return [Window(tuple(row[0] for row in symbols), start, end)]

    def history(self, symbols: tuple[str, ...]) -> Window:
        """Return the window of all days that the master has of some symbols."""
        with self._master.read() as connection:
            first, last = connection.execute(
                "select min(first_day), max(last_day) from bar_coverage"
                " where symbol in (select unnest($1::varchar[]))",
                [list(symbols)],
            ).fetchone() or (None, None)
        return Window(symbols, first, last)

    def read(self, window: Window) -> list[str]:
        """Read a window and write what changed; return the symbols whose oldest bar changed."""
        answer = fetch_bars(
            self._source, window.symbols, window.start, window.end, pause=self._pause
        )
        self._written = replace(self._written, failed={**self._written.failed, **answer.failed})
        if answer.frame.empty:
            return []
        with self._master.read() as connection:
            ready = is_counted(connection)
            if ready and not _changes(connection, answer.frame):
                return []
        with self._master.write() as connection:
            began = time.monotonic()
            make_tables(connection)
            if not is_counted(connection):
                count_again(connection)
            restated = self._write(connection, answer.frame)
            self._written = replace(
                self._written, held_s=self._written.held_s + time.monotonic() - began
            )
        return restated

    def _write(self, connection: Connection, frame: pd.DataFrame) -> list[str]:
        connection.register("incoming", frame)
        bounds = _bounds(frame)
        connection.execute(f"create or replace temp table changed as {CHANGED}", bounds)
        counts = connection.execute(
            "select count(*) filter (not known), count(*) filter (known), min(day) from changed"
        ).fetchone()
        assert counts is not None
        inserted, updated, first_day = counts
        if updated:
            connection.execute(
                "delete from ohlcv using changed c where ohlcv.day between $low and $high"
                " and c.known and ohlcv.symbol = c.symbol and ohlcv.day = c.day",
                bounds,
            )
        restated = _restated(connection)
        connection.execute(
            f"insert into ohlcv select symbol, day, {', '.join(VALUES)} from changed"
            " order by day, symbol"
        )
        add_to_coverage(connection)
        connection.execute("drop table changed")
        connection.unregister("incoming")
        if inserted or updated:
            log_batch(
                connection,
                "ohlcv",
                first_day=first_day,
                inserted=inserted,
                updated=updated,
                total=row_count(connection, "ohlcv"),
            )
            before = self._written
            days = [day for day in (before.first_day, first_day) if day]
            self._written = replace(
                before,
                changed=True,
                inserted=before.inserted + inserted,
                updated=before.updated + updated,
                first_day=min(days),
            )
        return restated

    def report(self, restated: tuple[str, ...]) -> BarsLoaded:
        """Return the table after the load."""
        with self._master.read() as connection:
            return replace(
                self._written,
                rows=row_count(connection, "ohlcv"),
                columns=columns_of(connection, "ohlcv"),
                restated=restated,
            )


def _listed(connection: Connection) -> Sequence[str]:
    rows = connection.execute(
        "select symbol from symbols where delisted_on is null order by symbol"
    ).fetchall()
    return [row[0] for row in rows]


def _bounds(frame: pd.DataFrame) -> dict[str, date]:
    return {"low": frame["day"].min().date(), "high": frame["day"].max().date()}


def _changes(connection: Connection, frame: pd.DataFrame) -> int:
    connection.register("incoming", frame)
    count = int(value(connection, f"select count(*) from ({CHANGED})", _bounds(frame)))
    connection.unregister("incoming")
    return count


def _restated(connection: Connection) -> list[str]:
    """Return the symbols whose oldest incoming bar was known with another close.

    Then what is older is probably out of date, too: a split or dividend restates all history.
    """
    rows = connection.execute(
        "select c.symbol from changed c"
        " join (select symbol, min(day::date) as day from incoming group by symbol) i"
        " using (symbol, day) where c.known and c.moves order by symbol"
    ).fetchall()
    return [row[0] for row in rows]
