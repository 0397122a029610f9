"""The speed between two servers: how long a COPY takes to start, and how fast rows move.

Generated rows are copied into a temporary table of the target, as a sync copies; it takes under a
second. What follows from the figures is `tune`'s.
"""

import time
from dataclasses import dataclass

import psycopg
from psycopg import sql

from replica_platform.xmin.copy.stream import copy_stream
from replica_platform.xmin.errors import translate_errors

STARTS = 7
FIRST_ROWS = 5_000
MOST_ROWS = 320_000
LONG_ENOUGH_S = 0.2

# About 100 bytes a row, as in a usual table.
_ROWS = """
copy (select i::bigint, md5(i::text) || repeat('x', 24), i / 7.0, now()
      from generate_series(1, {}) i) to stdout (format binary)
"""
_TEMPORARY = "pg_temp.replica_measure (n bigint, a text, b numeric, c timestamptz)"
_MEASUREMENT = "the measurement"


@dataclass(frozen=True)
class Speed:
    """What was measured.

    Attributes:
        start_s: Seconds to start a COPY on both servers and to commit it, without a row.
        bytes_per_s: Bytes of COPY per second beyond that.
    """

    start_s: float
    bytes_per_s: float


def measure_speed(source: psycopg.Connection, target: psycopg.Connection) -> Speed:
    """Measure over open connections; nothing is left behind."""
    with translate_errors("target", _MEASUREMENT):
        target.execute(f"create temp table {_TEMPORARY} on commit delete rows")
        try:
            start_s = sorted(_copy(source, target, 0)[1] for _ in range(STARTS))[STARTS // 2]
            rows, size, seconds = FIRST_ROWS, 0, 0.0
            while rows <= MOST_ROWS and seconds < LONG_ENOUGH_S:
                size, seconds = _copy(source, target, rows)
                rows *= 4
        finally:
            target.execute("drop table pg_temp.replica_measure")
    return Speed(start_s, size / max(seconds - start_s, seconds / 10))


def _copy(source: psycopg.Connection, target: psycopg.Connection, rows: int) -> tuple[int, float]:
    """Return the bytes and seconds of one COPY with its commit."""
    began = time.perf_counter()
    query = sql.SQL(_ROWS).format(sql.Literal(rows))
    command = sql.SQL("copy pg_temp.replica_measure from stdin (format binary)")
    with target.transaction():
        size = copy_stream(source, query, target, command, _MEASUREMENT).bytes
    return size, time.perf_counter() - began
