"""The state of the platform as Prometheus metrics: what is configured, looked at when it is asked.

Names and units follow Prometheus: base units, and the time of an event instead of its age, so that
a file that is no longer written shows as old.
"""

import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from replica_platform.app import state
from replica_platform.app.configured import Configured, configured
from replica_platform.app.health import platform_health
from replica_platform.app.scheduler import scheduler_status
from replica_platform.app.settings import Settings
from replica_platform.core.errors import PlatformError
from replica_platform.replica import ReplicaStatus

PREFIX = "replica_platform"
# Name, labels and help of each metric.
METRICS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "info": (("version",), "The version of the program; always 1."),
    "healthy": (("pillar",), "1 when `replica status` calls the pillar well, else 0."),
    "idle": (("pillar",), "1 when a pillar waits for a daemon that never ran."),
    "last_sync_timestamp_seconds": (("table",), "When a table of the target was synced last."),
    "table_there": (("table",), "1 when the target has the table, else 0."),
    "outbox_pending_records": (("outbox", "node"), "Records that wait for their delivery."),
    "outbox_dead_records": (("outbox", "node"), "Records that the target refuses."),
    "outbox_oldest_pending_timestamp_seconds": (
        ("outbox", "node"),
        "When the oldest waiting record was appended; absent where none waits.",
    ),
    "outbox_size_bytes": (("outbox", "node"), "The size of the outbox files."),
    "replica_generation": (("replica",), "The number of the current generation."),
    "replica_in_sync": (("replica",), "1 when readers see the master's last checkpoint, else 0."),
    "replica_size_bytes": (("replica",), "The size of the current generation."),
    "replica_readers": (("replica",), "Processes that hold a generation."),
    "replica_published_timestamp_seconds": (
        ("replica",),
        "When a publisher last found the generation to be current.",
    ),
    "replica_data_timestamp_seconds": (("replica",), "The time that the data describes."),
    "backup_timestamp_seconds": (("file",), "When the newest verified backup was made."),
    "backup_copies": (("file",), "Kept backups."),
    "backup_size_bytes": (("file",), "The size of all kept backups."),
    "daemon_heartbeat_timestamp_seconds": ((), "When Dagster's daemon gave a sign of life."),
    "failed_schedules": ((), "Schedules and sensors whose last tick or run failed."),
    "collected_timestamp_seconds": ((), "When these figures were taken."),
    "collection_duration_seconds": ((), "How long it took to take them."),
}

Sample = tuple[str, tuple[str, ...], float | None]


class PlatformCollector(Collector):
    """Looks at the platform each time that it is asked; what cannot be reached is left out."""

    def __init__(self, settings: Settings, found: Configured | None = None) -> None:
        self._settings = settings
        self._found = found or configured(sample=settings.sample, host=settings.host)

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: a registration looks at no database."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield each metric with its samples."""
        began = time.monotonic()
        families = {
            name: GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
            for name, (labels, text) in METRICS.items()
        }
        for name, labels, value in self._samples():
            if value is not None:
                families[name].add_metric(labels, value)
        families["collected_timestamp_seconds"].add_metric((), time.time())
        families["collection_duration_seconds"].add_metric((), time.monotonic() - began)
        yield from (family for family in families.values() if family.samples)

    def _samples(self) -> Iterator[Sample]:
        yield "info", (version("replica-platform"),), 1
        for one in platform_health(self._settings, self._found):
            yield "healthy", (one.pillar,), one.ok
            yield "idle", (one.pillar,), one.idle
        parts = (self._tables, self._outboxes, self._replicas, self._backups, self._daemon)
        for part in parts:
            try:
                yield from part()
            except PlatformError:  # `healthy` says so
                continue

    def _tables(self) -> Iterator[Sample]:
        for table in state.tables(self._settings, self._found):
            name = (table.target_table,)
            yield "last_sync_timestamp_seconds", name, _moment(table.age_s)
            yield "table_there", name, table.there

    def _outboxes(self) -> Iterator[Sample]:
        for *names, found in state.outboxes(self._settings, self._found):
            labels = tuple(names)
            age_s = found.oldest_pending_age_s if found.pending else None
            yield "outbox_pending_records", labels, found.pending
            yield "outbox_dead_records", labels, found.dead
            yield "outbox_oldest_pending_timestamp_seconds", labels, _moment(age_s)
            yield "outbox_size_bytes", labels, found.file_bytes

    def _replicas(self) -> Iterator[Sample]:
        for name, found in state.replicas(self._settings, self._found):
            yield from _replica(name, found)

    def _backups(self) -> Iterator[Sample]:
        for name, found in state.backups(self._settings, self._found):
            names = (name,)
            yield "backup_timestamp_seconds", names, _moment(found.newest_age_s)
            yield "backup_copies", names, found.count
            yield "backup_size_bytes", names, found.bytes

    def _daemon(self) -> Iterator[Sample]:
        found = scheduler_status(self._settings.dagster)
        yield "daemon_heartbeat_timestamp_seconds", (), _moment(found.heartbeat_age_s)
        yield "failed_schedules", (), len(found.failed_ticks) + len(found.failed_runs)


def metrics_text(settings: Settings, found: Configured | None = None) -> bytes:
    """Return all metrics in Prometheus' text format.

    Args:
        settings: The settings of the platform; its databases should run.
        found: What is configured; the `defs.yaml` files of this package if left out.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(PlatformCollector(settings, found))
    return generate_latest(registry)


def _replica(name: str, found: ReplicaStatus) -> Iterator[Sample]:
    names = (name,)
    yield "replica_generation", names, found.generation
    yield "replica_in_sync", names, found.in_sync
    yield "replica_size_bytes", names, found.replica_bytes
    yield "replica_readers", names, len(found.readers)
    yield "replica_published_timestamp_seconds", names, _moment(found.publication_age_s)
    yield "replica_data_timestamp_seconds", names, _moment(found.data_age_s)


def _moment(age_s: float | None) -> float | None:
    return None if age_s is None else time.time() - age_s
