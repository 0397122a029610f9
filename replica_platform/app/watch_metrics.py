"""Counters of one process that goes on: `drain --watch`, `sync --watch` and `quotes`.

What the platform's state is, looked at when it is asked, is in `metrics`. Here each round of the
process adds its own report, so that a request costs no query.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from importlib.metadata import version
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from replica_platform.outbox import DrainReport, FileDrain
    from replica_platform.xmin import GroupReport, SyncReport, WatchReport

PREFIX = "replica_platform"
_FILE, _TABLE = ("file",), ("table",)
# Labels and help of each metric; what ends in `_total` is a counter since the process began.
WATCH_METRICS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "info": (("version",), "The version of the program; always 1."),
    "drain_delivered_records_total": (_FILE, "Records that were new in the target."),
    "drain_absorbed_records_total": (_FILE, "Records sent again that the target already had."),
    "drain_conflicting_records_total": (_FILE, "Records with a known id and other content."),
    "drain_batches_total": (_FILE, "Batches committed in the target."),
    "drain_failures_total": (_FILE, "Drains that could not read the file or reach the target."),
    "drain_busy_seconds_total": (_FILE, "Seconds spent on draining the file."),
    "drain_pending_records": (_FILE, "Records that waited when the last drain ended."),
    "drain_dead_records": (_FILE, "Records that the target refuses, at the last drain."),
    "drain_last_success_timestamp_seconds": (_FILE, "When a drain of the file last succeeded."),
    "sync_read_rows_total": (_TABLE, "Rows that came from the source."),
    "sync_inserted_rows_total": (_TABLE, "Rows new in the target."),
    "sync_updated_rows_total": (_TABLE, "Rows changed in the target."),
    "sync_deleted_rows_total": (_TABLE, "Rows deleted from the target."),
    "sync_read_bytes_total": (_TABLE, "Bytes of COPY that came from the source."),
    "sync_failures_total": (_TABLE, "Syncs in which the table failed."),
    "sync_busy_seconds_total": (_TABLE, "Seconds spent on syncing the table."),
    "sync_rounds_total": ((), "Syncs of the whole group that were finished."),
    "sync_interruptions_total": ((), "Syncs of the whole group that a server's absence ended."),
    "sync_lag_seconds": (
        ("percentile",),
        "Time from a change's commit in the source until it is visible in the target.",
    ),
    "last_sync_timestamp_seconds": (_TABLE, "When a table of the target was synced last."),
    "quotes_sent_messages_total": ((), "Messages given to Kafka."),
    "quotes_acknowledged_messages_total": ((), "Messages that the brokers have."),
    "quotes_failed_messages_total": ((), "Messages that were refused for good."),
    "quotes_unknown_messages_total": ((), "Messages whose report was lost with a connection."),
    "quotes_skipped_messages_total": ((), "Quotes not sent, since too many were in flight."),
    "quotes_given_total": (("source",), "Quotes that a source gave."),
    "quotes_rounds_total": ((), "Rounds of quotes."),
    "quotes_in_flight_messages": ((), "Messages without a report yet."),
    "quotes_watched_symbols": ((), "Symbols that are quoted where they can be."),
    "quotes_quoted_symbols": ((), "Symbols that had a quote in the last round."),
    "quotes_last_round_timestamp_seconds": ((), "When the last round was sent."),
}


class WatchCollector(Collector):
    """The sums and states that rounds have reported so far; any thread may ask."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, tuple[str, ...]], float] = {}
        self._lock = threading.RLock()
        self.set("info", (version("replica-platform"),), 1)

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: a registration needs no names."""
        return iter(())

    def add(self, name: str, labels: tuple[str, ...], amount: float) -> None:
        """Add to a counter.

        Args:
            name: Its name in `WATCH_METRICS`.
            labels: The value of each of its labels.
            amount: What to add, in the metric's unit; 0 lets the counter begin.
        """
        with self._lock:
            key = name, labels
            self._values[key] = self._values.get(key, 0) + amount

    def set(self, name: str, labels: tuple[str, ...], value: float | None) -> None:
        """Set a gauge, or a counter whose sum is known; None leaves it as it is.

        Args:
            name: Its name in `WATCH_METRICS`.
            labels: The value of each of its labels.
            value: The new value, in the metric's unit.
        """
        if value is not None:
            with self._lock:
                self._values[name, labels] = value

    def whole(self) -> AbstractContextManager[object]:
        """Return a block whose changes a request sees all or not at all."""
        return self._lock

    def collect(self) -> Iterator[Metric]:
        """Yield each metric that has a value, with its samples."""
        with self._lock:
            values = dict(self._values)
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for (name, labels), value in values.items():
            if name not in families:
                names, text = WATCH_METRICS[name]
                made = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
                families[name] = made(f"{PREFIX}_{name}", text, labels=names)
            families[name].add_metric(labels, value)
        yield from families.values()


class DrainMetrics(WatchCollector):
    """The drains of an agent, by outbox file."""

    def add_drain(self, report: "DrainReport") -> None:
        """Add the report of one drain."""
        with self.whole():
            for one in report.files:
                self._add_file(one)

    def _add_file(self, one: "FileDrain") -> None:
        labels = (one.path,)
        self.add("drain_delivered_records_total", labels, one.delivered)
        self.add("drain_absorbed_records_total", labels, one.absorbed)
        self.add("drain_conflicting_records_total", labels, one.conflicts)
        self.add("drain_batches_total", labels, one.batches)
        # What waits for its breaker was not tried.
        self.add("drain_failures_total", labels, one.state in ("failed", "unreachable"))
        self.add("drain_busy_seconds_total", labels, one.seconds)
        if not one.unreachable:
            self.set("drain_pending_records", labels, one.pending)
            self.set("drain_dead_records", labels, one.dead_rows)
        if one.state in ("drained", "time is up"):
            self.set("drain_last_success_timestamp_seconds", labels, time.time())


class SyncMetrics(WatchCollector):
    """The syncs of a watched group, by target table."""

    def add_group(self, group: "GroupReport") -> None:
        """Add the report of one sync that was finished."""
        with self.whole():
            for name, one in group.reports.items():
                self._add_table(name, one)
            for name in group.failures:
                self.add("sync_failures_total", (name,), 1)

    def _add_table(self, name: str, one: "SyncReport") -> None:
        labels = (name,)
        self.add("sync_read_rows_total", labels, one.rows_read)
        self.add("sync_inserted_rows_total", labels, one.rows_inserted)
        self.add("sync_updated_rows_total", labels, one.rows_updated)
        self.add("sync_deleted_rows_total", labels, one.rows_deleted)
        self.add("sync_read_bytes_total", labels, one.bytes)
        self.add("sync_busy_seconds_total", labels, one.seconds)
        self.add("sync_failures_total", labels, 0)
        self.set("last_sync_timestamp_seconds", labels, time.time())

    def set_totals(self, report: "WatchReport") -> None:
        """Take over what the watch itself has counted: rounds, interruptions and lag."""
        with self.whole():
            self.set("sync_rounds_total", (), report.syncs)
            self.set("sync_interruptions_total", (), report.interruptions)
            self.set("sync_lag_seconds", ("50",), report.lag_p50_s)
            self.set("sync_lag_seconds", ("99",), report.lag_p99_s)
