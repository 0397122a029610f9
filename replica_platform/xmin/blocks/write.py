"""Changed rows written into the target, and the rows that changed blocks no longer hold deleted.

In the caller's transaction. With a key the rows are merged, and what is left over in a block is
gone. Without one a row version is known by its location and xmin: a changed row is another version,
inserted, and its old one is deleted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import psycopg
from psycopg import sql

from replica_platform.xmin.blocks.choice import TableBlocks
from replica_platform.xmin.blocks.deletes import ALL, BlockDeletes, Difference
from replica_platform.xmin.blocks.read import BlockCount, live_rows
from replica_platform.xmin.copy.stream import copy_stream
from replica_platform.xmin.names import columns_sql
from replica_platform.xmin.source.catalog import SourceTable
from replica_platform.xmin.source.snapshot import SourceSnapshot
from replica_platform.xmin.target import write
from replica_platform.xmin.target.write import Equality, WriteSpec, WrittenRows

CopyLive = Callable[[Sequence[Difference], sql.Composable], None]

_NOT_STAGED = "not exists (select from {staging} s where {on})"
_INSERT_NEW = """
insert into {target} ({columns}) overriding system value
select {staged} from {staging} s where not exists (
    select from {target} t where t.source_leaf = s.source_leaf and t.source_block = s.source_block
    and t.source_ctid = s.source_ctid
    and (t.source_xmin & 4294967295) = (s.source_xmin & 4294967295))
"""


class WrongCount(Exception):
    """The target lacks rows of a changed block, or keeps some; the text says which block."""


@dataclass(frozen=True)
class BlockWrite:
    """The rows of one table's changed blocks, to be written.

    Attributes:
        target: The session, in the transaction that commits the watermark.
        spec: The target table and its staging table.
        counts: What the changed blocks hold in the source.
        table: The source table.
        blocks: The changed blocks.
        has_rows: Whether rows are staged.
    """

    target: psycopg.Connection
    spec: WriteSpec
    counts: Sequence[BlockCount]
    table: SourceTable
    blocks: TableBlocks
    has_rows: bool

    def write(self) -> WrittenRows:
        """Write the changed rows; `delete` comes next."""
        return self._insert()

    def delete(self, copy_live: CopyLive, *, keep: bool = False) -> int:
        """Delete what is left over in the changed blocks, once `write` has moved the other rows.

        Args:
            copy_live: Copies where the live rows of some blocks lie into a table.
            keep: Whether deleted rows are kept, and only the number of the others is checked.

        Raises:
            WrongCount: The target does not hold what its watermark says.
        """
        deletes = self._deletes(without_changed=False)
        differing = deletes.differences()
        _refuse_missing(differing)
        deleted = 0
        if not keep:
            deleted = self._delete_surplus(deletes, differing, copy_live, ALL)
            _refuse_left_over(differing, deleted)
            deleted += deletes.delete_leaves(self._leaves, self._not_staged)
        deletes.end()
        return deleted

    def delete_and_write(self, copy_live: CopyLive) -> WrittenRows:
        """Delete first, where there is no key, or a new row may need a deleted one's value.

        Args:
            copy_live: Copies where the live rows of some blocks lie into a table.

        Raises:
            WrongCount: The target does not hold what its watermark says.
        """
        deletes = self._deletes(without_changed=True)
        differing = deletes.differences()
        deleted = self._delete_surplus(deletes, differing, copy_live, self._not_staged)
        deleted += deletes.delete_leaves(self._leaves, self._not_staged)
        deletes.end()
        written = self._insert()
        check = self._deletes(without_changed=False)
        _refuse_any(check.differences())
        check.end()
        return replace(written, deleted=deleted)

    def _delete_surplus(
        self,
        deletes: BlockDeletes,
        differing: Sequence[Difference],
        copy_live: CopyLive,
        spared: sql.Composable,
    ) -> int:
        surplus = [one for one in differing if one.surplus > 0]
        if not surplus:
            return 0
        return deletes.delete(surplus, lambda into: copy_live(surplus, into), spared)

    def _insert(self) -> WrittenRows:
        if not self.has_rows:
            return WrittenRows()
        if self.spec.key:
            # A leaf that is read whole may hold a key under the xmin that another one had it under.
            by_xmin = Equality.XMIN if not self.blocks.whole else Equality.XMIN_AND_CONTENT
            return write.merge(self.target, self.spec, by_xmin)
        statement = sql.SQL(_INSERT_NEW).format(
            target=self.spec.target.sql,
            staging=self.spec.staging.sql,
            columns=columns_sql(self.spec.columns),
            staged=columns_sql(self.spec.columns, "s"),
        )
        return WrittenRows(inserted=self.target.execute(statement).rowcount)

    def _deletes(self, *, without_changed: bool) -> BlockDeletes:
        deletes = BlockDeletes(self.target, self.spec.target)
        deletes.expect(self.counts, without_changed=without_changed)
        for leaf in self.table.leaves:
            changed = self.blocks.leaves.get(leaf.oid)
            if changed is not None and changed.tail is not None:
                deletes.expect_end(leaf.oid, leaf.blocks)
        return deletes

    @property
    def _leaves(self) -> list[int]:
        """The leaves of which the target's rows are replaced, or go."""
        return sorted(self.blocks.whole | self.blocks.gone)

    @property
    def _not_staged(self) -> sql.Composable:
        """The condition that no staged row has the key of `t`."""
        if not self.spec.key or not self.has_rows:
            return ALL
        return sql.SQL(_NOT_STAGED).format(staging=self.spec.staging.sql, on=self.spec.key_matches)


def copy_live(
    source: SourceSnapshot,
    target: psycopg.Connection,
    table: SourceTable,
    surplus: Sequence[Difference],
    into: sql.Composable,
) -> None:
    """Copy where the live rows of some blocks lie in the source into a table of the target."""
    command = sql.SQL("copy {} from stdin").format(into)
    for leaf in table.leaves:
        blocks = sorted(one.block for one in surplus if one.leaf == leaf.oid)
        if blocks:
            query = live_rows(leaf, blocks)
            copy_stream(source.connection, query, target, command, table.name)


def _refuse_missing(differing: Sequence[Difference]) -> None:
    missing = [one for one in differing if one.surplus < 0]
    if missing:
        raise WrongCount(_sentence(missing))


def _refuse_left_over(differing: Sequence[Difference], deleted: int) -> None:
    if deleted != sum(one.surplus for one in differing):
        raise WrongCount(_sentence(differing))


def _refuse_any(differing: Sequence[Difference]) -> None:
    if differing:
        raise WrongCount(_sentence(differing))


def _sentence(differing: Sequence[Difference]) -> str:
    one = differing[0]
    return (
        f"{len(differing):,} changed blocks hold another number of rows than in the source "
        f"({one.surplus:+} in block {one.block} of leaf {one.leaf}), though the watermark says "
        "that all were delivered; somebody has written to the target."
    )
