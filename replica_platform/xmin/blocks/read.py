"""Changed blocks read at the snapshot: their live rows counted, their changed rows selected.

Each block is a range of tids, so that its rows are read without the rest of the leaf. A block past
the end of its leaf, where rows were removed and the file was cut, reads as empty.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from replica_platform.xmin.blocks.choice import TableBlocks
from replica_platform.xmin.copy.changes import ChangedRows
from replica_platform.xmin.copy.ranges import Selection, only
from replica_platform.xmin.names import columns_sql
from replica_platform.xmin.source.catalog import Leaf, SourceTable

# The blocks of one statement: enough to make its start cheap, few enough to share among workers.
MOST_BLOCKS = 4_096

_COUNT = """
select b.block, r.live, r.changed from unnest({blocks}::bigint[]) b(block)
cross join lateral (
    select count(*), count(*) filter (where {changed}) from {leaf}
    where ctid >= format('(%s,0)', b.block)::tid and ctid < format('(%s,0)', b.block + 1)::tid
) r(live, changed)
"""
# OFFSET 0 keeps the inner query apart: only there are the two tids the bounds of a Tid Range Scan.
_ROWS = """
(select r.* from unnest({blocks}::bigint[]) b(block) cross join lateral (
    select {columns} from {leaf}
    where ctid >= format('(%s,0)', b.block)::tid and ctid < format('(%s,0)', b.block + 1)::tid
      and {changed} offset 0) r) r
"""


@dataclass(frozen=True)
class BlockList:
    """Some blocks of one leaf.

    Attributes:
        leaf: The leaf.
        blocks: Their numbers.
    """

    leaf: Leaf
    blocks: Sequence[int]


@dataclass(frozen=True)
class BlockCount:
    """What one block holds under the snapshot.

    Attributes:
        leaf: The leaf's oid.
        block: Its number.
        live: Its live rows.
        changed: How many of them the watermark does not cover.
    """

    leaf: int
    block: int
    live: int
    changed: int


def listed_blocks(table: SourceTable, blocks: TableBlocks) -> list[BlockList]:
    """Cut the changed blocks into lists of a size for one statement."""
    return [
        one
        for leaf in table.leaves
        if leaf.oid in blocks.leaves
        for one in _lists(leaf, blocks.leaves[leaf.oid].listed(leaf.blocks))
    ]


def changed_lists(listed: Sequence[BlockList], counts: Sequence[BlockCount]) -> Iterator[BlockList]:
    """Return the blocks that hold changed rows."""
    leaves = {one.leaf.oid: one.leaf for one in listed}
    found: dict[int, list[int]] = {}
    for one in counts:
        if one.changed:
            found.setdefault(one.leaf, []).append(one.block)
    for oid, blocks in found.items():
        yield from _lists(leaves[oid], sorted(blocks))


def _lists(leaf: Leaf, blocks: Sequence[int]) -> Iterator[BlockList]:
    for start in range(0, len(blocks), MOST_BLOCKS):
        yield BlockList(leaf, blocks[start : start + MOST_BLOCKS])


def count_blocks(
    source: psycopg.Connection, listed: BlockList, changes: ChangedRows
) -> list[BlockCount]:
    """Count the live and the changed rows of each block."""
    query = sql.SQL(_COUNT).format(
        blocks=sql.Literal(list(listed.blocks)),
        changed=changes.condition,
        leaf=only(listed.leaf),
    )
    return [BlockCount(listed.leaf.oid, *row) for row in source.execute(query)]


def rows_of(table: SourceTable, listed: BlockList, changes: ChangedRows) -> Selection:
    """Return the selection of the changed rows of some blocks, for one COPY."""
    columns = columns_sql(table.names) + sql.SQL(", ") if table.names else sql.SQL("")
    item = sql.SQL(_ROWS).format(
        blocks=sql.Literal(list(listed.blocks)),
        columns=columns + sql.SQL("xmin, ctid"),
        leaf=only(listed.leaf),
        changed=changes.condition,
    )
    return Selection(item, sql.SQL("true"), listed.leaf.oid)


def live_rows(leaf: Leaf, blocks: Sequence[int]) -> sql.Composed:
    """Return the COPY of where the live rows of some blocks lie: leaf, tid, low 32 bits of xmin."""
    item = sql.SQL(_ROWS).format(
        blocks=sql.Literal(list(blocks)),
        columns=sql.SQL("xmin, ctid"),
        leaf=only(leaf),
        changed=sql.SQL("true"),
    )
    return sql.SQL("copy (select {}::oid, ctid, xmin::text::bigint from {}) to stdout").format(
        sql.Literal(leaf.oid), item
    )
