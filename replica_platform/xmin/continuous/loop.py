"""The loop of `watch`: sync, report, wait; a server that is away is waited for.

A table that fails is tried again at each sync, and the others go on. Nothing is lost by ending at
any moment: what a sync has not committed, the next one brings.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from replica_platform.core.errors import TransientError
from replica_platform.core.reports import DoneReport
from replica_platform.xmin.continuous.lag import Lag
from replica_platform.xmin.reports import GroupReport, SyncReport, TableSpec
from replica_platform.xmin.session import keeping_sessions
from replica_platform.xmin.sync import sync_group

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0


@dataclass(frozen=True)
class WatchReport(DoneReport):
    """What a watch has done so far.

    Attributes:
        syncs: How many syncs were finished.
        interruptions: How many syncs a server's absence has ended.
        rows_changed: Rows inserted, updated and deleted in the target.
        lag_p50_s: Half of the changes were visible within this time after their commit; None before
            any change.
        lag_p99_s: The same of 99 in 100.
        checkpoints: Checkpoints that were asked for on the source.
        waited_s: Seconds waited for WAL summaries.
        blocks_read: Heap blocks read on the source by blocks.
        seconds: How long it has run.
        waiting_for: Why the last sync was ended; empty where it was not.
        failures: A sentence for each table that failed in the last sync.
    """

    syncs: int = 0
    interruptions: int = 0
    rows_changed: int = 0
    lag_p50_s: float | None = None
    lag_p99_s: float | None = None
    checkpoints: int = 0
    waited_s: float = 0.0
    blocks_read: int = 0
    seconds: float = 0.0
    waiting_for: str = ""
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the last sync was finished and no table failed in it."""
        return not self.failures and not self.waiting_for

    @property
    def sentence(self) -> str:
        """How far it is, and what it waits for."""
        lag = "no changes yet"
        if self.lag_p50_s is not None and self.lag_p99_s is not None:
            lag = f"lag p50 {self.lag_p50_s:.1f} s, p99 {self.lag_p99_s:.1f} s"
        done = (
            f"{self.syncs:,} syncs in {self.seconds:,.0f} s, {self.rows_changed:,} rows changed, "
            f"{lag}; {self.blocks_read:,} blocks read, {self.checkpoints:,} checkpoints asked for."
        )
        failed = [f"{table} failed: {why}" for table, why in self.failures.items()]
        return " ".join([done, *failed, self.waiting_for]).strip()


def watch(
    source: str,
    target: str,
    tables: Sequence[TableSpec],
    *,
    every_s: float = 1.0,
    for_s: float | None = None,
    stop: threading.Event | None = None,
    on_sync: Callable[[WatchReport], None] | None = None,
    on_group: Callable[[GroupReport], None] | None = None,
    **options: Any,
) -> WatchReport:
    """Sync a group again and again until it is stopped.

    Args:
        source: The DSN of the source.
        target: The DSN of the target.
        tables: The tables.
        every_s: Seconds from the beginning of one sync to that of the next.
        for_s: Seconds after which no other sync begins; None for no end.
        stop: Ends the watch after the sync that is running.
        on_sync: Told the report after each sync, and after each one that was interrupted.
        on_group: Told the report of each sync that was finished.
        options: Further options of `sync_group`.

    Returns:
        What was done.

    Raises:
        TerminalError: What every sync of the group would fail with.
    """
    stop = stop or threading.Event()
    counts = _Counts()
    pause = FIRST_PAUSE_S
    with keeping_sessions() as sessions:
        while not stop.is_set() and not counts.is_over(for_s):
            began = time.monotonic()
            try:
                group = sync_group(source, target, tables, **options)
            except TransientError as error:
                log.warning("watch: %s", error)
                counts.interrupted(str(error))
                wait_s = pause
                pause = min(2 * pause, LONGEST_PAUSE_S)
            else:
                counts.synced(began, group)
                if on_group:
                    on_group(group)
                wait_s, pause = every_s - (time.monotonic() - began), FIRST_PAUSE_S
            sessions.turn()
            if on_sync:
                on_sync(counts.report())
            stop.wait(max(0.0, wait_s))
    return counts.report()


def add_reports(before: Mapping[str, SyncReport], group: GroupReport) -> dict[str, SyncReport]:
    """Return the newest report of each table, with the rows, bytes and seconds of all added up.

    Args:
        before: The reports so far, by target table.
        group: What the next sync did.
    """
    added = dict(before)
    for table, report in group.reports.items():
        was = added.get(table)
        if was is not None:
            sums = {name: getattr(was, name) + getattr(report, name) for name in _ADDED}
            report = replace(report, **sums)
        added[table] = report
    return added


_ADDED = (
    *("rows_read", "rows_inserted", "rows_updated", "rows_deleted"),
    *("bytes", "seconds", "blocks_read"),
)


def watch_for(
    seconds: float, source: str, target: str, tables: Sequence[TableSpec], **options: Any
) -> GroupReport:
    """Watch a group for some time, and report it as one sync, rows added up and with its lag.

    Args:
        seconds: How long.
        source: The DSN of the source.
        target: The DSN of the target.
        tables: The tables.
        options: Further options of `watch`.
    """
    reports: dict[str, SyncReport] = {}

    def add(group: GroupReport) -> None:
        nonlocal reports
        reports = add_reports(reports, group)

    seen = watch(source, target, tables, for_s=seconds, on_group=add, **options)
    failures = dict(seen.failures)
    if seen.waiting_for:
        failures["the group"] = seen.waiting_for
    return GroupReport(
        reports,
        failures,
        seen.seconds,
        checkpoints=seen.checkpoints,
        summary_wait_s=seen.waited_s,
        syncs=seen.syncs,
        lag_p50_s=seen.lag_p50_s,
        lag_p99_s=seen.lag_p99_s,
    )


class _Counts:
    """What has been done, added up."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._lag = Lag()
        self._totals = WatchReport()

    def is_over(self, for_s: float | None) -> bool:
        return for_s is not None and time.monotonic() - self._began >= for_s

    def interrupted(self, why: str) -> None:
        was = self._totals
        self._set(interruptions=was.interruptions + 1, waiting_for=why)

    def synced(self, began: float, group: GroupReport) -> None:
        was, reports = self._totals, group.reports.values()
        rows = sum(r.rows_inserted + r.rows_updated + r.rows_deleted for r in reports)
        self._lag.add(began, time.monotonic(), rows)
        self._set(
            syncs=was.syncs + 1,
            rows_changed=was.rows_changed + rows,
            checkpoints=was.checkpoints + group.checkpoints,
            waited_s=was.waited_s + group.summary_wait_s,
            blocks_read=was.blocks_read + sum(report.blocks_read for report in reports),
            failures=group.failures,
            waiting_for="",
        )

    def report(self) -> WatchReport:
        self._set(
            seconds=time.monotonic() - self._began,
            lag_p50_s=self._lag.percentile_s(0.5),
            lag_p99_s=self._lag.percentile_s(0.99),
        )
        return self._totals

    def _set(self, **values: object) -> None:
        self._totals = WatchReport(**{**self._totals.__dict__, **values})
