"""Workers and batch bytes chosen from the machine, with the measurement behind each.

Measuring and choosing belong here; what the caller gives wins, and that is decided here too.
"""

import os
from dataclasses import asdict, dataclass
from typing import Any

import psycopg

from replica_platform.xmin.copy.measure import Speed, speed
from replica_platform.xmin.session import open_source, open_target

MOST_WORKERS = 8
# A single stream lets each of the two servers wait for the other: 1.49 s where two took 1.36 s,
# with both servers and the sync on the same two cores.
LEAST_WORKERS = 2
BYTES_A_WORKER = 64 * 1024 * 1024
DEFAULT_BATCH_BYTES = 64 * 1024 * 1024
# A range may spend one part in so many on starting. A range is what a kill loses, so the smaller
# the better; below 8 MiB they only fill the ledger.
STARTING_SHARE = 100
LEAST_BATCH_BYTES, MOST_BATCH_BYTES = 8 * 1024 * 1024, 256 * 1024 * 1024
# A copy that takes seconds is worth the half second that a measurement takes.
MEASURED_FROM_BYTES = 1024 * 1024 * 1024


@dataclass(frozen=True)
class Tuning:
    """How many connections copy side by side, how much a range holds, and why."""

    workers: int
    batch_bytes: int
    why: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """The same, plain."""
        return asdict(self)


def tune(
    source: str,
    target: str,
    heap_bytes: int | None = None,
    *,
    workers: int | None = None,
    batch_bytes: int | None = None,
) -> Tuning:
    """Choose for this machine and these servers, for a table of `heap_bytes` if that is known.

    `workers` and `batch_bytes` win over what would be chosen. A server does not tell its cores, so
    this machine's are counted.
    """
    with open_source(source) as one, open_target(target) as other:
        return choose(one, other, heap_bytes, workers, batch_bytes, measure=True)


def choose(
    source: psycopg.Connection,
    target: psycopg.Connection,
    heap_bytes: int | None = None,
    workers: int | None = None,
    batch_bytes: int | None = None,
    measure: bool = False,
) -> Tuning:
    """Choose over open connections; `workers` and `batch_bytes` win where they are given.

    Batch bytes are measured where `measure` says so; a usual figure is taken elsewhere.
    """
    why: dict[str, str] = {}
    if workers:
        why["workers"] = f"{workers} were asked for."
    else:
        workers, why["workers"] = _workers(source, target, heap_bytes)
    if batch_bytes:
        why["batch_bytes"] = f"{batch_bytes:,} were asked for."
    else:
        batch_bytes = DEFAULT_BATCH_BYTES
        why["batch_bytes"] = f"{batch_bytes:,} of heap a range, not measured."
        if measure:
            seen = speed(source, target)
            batch_bytes = fitting(seen)
            why["batch_bytes"] = (
                f"{batch_bytes:,} of heap a range: starting a COPY took "
                f"{seen.start_s * 1000:.1f} ms and {seen.bytes_per_s / 1e6:.0f} MB/s were moved, "
                f"and starting shall take no more than 1/{STARTING_SHARE} of the time (between "
                f"{LEAST_BATCH_BYTES >> 20} and {MOST_BATCH_BYTES >> 20} MiB)."
            )
    return Tuning(workers, batch_bytes, why)


def fitting(seen: Speed) -> int:
    """The smallest range, in whole MiB, beside which its start is negligible."""
    wanted = STARTING_SHARE * seen.start_s * seen.bytes_per_s
    bounded = min(max(wanted, LEAST_BATCH_BYTES), MOST_BATCH_BYTES)
    return round(bounded / 2**20) << 20


def _workers(
    source: psycopg.Connection, target: psycopg.Connection, heap_bytes: int | None
) -> tuple[int, str]:
    cores = os.cpu_count() or 1
    limits = {
        "half the cores, at least two": max(LEAST_WORKERS, cores // 2),
        "the most that pays": MOST_WORKERS,
    }
    if heap_bytes is not None:
        limits[f"{BYTES_A_WORKER // 2**20} MiB of heap each"] = heap_bytes // BYTES_A_WORKER
    limits["a quarter of the source's free connections"] = _free(source) // 4
    limits["a quarter of the target's free connections"] = _free(target) // 4
    reason = min(limits, key=lambda name: limits[name])
    workers = max(1, limits[reason])
    listed = ", ".join(f"{name}: {limit}" for name, limit in limits.items())
    return workers, f"{workers}, limited by {reason} ({listed})."


def _free(connection: psycopg.Connection) -> int:
    row = connection.execute(
        "select current_setting('max_connections')::int - "
        "current_setting('superuser_reserved_connections')::int - "
        "(select count(*) from pg_stat_activity where backend_type = 'client backend')"
    ).fetchone()
    assert row is not None
    return int(row[0])
