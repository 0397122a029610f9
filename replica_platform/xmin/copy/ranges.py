"""Block ranges of a table, and the SELECT that reads one of them.

Statements for the source belong here; who runs them, and where the rows go, does not.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from psycopg import sql

from replica_platform.xmin.names import block_sql
from replica_platform.xmin.source.catalog import Leaf, SourceTable
from replica_platform.xmin.source.snapshot import LOW32, Snapshot

BLOCK_BYTES = 8192
# A stream per 64 MiB of heap is worth its start.
BLOCKS_PER_STREAM = 64 * 1024 * 1024 // BLOCK_BYTES


@dataclass(frozen=True)
class Range:
    """The blocks `[first, last)` of a leaf.

    Attributes:
        leaf: The leaf.
        first: The first block; None for the start of the leaf.
        last: The block after the last; None for the end of the leaf, whatever it is by then.
    """

    leaf: Leaf
    first: int | None
    last: int | None

    @property
    def blocks(self) -> int:
        """How many blocks it has, by the size that the leaf had."""
        return max(0, (self.leaf.blocks if self.last is None else self.last) - (self.first or 0))

    @property
    def condition(self) -> sql.Composable:
        """The range as a condition on ctid, which Postgres reads as a range of blocks."""
        parts = []
        if self.first is not None:
            parts.append(sql.SQL("ctid >= {}::tid").format(sql.Literal(f"({self.first},0)")))
        if self.last is not None:
            parts.append(sql.SQL("ctid < {}::tid").format(sql.Literal(f"({self.last},0)")))
        return sql.SQL(" and ").join(parts) if parts else sql.SQL("true")


@dataclass(frozen=True)
class Selection:
    """The rows that one COPY reads.

    Attributes:
        from_item: What it reads from.
        condition: The condition that its rows meet.
        leaf: The oid of the leaf that they lie in; None where they have no xmin.
    """

    from_item: sql.Composable
    condition: sql.Composable
    leaf: int | None = None


def ranges(leaves: Iterable[Leaf], blocks: int, streams: int, multiple: int = 1) -> list[Range]:
    """Cut leaves into ranges, as `leaf_ranges` does."""
    return [one for leaf in leaves for one in leaf_ranges(leaf, blocks, streams, multiple)]


def leaf_ranges(leaf: Leaf, blocks: int, streams: int, multiple: int = 1) -> Iterator[Range]:
    """Cut a leaf into equal ranges, open at its start and end so that no block is left out.

    Args:
        leaf: The leaf.
        blocks: The most blocks of a range.
        streams: How many streams read side by side; each gets as many ranges as the others.
        multiple: The blocks of each range are a multiple of it, even above `blocks`.
    """
    count = max(-(-leaf.blocks // blocks), min(streams, leaf.blocks // BLOCKS_PER_STREAM))
    if count > 1:
        count = -(-count // streams) * streams
    step = -(-leaf.blocks // max(1, count)) or 1
    step = -(-step // multiple) * multiple
    cuts: list[int | None] = [None, *range(step, leaf.blocks, step), None]
    for first, last in pairwise(cuts):
        yield Range(leaf, first, last)


def joined(parts: Iterable[Range]) -> list[Range]:
    """Join ranges where one ends at the start of the next, in their order."""
    found: list[Range] = []
    for part in parts:
        before = found[-1] if found else None
        if before and before.leaf == part.leaf and before.last == part.first is not None:
            found[-1] = replace(before, last=part.last)
        else:
            found.append(part)
    return found


def rows_in(one: Range, where: sql.Composable) -> Selection:
    """Return the rows of a range that meet a condition."""
    condition = sql.SQL("{} and {}").format(one.condition, where)
    return Selection(only(one.leaf), condition, one.leaf.oid)


def only(leaf: Leaf) -> sql.Composed:
    """Return the leaf as a FROM item, without the tables that inherit from it."""
    return sql.SQL("only {}").format(leaf.name.sql)


_XMIN = sql.SQL("xmin")


def full_xid(snapshot: Snapshot, column: sql.Composable = _XMIN) -> sql.Composable:
    """Return a row's xmin with its epoch; 0 to 2 stand for no transaction and stay.

    By `age`, which counts from one xid throughout a transaction: the only cast to a number goes
    through text (a COPY of 2,000,000 rows without it 1.1 s, by age 1.2 s, through text 2.3 s).
    """
    return sql.SQL(
        "case when age({xid}) = 2147483647 and {xid}::text::bigint < 3 then {xid}::text::bigint"
        " else {next} - ((age({xid})::bigint - age({low}::xid)) & 4294967295) end"
    ).format(
        xid=column,
        next=sql.Literal(snapshot.next),
        low=sql.Literal(str(snapshot.next & LOW32)),
    )


def copy_out(
    table: SourceTable, snapshot: Snapshot, selection: Selection, *, locations: bool = False
) -> sql.Composed:
    """Return the COPY that sends the columns in order, then those of the sync.

    Args:
        table: The table.
        snapshot: The snapshot that is read at.
        selection: The rows to send.
        locations: Whether the rows' leaf and block are sent, too.
    """
    row_version: sql.Composable = sql.SQL("null::bigint, null::tid")
    if table.has_xmin:
        row_version = sql.SQL("{}, ctid").format(full_xid(snapshot))
        if locations:
            row_version += sql.SQL(", {}::oid, {}").format(
                sql.Literal(selection.leaf), block_sql(sql.SQL("ctid"))
            )
    columns = table.selected(table.names) + sql.SQL(", ") if table.names else sql.SQL("")
    return sql.SQL("copy (select {}{} from {} where {}) to stdout (format {})").format(
        columns, row_version, selection.from_item, selection.condition, copy_format(table)
    )


def copy_format(table: SourceTable) -> sql.SQL:
    """Return the COPY format that a table can be sent in."""
    return sql.SQL("binary" if table.binary else "text")
