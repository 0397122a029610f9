"""Start points: from which WAL position on the transactions from an xid on have written.

Every transaction of xid `next_xid` or newer got its xid after `lsn` was read, so all that it wrote
lies in the WAL at `lsn` or later. Both are of the whole server, on one timeline.
"""

from dataclasses import dataclass

import psycopg
from psycopg import sql

from replica_platform.core.postgres import one_value

# On a standby an xid is known before the first record of its transaction is replayed.
_POSITION = """
select (case when pg_is_in_recovery() then pg_last_wal_replay_lsn()
             else pg_current_wal_insert_lsn() end)::text
"""
# The xmax of a snapshot is not the next xid: transactions above it may run and have written. `age`
# counts from the next xid, one value throughout a transaction, hence a statement of its own.
_NEXT_XID = """
select upper + ((age('3'::xid)::bigint + 3 - upper) & 4294967295)
from (select pg_snapshot_xmax(pg_current_snapshot())::text::bigint as upper) s
"""


@dataclass(frozen=True, order=True)
class StartPoint:
    """A position in the WAL and the next xid at that time or soon after.

    Attributes:
        lsn: The position, in bytes.
        next_xid: The full xid that no transaction had got yet at `lsn`.
    """

    lsn: int
    next_xid: int


def read_start_point(source: psycopg.Connection) -> StartPoint:
    """Return the start point as of now, over a session that is in no transaction.

    The position first: a transaction that gets its xid in between counts as one that may have
    written before, which costs a later sync some blocks and loses nothing.
    """
    lsn = parse_lsn(one_value(source.execute(sql.SQL(_POSITION))))
    return StartPoint(lsn, int(one_value(source.execute(sql.SQL(_NEXT_XID)))))


def parse_lsn(text: str) -> int:
    """Return the bytes of `1/A2`, as Postgres prints a position."""
    high, low = text.split("/")
    return (int(high, 16) << 32) | int(low, 16)


def format_lsn(lsn: int) -> str:
    """Return a position as Postgres reads it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
