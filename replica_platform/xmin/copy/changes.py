"""Rows that changed since the watermark: the condition on xmin, and where the rows lie.

One pass over a range counts its live rows and lists its changed ones, bucket by bucket; only those
are copied.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from replica_platform.core.postgres import one_value
from replica_platform.xmin.copy.ranges import Range, Selection, joined, only, rows_in
from replica_platform.xmin.source.catalog import Leaf
from replica_platform.xmin.source.snapshot import LOW32

# Changed rows are fetched by tid where they are few: in one bucket, and in all of them together.
MOST_TIDS_PER_BUCKET = 5_000
MOST_TIDS = 200_000


@dataclass(frozen=True)
class ChangedRows:
    """The row versions that a watermark does not cover.

    Attributes:
        w: Versions of this xid and of newer ones are read ...
        delivered: ... except those of these xids (low 32 bits), which have been delivered.
        new_leaves: Oids of leaves that the watermark does not know; all their rows are read.
    """

    w: int
    delivered: tuple[int, ...] = ()
    new_leaves: frozenset[int] = frozenset()

    @property
    def condition(self) -> sql.Composable:
        """The condition on xmin, for leaves that the watermark knows.

        `age` counts from the session's own next xid, so the distance of W is computed in the same
        session.
        """
        w = sql.Literal(str(self.w & LOW32))
        condition = sql.SQL("age(xmin) between 1 and age({}::xid)").format(w)
        if self.delivered:
            known = sql.Literal([str(xid) for xid in self.delivered])
            condition += sql.SQL(" and not xmin = any({}::text[]::xid[])").format(known)
        return condition


@dataclass(frozen=True)
class ScannedBucket:
    """What the pass over one bucket found, which is a part of a range.

    Attributes:
        number: Its number in its leaf.
        range: Its blocks.
        rows: Its live rows under the snapshot.
        changed: How many of them changed.
        tids: Where the changed rows lie; empty where there are too many to list.
    """

    number: int
    range: Range
    rows: int
    changed: int
    tids: Sequence[str]


# The leaf is called `s`: no name of a table or column can then be taken for that of a bucket.
_SCAN = """
select buckets.number, n, changed, case when changed <= {most} then tids::text[] end
from generate_series({first}::bigint, {last}::bigint) buckets(number),
lateral ({counts}) c(n, changed, tids)
"""
_BUCKET = """
s.ctid >= format('(%s,0)', buckets.number * {blocks})::tid and
s.ctid < case when buckets.number < {last} or {closed}
              then format('(%s,0)', (buckets.number + 1) * {blocks})::tid
              else '(4294967295,65535)'::tid end
"""
# The planner does not know the bounds of a bucket: it must not read the whole leaf for each.
_BY_TID = "select set_config('enable_seqscan', %s, true)"


def scan_range(
    source: psycopg.Connection, one: Range, changes: ChangedRows, blocks: int, most_tids: int
) -> list[ScannedBucket]:
    """Count the live rows of a range and list the changed ones, bucket by bucket.

    The counts tell whether rows were deleted, and where, see `integrity.deletes`.

    Args:
        source: A session that sees the snapshot.
        one: The range; its bounds lie between buckets.
        changes: The rows that changed.
        blocks: The blocks of a bucket.
        most_tids: The most changed rows of a bucket that are listed.
    """
    first = (one.first or 0) // blocks
    end = one.last if one.last is not None else max(one.leaf.blocks, (one.first or 0) + 1)
    last = max(first, -(-end // blocks) - 1)
    # A bucket is found by its tids, as a range of blocks. One aggregate has the condition, not two:
    # most of the time goes into it.
    within = sql.SQL(_BUCKET).format(
        blocks=sql.Literal(blocks), last=sql.Literal(last), closed=sql.Literal(one.last is not None)
    )
    if one.leaf.oid in changes.new_leaves:
        counts = sql.SQL("select count(*), count(*), null::tid[] from {leaf} s where {within}")
    else:
        counts = sql.SQL(
            "select n, coalesce(cardinality(tids), 0), tids from (select count(*), "
            "array_agg(ctid) filter (where {changed}) from {leaf} s where {within}) i(n, tids)"
        )
    query = sql.SQL(_SCAN).format(
        most=sql.Literal(most_tids),
        first=sql.Literal(first),
        last=sql.Literal(last),
        counts=counts.format(changed=changes.condition, leaf=only(one.leaf), within=within),
    )
    source.execute(_BY_TID, ["off"])
    found = source.execute(query).fetchall()
    source.execute(_BY_TID, ["on"])
    return [
        ScannedBucket(number, _blocks_of(one, number, blocks), rows, changed, tids or [])
        for number, rows, changed, tids in found
    ]


def _blocks_of(one: Range, bucket: int, blocks: int) -> Range:
    """Return the part of a range that is one of its buckets."""
    first, last = bucket * blocks, (bucket + 1) * blocks
    return Range(
        one.leaf,
        one.first if first <= (one.first or 0) else first,
        one.last if last >= (one.last or one.leaf.blocks) else last,
    )


def most_tids_per_bucket(buckets: int) -> int:
    """Return how many changed rows of each bucket are listed."""
    return min(MOST_TIDS_PER_BUCKET, max(1, MOST_TIDS // max(1, buckets)))


def holds_covered_rows(source: psycopg.Connection, leaf: Leaf, changes: ChangedRows) -> bool:
    """Return whether a leaf has a row that the watermark covers.

    A leaf that was emptied since has none, one that was rewritten has kept them.
    """
    query = sql.SQL("select exists (select from {} where not ({}))")
    return bool(one_value(source.execute(query.format(only(leaf), changes.condition))))


def changed_selections(scanned: Sequence[ScannedBucket], changes: ChangedRows) -> list[Selection]:
    """Return what to copy of scanned buckets; rows listed by tid are one selection per leaf."""
    whole: list[Range] = []
    listed: dict[Leaf, list[str]] = {}
    for one in scanned:
        if one.tids:
            listed.setdefault(one.range.leaf, []).extend(one.tids)
        elif one.changed:
            whole.append(one.range)
    selections = [
        rows_in(one, sql.SQL("true") if one.leaf.oid in changes.new_leaves else changes.condition)
        for one in joined(whole)
    ]
    for leaf, tids in listed.items():
        where = sql.SQL("ctid = any({}::tid[])").format(sql.Literal(tids))
        selections.append(Selection(only(leaf), where, leaf.oid))
    return selections
