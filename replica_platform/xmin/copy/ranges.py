"""What is read of a leaf: block ranges, the changed predicate, and the columns sent.

Statements for the source belong here; who runs them, and where the rows go, does not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import psycopg
from psycopg import sql

from replica_platform.xmin.names import columns_sql
from replica_platform.xmin.plan import Plan
from replica_platform.xmin.source.catalog import Leaf, Table
from replica_platform.xmin.source.snapshot import LOW32, Snapshot

# Changed rows are fetched by tid where they are few: in one range, and in all ranges together.
TIDS_A_RANGE = 5_000
TIDS_IN_ALL = 200_000
BLOCK_BYTES = 8192
# 64 MiB of heap are worth a stream of their own.
BLOCKS_A_STREAM = 64 * 1024 * 1024 // BLOCK_BYTES


@dataclass(frozen=True)
class Range:
    """Blocks `[first, last)` of a leaf; None is open, so that no block is left out."""

    leaf: Leaf
    first: int | None
    last: int | None

    @property
    def condition(self) -> sql.Composable:
        """The range as a condition on ctid, which Postgres reads as a range of blocks."""
        parts = []
        if self.first is not None:
            parts.append(sql.SQL("ctid >= {}::tid").format(sql.Literal(f"({self.first},0)")))
        if self.last is not None:
            parts.append(sql.SQL("ctid < {}::tid").format(sql.Literal(f"({self.last},0)")))
        return sql.SQL(" and ").join(parts) if parts else sql.SQL("true")


def ranges(leaf: Leaf, blocks: int, streams: int) -> Iterator[Range]:
    """Cut a leaf in equal ranges of at most so many blocks, open at the leaf's start and end.

    As many for each of the streams that read them side by side, so that none is waited for.
    """
    count = max(-(-leaf.blocks // blocks), min(streams, leaf.blocks // BLOCKS_A_STREAM))
    if count > 1:
        count = -(-count // streams) * streams
    step = -(-leaf.blocks // max(1, count)) or 1
    cuts: list[int | None] = [None, *range(step, leaf.blocks, step), None]
    for first, last in pairwise(cuts):
        yield Range(leaf, first, last)


def changed(plan: Plan) -> sql.Composable:
    """True for the versions that the mark does not know yet.

    `age` counts from the session's own next xid, hence the distance of W is taken in there too.
    """
    assert plan.w is not None
    w = sql.Literal(str(plan.w & LOW32))
    condition = sql.SQL("age(xmin) between 1 and age({}::xid)").format(w)
    if plan.delivered:
        known = sql.Literal([str(xid) for xid in plan.delivered])
        condition += sql.SQL(" and not xmin = any({}::text[]::xid[])").format(known)
    return condition


_XMIN = sql.SQL("xmin")


def full_xid(snapshot: Snapshot, column: sql.Composable = _XMIN) -> sql.Composable:
    """The row's xmin with its epoch; 0 to 2 stand for no transaction and stay."""
    return sql.SQL(
        "case when {xid}::text::bigint < 3 then {xid}::text::bigint else "
        "{next} - (({next} - {xid}::text::bigint) & 4294967295) end"
    ).format(xid=column, next=sql.Literal(snapshot.next))


@dataclass(frozen=True)
class Part:
    """What one COPY reads: a place and a condition."""

    place: sql.Composable
    where: sql.Composable


def select(table: Table, snapshot: Snapshot, part: Part, *, raw: bool = False) -> sql.Composed:
    """The columns in order, then `source_xmin` and `source_ctid` where the table has them.

    `raw` leaves the xmin as it is, for a staging table that will add the epoch itself.
    """
    extra: sql.Composable = sql.SQL("null::bigint, null::tid")
    if table.has_xmin:
        xid = sql.SQL("xmin") if raw else full_xid(snapshot)
        extra = sql.SQL("{}, ctid").format(xid)
    columns = columns_sql(table.names) + sql.SQL(", ") if table.names else sql.SQL("")
    return sql.SQL("select {}{} from {} where {}").format(columns, extra, part.place, part.where)


def copy_out(query: sql.Composable, binary: bool) -> sql.Composed:
    """COPY of a query to the client."""
    return sql.SQL("copy ({}) to stdout (format {})").format(
        query, sql.SQL("binary" if binary else "text")
    )


def only(leaf: Leaf) -> sql.Composed:
    """The leaf without tables that inherit from it."""
    return sql.SQL("only {}").format(leaf.name.sql)


@dataclass(frozen=True)
class Found:
    """What a look at one range found."""

    range: Range
    rows: int
    """Live rows under the snapshot."""
    changed: int
    tids: Sequence[str]
    """Where the changed rows lie; empty where there are too many to name."""


def look(connection: psycopg.Connection, part: Range, plan: Plan, parts: int) -> Found:
    """One pass over one range of `parts`: count its live rows and name the changed ones.

    The count is what tells of deletes: see `deletes`.
    """
    cap = min(TIDS_A_RANGE, TIDS_IN_ALL // parts)
    if part.leaf.oid in plan.whole:
        query = sql.SQL("select n, n, null::text[] from (select count(*) from {} where {}) c(n)")
        row = connection.execute(query.format(only(part.leaf), part.condition)).fetchone()
    else:
        # One aggregate with the predicate, not two: it is what the time goes to.
        query = sql.SQL(
            "select n, coalesce(cardinality(tids), 0),"
            " case when cardinality(tids) <= {cap} then tids::text[] end from"
            " (select count(*), array_agg(ctid) filter (where {changed}) from {leaf} where {part})"
            " c(n, tids)"
        )
        row = connection.execute(
            query.format(
                cap=sql.Literal(cap),
                changed=changed(plan),
                leaf=only(part.leaf),
                part=part.condition,
            )
        ).fetchone()
    assert row is not None
    rows, count, tids = row
    return Found(part, rows, count, tids or [])


def parts_of(hits: Sequence[Found], plan: Plan) -> list[Part]:
    """What to copy of ranges that hold changed rows: named rows of a leaf in one go."""
    parts: list[Part] = []
    named: dict[Leaf, list[str]] = {}
    for found in hits:
        leaf, condition = found.range.leaf, found.range.condition
        if found.tids:
            named.setdefault(leaf, []).extend(found.tids)
        elif leaf.oid in plan.whole:
            parts.append(Part(only(leaf), condition))
        else:
            where = sql.SQL("{} and {}").format(condition, changed(plan))
            parts.append(Part(only(leaf), where))
    for leaf, tids in named.items():
        where = sql.SQL("ctid = any({}::tid[])").format(sql.Literal(tids))
        parts.append(Part(only(leaf), where))
    return parts
