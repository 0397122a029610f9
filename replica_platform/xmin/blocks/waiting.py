"""Waiting until the source has summarized its WAL up to a position, within a limit.

A summary ends where a checkpoint begins. Where the role may ask for one, it is asked for over a
session of its own, and only its beginning is waited for.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import sql

from replica_platform.core.postgres import one_value
from replica_platform.xmin.session import open_source
from replica_platform.xmin.source.start_point import format_lsn

POLL_S = 0.01
SLOWEST_POLL_S = 0.25

_SUMMARIZED = """
select exists (select from pg_available_wal_summaries() where tli = %s and end_lsn >= %s::pg_lsn)
"""


@dataclass(frozen=True)
class Waited:
    """What it cost the source and the sync to have the WAL summarized.

    Attributes:
        reached: Whether the summaries reach the position.
        checkpoint: Whether a checkpoint was asked for.
        seconds: How long was waited.
    """

    reached: bool
    checkpoint: bool = False
    seconds: float = 0.0

    @property
    def words(self) -> str:
        """What the report says of it; empty where there is nothing to say."""
        if not self.checkpoint and self.seconds < SLOWEST_POLL_S:
            return ""
        asked = "1 checkpoint was asked for" if self.checkpoint else "No checkpoint was asked for"
        return f"{asked}, and {self.seconds:.2f} s were waited for the WAL summary"


def wait_for_summaries(
    source: psycopg.Connection,
    dsn: str,
    timeline: int,
    lsn: int,
    *,
    checkpoint: bool,
    most_s: float,
) -> Waited:
    """Wait until a summary reaches a position.

    Args:
        source: A session on the source, whose snapshot stays open meanwhile.
        dsn: The DSN of the source, for the session that asks for a checkpoint.
        timeline: The source's timeline.
        lsn: The position, in bytes.
        checkpoint: Whether a checkpoint may be asked for; the role must be allowed to.
        most_s: The longest to wait, in seconds.
    """
    began = time.monotonic()
    if _reached(source, timeline, lsn):
        return Waited(True)
    if not checkpoint:
        return Waited(_poll(source, timeline, lsn, began + most_s), False, _since(began))
    with _asking_for_checkpoint(dsn):
        return Waited(_poll(source, timeline, lsn, began + most_s), True, _since(began))


def _poll(source: psycopg.Connection, timeline: int, lsn: int, until: float) -> bool:
    pause = POLL_S
    while not _reached(source, timeline, lsn):
        if time.monotonic() > until:
            return False
        time.sleep(pause)
        pause = min(pause * 1.2, SLOWEST_POLL_S)
    return True


def _reached(source: psycopg.Connection, timeline: int, lsn: int) -> bool:
    return bool(one_value(source.execute(sql.SQL(_SUMMARIZED), [timeline, format_lsn(lsn)])))


@contextmanager
def _asking_for_checkpoint(dsn: str) -> Iterator[psycopg.Connection]:
    """Ask for a checkpoint, and leave without waiting for its end: the server goes on with it."""
    asking = open_source(dsn)
    try:
        asking.pgconn.send_query(b"checkpoint")
        asking.pgconn.flush()
        yield asking
    finally:
        asking.close()


def checkpoint_before(dsn: str, most_s: float) -> bool:
    """Run a checkpoint, so that a summary ends before what comes next; return whether it did.

    Args:
        dsn: The DSN of the source.
        most_s: The longest to wait for its end, in seconds; it goes on without this session.
    """
    with _asking_for_checkpoint(dsn) as asking:
        until = time.monotonic() + most_s
        while asking.pgconn.is_busy():
            if time.monotonic() > until:
                return False
            time.sleep(POLL_S)
            asking.pgconn.consume_input()
    return True


def _since(began: float) -> float:
    return time.monotonic() - began
