"""Workers and batch bytes, chosen from the machine and from what was measured.

The choice belongs here, and that a caller's value wins over it.
"""

import os
from dataclasses import dataclass

import psycopg

from replica_platform.core.postgres import one_value
from replica_platform.core.reports import DoneReport
from replica_platform.xmin.copy.measure import Speed, measure_speed
from replica_platform.xmin.errors import Side, translate_errors
from replica_platform.xmin.session import open_source, open_target

MOST_WORKERS = 8
# With a single stream each of the two servers waits for the other: 1.49 s where two streams took
# 1.36 s, with both servers and the sync on the same two cores.
LEAST_WORKERS = 2
BYTES_PER_WORKER = 64 * 1024 * 1024
DEFAULT_BATCH_BYTES = 64 * 1024 * 1024
# A range may spend this fraction of its time on starting. A killed copy loses its unfinished
# ranges, so the smaller the better; below 8 MiB they only fill the ledger.
STARTING_FRACTION = 100
LEAST_BATCH_BYTES, MOST_BATCH_BYTES = 8 * 1024 * 1024, 256 * 1024 * 1024
# A copy that takes seconds is worth the half second that a measurement takes.
MEASURED_FROM_BYTES = 1024 * 1024 * 1024

_FREE_CONNECTIONS = """
select current_setting('max_connections')::int
       - current_setting('superuser_reserved_connections')::int
       - (select count(*) from pg_stat_activity where backend_type = 'client backend')
"""


@dataclass(frozen=True)
class Tuning(DoneReport):
    """How a sync uses the machine.

    Attributes:
        workers: How many pairs of connections copy side by side.
        batch_bytes: How many bytes of heap a range holds.
        why: A sentence for each of the two, with the measurement.
    """

    workers: int
    batch_bytes: int
    why: dict[str, str]

    @property
    def sentence(self) -> str:
        """Both values and the reason of each."""
        return f"Workers: {self.why['workers']} Batch bytes: {self.why['batch_bytes']}"


def tune(
    source: str,
    target: str,
    heap_bytes: int | None = None,
    *,
    workers: int | None = None,
    batch_bytes: int | None = None,
) -> Tuning:
    """Choose workers and batch bytes for this machine and two servers.

    A server does not tell how many cores it has, so this machine's are counted.

    Args:
        source: The DSN of the source.
        target: The DSN of the target.
        heap_bytes: The size of the table; None where it is not known.
        workers: Wins over what would be chosen.
        batch_bytes: Wins over what would be chosen.

    Returns:
        The choice and its reasons.

    Raises:
        CannotConnect: A server does not answer.
        SourceInterrupted: The source ended the measurement.
        TargetInterrupted: The target ended the measurement.
    """
    with open_source(source) as one, open_target(target) as other:
        return choose(one, other, heap_bytes, workers, batch_bytes, measure=True)


def choose(
    source: psycopg.Connection,
    target: psycopg.Connection,
    heap_bytes: int | None = None,
    workers: int | None = None,
    batch_bytes: int | None = None,
    *,
    measure: bool = False,
) -> Tuning:
    """Choose over open connections; batch bytes are measured only where `measure` is set."""
    why: dict[str, str] = {}
    if workers:
        why["workers"] = f"{workers} were asked for."
    else:
        workers, why["workers"] = _workers(source, target, heap_bytes)
    if batch_bytes:
        why["batch_bytes"] = f"{batch_bytes:,} were asked for."
    elif measure:
        batch_bytes, why["batch_bytes"] = _measured(source, target)
    else:
        batch_bytes = DEFAULT_BATCH_BYTES
        why["batch_bytes"] = f"{batch_bytes:,} of heap a range, not measured."
    return Tuning(workers, batch_bytes, why)


def fitting_batch_bytes(speed: Speed) -> int:
    """Return the smallest range, in whole MiB, whose start takes its fraction of the time."""
    wanted = STARTING_FRACTION * speed.start_s * speed.bytes_per_s
    bounded = min(max(wanted, LEAST_BATCH_BYTES), MOST_BATCH_BYTES)
    return round(bounded / 2**20) << 20


def _measured(source: psycopg.Connection, target: psycopg.Connection) -> tuple[int, str]:
    speed = measure_speed(source, target)
    batch_bytes = fitting_batch_bytes(speed)
    return batch_bytes, (
        f"{batch_bytes:,} of heap a range: starting a COPY took {speed.start_s * 1000:.1f} ms and "
        f"{speed.bytes_per_s / 1e6:.0f} MB/s were moved, and starting shall take no more than "
        f"1/{STARTING_FRACTION} of the time (between {LEAST_BATCH_BYTES >> 20} and "
        f"{MOST_BATCH_BYTES >> 20} MiB)."
    )


def _workers(
    source: psycopg.Connection, target: psycopg.Connection, heap_bytes: int | None
) -> tuple[int, str]:
    cores = os.cpu_count() or 1
    limits = {
        "half the cores, at least two": max(LEAST_WORKERS, cores // 2),
        "the most that pays": MOST_WORKERS,
    }
    if heap_bytes is not None:
        limits[f"{BYTES_PER_WORKER // 2**20} MiB of heap each"] = heap_bytes // BYTES_PER_WORKER
    limits["a quarter of the source's free connections"] = _free(source, "source") // 4
    limits["a quarter of the target's free connections"] = _free(target, "target") // 4
    reason = min(limits, key=lambda name: limits[name])
    workers = max(1, limits[reason])
    listed = ", ".join(f"{name}: {limit}" for name, limit in limits.items())
    return workers, f"{workers}, limited by {reason} ({listed})."


def _free(connection: psycopg.Connection, side: Side) -> int:
    with translate_errors(side, "its tables"):
        return int(one_value(connection.execute(_FREE_CONNECTIONS)))
