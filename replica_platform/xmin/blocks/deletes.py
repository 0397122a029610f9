"""Deletes by block: rows of the target whose block changed in the source and holds them no longer.

A row that is alive in an unchanged block was there at the last sync, so the target has that block
as its location. So a row whose location is a changed block, and that no changed block holds, is
gone. Blocks are compared by the number of their rows, and only those with too many row by row.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from replica_platform.xmin.blocks.read import BlockCount
from replica_platform.xmin.names import TableName

_BLOCKS = sql.SQL("pg_temp.replica_blocks")
_LIVE = sql.SQL("pg_temp.replica_live")

_CREATE = """
create temp table {blocks} (leaf oid, block bigint, live bigint, primary key (leaf, block))
on commit drop
"""
_PAST_THE_END = """
-- Blocks that the leaf no longer has: nothing in them is alive.
insert into {blocks} select distinct t.source_leaf, t.source_block, 0 from {target} t
where t.source_leaf = {leaf}::oid and t.source_block >= {end}
on conflict do nothing
"""
_DIFFERING = """
select b.leaf, b.block, c.n - b.live from {blocks} b
cross join lateral (select count(*) from {target} t
    where t.source_leaf = b.leaf and t.source_block = b.block) c(n)
where c.n <> b.live
"""
_CREATE_LIVE = "create temp table {live} (leaf oid, tid tid, version bigint) on commit drop"
_DELETE = """
delete from {target} t using unnest({leaves}::oid[], {numbers}::bigint[]) b(leaf, block)
where t.source_leaf = b.leaf and t.source_block = b.block
and not exists (select from {live} l where l.leaf = t.source_leaf and l.tid = t.source_ctid
                and l.version = t.source_xmin & 4294967295)
and {spared}
"""
_DELETE_LEAVES = "delete from {target} t where t.source_leaf = any({leaves}::oid[]) and {spared}"

ALL = sql.SQL("true")


@dataclass(frozen=True)
class Difference:
    """A changed block of which the target has another number of rows than the source.

    Attributes:
        leaf: The leaf's oid.
        block: The block.
        surplus: How many rows too many the target has; negative for too few.
    """

    leaf: int
    block: int
    surplus: int


class BlockDeletes:
    """The comparison of one table's changed blocks, in the transaction that writes its rows."""

    def __init__(self, target: psycopg.Connection, table: TableName) -> None:
        """Begin with no block."""
        self._target = target
        self._names = {"target": table.sql, "blocks": _BLOCKS, "live": _LIVE}

    def expect(self, counts: Iterable[BlockCount], *, without_changed: bool) -> None:
        """List the changed blocks and how many rows of the target each shall hold.

        Args:
            counts: What the source's blocks hold.
            without_changed: Whether the changed rows are still to be written.
        """
        self._run(_CREATE)
        with (
            self._target.cursor() as cursor,
            cursor.copy(sql.SQL("copy {} from stdin").format(_BLOCKS)) as copy,
        ):
            for one in counts:
                live = one.live - one.changed if without_changed else one.live
                copy.write_row((one.leaf, one.block, live))

    def expect_end(self, leaf: int, end: int) -> None:
        """Expect no row at or past the end of a leaf that was cut."""
        self._run(_PAST_THE_END, leaf=sql.Literal(leaf), end=sql.Literal(end))

    def differences(self) -> list[Difference]:
        """Return the blocks whose numbers of rows differ."""
        self._run("analyze {blocks}")
        return [Difference(*row) for row in self._run(_DIFFERING)]

    def delete(
        self,
        surplus: Sequence[Difference],
        copy_live: Callable[[sql.Composable], None],
        spared: sql.Composable = ALL,
    ) -> int:
        """Delete the rows that their blocks no longer hold; return how many.

        Args:
            surplus: The blocks with too many rows.
            copy_live: Copies the live rows of these blocks into the table that it is given.
            spared: A further condition on the rows `t` to delete.
        """
        self._run(_CREATE_LIVE)
        copy_live(_LIVE)
        self._run("create index on {live} (leaf, tid)")
        self._run("analyze {live}")
        deleted = self._run(
            _DELETE,
            leaves=sql.Literal([one.leaf for one in surplus]),
            numbers=sql.Literal([one.block for one in surplus]),
            spared=spared,
        ).rowcount
        self._run("drop table {live}")
        return deleted

    def delete_leaves(self, leaves: Sequence[int], spared: sql.Composable = ALL) -> int:
        """Delete the rows of leaves that the table no longer has; return how many."""
        if not leaves:
            return 0
        found = self._run(_DELETE_LEAVES, leaves=sql.Literal(list(leaves)), spared=spared)
        return found.rowcount

    def end(self) -> None:
        """Drop the list of blocks."""
        self._run("drop table {blocks}")

    def _run(self, statement: str, **more: sql.Composable) -> psycopg.Cursor:
        return self._target.execute(sql.SQL(statement).format(**self._names, **more))
