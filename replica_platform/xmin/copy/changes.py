"""Rows that changed since the watermark: the condition on xmin, and where the rows lie.

One pass over a range counts its live rows and lists its changed ones; only those are copied.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from replica_platform.core.postgres import one_row, one_value
from replica_platform.xmin.copy.ranges import Range, Selection, only, rows_in
from replica_platform.xmin.source.catalog import Leaf
from replica_platform.xmin.source.snapshot import LOW32

# Changed rows are fetched by tid where they are few: in one range, and in all ranges together.
MOST_TIDS_PER_RANGE = 5_000
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
class ScannedRange:
    """What the pass over one range found.

    Attributes:
        range: The range.
        rows: Its live rows under the snapshot.
        changed: How many of them changed.
        tids: Where the changed rows lie; empty where there are too many to list.
    """

    range: Range
    rows: int
    changed: int
    tids: Sequence[str]


def scan_range(
    source: psycopg.Connection, one: Range, changes: ChangedRows, range_count: int
) -> ScannedRange:
    """Count the live rows of one of `range_count` ranges and list the changed ones.

    The count tells whether rows were deleted, see `integrity.deletes`.
    """
    if one.leaf.oid in changes.new_leaves:
        query = sql.SQL("select n, n, null::text[] from (select count(*) from {} where {}) c(n)")
        found = source.execute(query.format(only(one.leaf), one.condition))
    else:
        # One aggregate with the condition, not two: most of the time goes into it.
        query = sql.SQL(
            "select n, coalesce(cardinality(tids), 0),"
            " case when cardinality(tids) <= {most} then tids::text[] end from"
            " (select count(*), array_agg(ctid) filter (where {changed}) from {leaf} where {range})"
            " c(n, tids)"
        )
        found = source.execute(
            query.format(
                most=sql.Literal(min(MOST_TIDS_PER_RANGE, MOST_TIDS // range_count)),
                changed=changes.condition,
                leaf=only(one.leaf),
                range=one.condition,
            )
        )
    rows, changed, tids = one_row(found)
    return ScannedRange(one, rows, changed, tids or [])


def holds_covered_rows(source: psycopg.Connection, leaf: Leaf, changes: ChangedRows) -> bool:
    """Return whether a leaf has a row that the watermark covers.

    A leaf that was emptied since has none, one that was rewritten has kept them.
    """
    query = sql.SQL("select exists (select from {} where not ({}))")
    return bool(one_value(source.execute(query.format(only(leaf), changes.condition))))


def changed_selections(scanned: Sequence[ScannedRange], changes: ChangedRows) -> list[Selection]:
    """Return what to copy of scanned ranges; rows listed by tid are one selection per leaf."""
    selections: list[Selection] = []
    listed: dict[Leaf, list[str]] = {}
    for one in scanned:
        leaf = one.range.leaf
        if one.tids:
            listed.setdefault(leaf, []).extend(one.tids)
        elif one.changed:
            whole = leaf.oid in changes.new_leaves
            selections.append(rows_in(one.range, sql.SQL("true") if whole else changes.condition))
    for leaf, tids in listed.items():
        where = sql.SQL("ctid = any({}::tid[])").format(sql.Literal(tids))
        selections.append(Selection(only(leaf), where, leaf.oid))
    return selections
