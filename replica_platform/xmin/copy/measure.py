"""How long a COPY takes to start between two servers, and how fast rows move: under a second.

Rows that the source makes up go into a temporary table of the target, by the way that a sync
takes. What follows from the figures is `tune`'s.
"""

import time
from dataclasses import dataclass

import psycopg
from psycopg import sql

from replica_platform.xmin.copy.stream import relay
from replica_platform.xmin.session import in_words

STARTS = 7
FIRST_ROWS = 5_000
MOST_ROWS = 320_000
LONG_ENOUGH_S = 0.2

# Some 100 bytes a row, as the rows of a usual table.
_ROWS = """
copy (select i::bigint, md5(i::text) || repeat('x', 24), i / 7.0, now()
      from generate_series(1, {}) i) to stdout (format binary)
"""
_TEMPORARY = "pg_temp.replica_measure (n bigint, a text, b numeric, c timestamptz)"


@dataclass(frozen=True)
class Speed:
    """What was measured."""

    start_s: float
    """To start a COPY on both sides and to commit it, with no row in it."""
    bytes_per_s: float


def speed(source: psycopg.Connection, target: psycopg.Connection) -> Speed:
    """Measure over open connections; nothing is left behind."""
    with in_words("target", "the measurement"):
        target.execute(f"create temp table {_TEMPORARY} on commit delete rows")
        try:
            start_s = sorted(_move(source, target, 0)[1] for _ in range(STARTS))[STARTS // 2]
            rows, size, seconds = FIRST_ROWS, 0, 0.0
            while rows <= MOST_ROWS and seconds < LONG_ENOUGH_S:
                size, seconds = _move(source, target, rows)
                rows *= 4
        finally:
            target.execute("drop table pg_temp.replica_measure")
    return Speed(start_s, size / max(seconds - start_s, seconds / 10))


def _move(source: psycopg.Connection, target: psycopg.Connection, rows: int) -> tuple[int, float]:
    """Bytes and seconds of one COPY with its commit."""
    began = time.perf_counter()
    out = sql.SQL(_ROWS).format(sql.Literal(rows))
    into = sql.SQL("copy pg_temp.replica_measure from stdin (format binary)")
    with target.transaction():
        size = relay(source, out, target, into, "the measurement")
    return size, time.perf_counter() - began
