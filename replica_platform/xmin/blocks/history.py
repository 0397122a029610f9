"""The history of a source: its start points, kept in the target once per source.

With it a sync finds the WAL position before which nothing that it has to read was written. A point
is a fact about the source, whichever tables were synced then, so that losing some of them only
makes later syncs read more.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from replica_platform.xmin.source.snapshot import Identity
from replica_platform.xmin.source.start_point import StartPoint, format_lsn, parse_lsn
from replica_platform.xmin.target.schemas import SCHEMA

# A long transaction holds W back, and each sync adds a point until it ends.
MOST_POINTS = 1_000

_TABLE = f"{SCHEMA}.start_point"
_READ = f"""
select p.lsn::text, p.next_xid from {_TABLE} p where (system, timeline) = (%s, %s) order by p.lsn
"""
_WRITE = f"""
insert into {_TABLE} (system, timeline, lsn, next_xid)
select %s, %s, lsn, next_xid from unnest(%s::pg_lsn[], %s::bigint[]) p(lsn, next_xid)
on conflict do nothing
"""
_PRUNE = f"""
-- Of each W in use, this sync's among them, the newest point below it is kept, and all above.
with points as (select * from {_TABLE} where (system, timeline) = (%(system)s, %(timeline)s)),
used as (
    select %(w)s::bigint as w
    union select w from {SCHEMA}.mark
    where identity->>'system' = %(system)s and (identity->>'timeline')::int = %(timeline)s
),
kept as (
    select max(p.lsn) as lsn from used u join points p on p.next_xid <= u.w group by u.w
    union (select lsn from points where next_xid > %(w)s order by lsn desc limit %(most)s)
)
delete from {_TABLE} where (system, timeline) = (%(system)s, %(timeline)s)
and lsn not in (select lsn from kept)
"""
# A server that was restored from a backup, or promoted, does not come back to its old timeline.
_FORGET_OTHERS = f"""
delete from {_TABLE} h where (system, timeline) <> (%(system)s, %(timeline)s) and not exists (
    select from {SCHEMA}.mark m
    where m.identity->>'system' = h.system and (m.identity->>'timeline')::int = h.timeline)
"""


@dataclass(frozen=True)
class History:
    """The start points of one source on one timeline, oldest first."""

    points: Sequence[StartPoint] = ()

    def before(self, w: int) -> StartPoint | None:
        """Return the newest point that no transaction of xid `w` or newer wrote before.

        None where there is none: a transaction older than the first sync is still running.
        """
        return max((point for point in self.points if point.next_xid <= w), default=None)

    def with_point(self, point: StartPoint) -> "History":
        """Return the history with one more point."""
        return History((*self.points, point))


def read(target: psycopg.Connection, source: Identity) -> History:
    """Return the history of a source; empty where nothing is known of it."""
    rows = target.execute(sql.SQL(_READ), [source.system, source.timeline])
    return History([StartPoint(parse_lsn(lsn), next_xid) for lsn, next_xid in rows])


def keep(target: psycopg.Connection, source: Identity, point: StartPoint, w: int) -> None:
    """Store a point, in the transaction of a watermark of `w`, and delete what no sync needs.

    The source must have flushed its WAL up to the point: after a crash the xids and positions of
    what was not flushed are given out again.

    Args:
        target: A session on the target.
        source: The history that the point belongs to.
        point: The start point of the sync.
        w: W of the sync.
    """
    write(target, source, [point])
    prune(target, source, w)


def write(target: psycopg.Connection, source: Identity, points: Iterable[StartPoint]) -> None:
    """Store points, in the transaction of a watermark that needs them.

    The source must have flushed its WAL up to them: after a crash the xids and positions of what
    was not flushed are given out again.
    """
    known = sorted(set(points))
    lsns = [format_lsn(point.lsn) for point in known]
    xids = [point.next_xid for point in known]
    target.execute(sql.SQL(_WRITE), [source.system, source.timeline, lsns, xids])


def prune(target: psycopg.Connection, source: Identity, w: int) -> None:
    """Delete the points that no sync will start from, now that `w` is the newest W."""
    values = {
        "system": source.system,
        "timeline": source.timeline,
        "w": w,
        "most": MOST_POINTS,
    }
    target.execute(sql.SQL(_PRUNE), values)
    target.execute(sql.SQL(_FORGET_OTHERS), values)
