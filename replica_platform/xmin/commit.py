"""The writing half of a sync: staged rows, deletes and the watermark of one table.

What is committed together is decided here, one method for each `WriteMethod`. The statements are
those of `target.write`, `integrity.deletes` and `target.tables`.
"""

from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar, cast

import psycopg
from psycopg import sql

from replica_platform.xmin.blocks import history
from replica_platform.xmin.blocks.choice import TableBlocks
from replica_platform.xmin.blocks.write import BlockWrite, WrongCount, copy_live
from replica_platform.xmin.copy.buckets import BucketCounts
from replica_platform.xmin.first_copy import ledger
from replica_platform.xmin.integrity.prover import Prover
from replica_platform.xmin.plan import PlannedTable
from replica_platform.xmin.reports import SyncReport, WriteMethod
from replica_platform.xmin.source.snapshot import SourceSnapshot
from replica_platform.xmin.stage import StagedTable
from replica_platform.xmin.target import watermark as watermarks
from replica_platform.xmin.target import write
from replica_platform.xmin.target.tables import (
    TargetTable,
    adopt,
    alter,
    count_rows,
    drop,
    inspect,
    load_name,
    staging_name,
)
from replica_platform.xmin.target.write import Equality, WrittenRows
from replica_platform.xmin.writing.content import Content, proof_notes
from replica_platform.xmin.writing.deletes import Deletes
from replica_platform.xmin.writing.next_watermark import delivered_xids, next_watermark
from replica_platform.xmin.writing.unchanged import advance_unchanged, is_unchanged
from replica_platform.xmin.writing.written import (
    Committed,
    Diverged,
    check_counts,
    check_triggers,
    write_spec,
)

# Smaller tables skip ANALYZE: the planner's estimate by their size is good enough.
ANALYZE_FROM_ROWS = 10_000


_Steps = Generator[None, None, tuple[WrittenRows, int]]
Result = TypeVar("Result")


def run_all(steps: Generator[None, None, Result]) -> Result:
    """Run the steps that are left, and return the result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast(Result, end.value)


class Commit:
    """Writes staged tables; called in a transaction on the target."""

    def __init__(
        self,
        source: SourceSnapshot,
        target: psycopg.Connection,
        max_delete_fraction: float,
        prover: Prover,
    ) -> None:
        self._source = source
        self._target = target
        self._deletes = Deletes(source, target, max_delete_fraction)
        self._content = Content(source, target, prover, self._deletes)

    def steps(
        self, staged: StagedTable, *, linked: bool = False
    ) -> Generator[None, None, SyncReport]:
        """Write the staged rows; then the deletes and the watermark of one table.

        Args:
            staged: The table.
            linked: Whether foreign keys join it to others of the same transaction: a row that one
                of them may refer to is then deleted in the second step.

        Yields:
            After the first step.

        Returns:
            The report.

        Raises:
            Diverged: The target does not hold what its watermark or its ledger says.
            TooManyDeletes: More rows would be deleted than is allowed.
            CannotSync: A trigger kept rows from being written as they are.
        """
        planned, staging = staged.planned, staging_name(staged.target)
        found = planned.locked.found
        if planned.plan.mode == "none" and found is not None:
            yield
            rows = self._rows_before(planned)
            unchanged = Committed(found.oid, WrittenRows(), rows)
            return self._content.prove_unchanged(staged, unchanged)
        rows_read = self._staged_rows(staged)
        delivered = delivered_xids(self._source, self._target, staged)
        if found is None:
            loaded = staged.rows_loaded
            if loaded is None:
                loaded = count_rows(self._target, load_name(staged.target))
            rows_read += loaded
            committed = self._first_copy(staged, loaded)
            yield
        else:
            committed = yield from self._into_existing(staged, found, linked)
        if staged.has_rows:
            drop(self._target, staging)
        committed = self._content.prove(staged, committed)
        watermarks.write(self._target, next_watermark(self._source, planned, committed, delivered))
        self._deletes.write_counts(staged)
        written, notes = committed.written, planned.report.notes
        return replace(
            planned.report,
            written_by=staged.method,
            rows_read=rows_read,
            rows_inserted=written.inserted,
            rows_updated=written.updated,
            rows_deleted=written.deleted,
            bytes=staged.bytes,
            rows=committed.rows,
            w=self._source.snapshot.w,
            notes=notes
            + staged.notes
            + tuple(change.note for change in planned.changes if change.note)
            + proof_notes(committed.proof),
            seconds=planned.request.times.total,
            seconds_by_step=planned.request.times.by_step,
            proof=committed.proof,
            blocks_read=planned.plan.blocks.count if planned.plan.blocks else 0,
            blocks=planned.table.blocks if planned.plan.blocks else 0,
        )

    def keep_history(self) -> None:
        """Store what later syncs by blocks start from; the source has flushed it."""
        snapshot = self._source.snapshot
        history.keep(self._target, snapshot.identity, self._source.start_point, snapshot.w)

    def is_unchanged(self, staged: StagedTable) -> bool:
        """Return whether a scan found a table as it was, so that only its watermark moves."""
        return is_unchanged(self._source, self._target, staged)

    def advance(
        self, tables: Sequence[PlannedTable], scanned: Sequence[StagedTable] = ()
    ) -> dict[str, SyncReport]:
        """Store that unchanged tables were synced now, in a few statements for all of them.

        Args:
            tables: Those that were not read.
            scanned: Those that were scanned.

        Returns:
            The reports of those whose watermarks move: of which no block changed, and the scanned.
        """
        snapshot = self._source.snapshot
        reports = advance_unchanged(self._source, self._target, scanned) if scanned else {}
        moved = [one for one in tables if one.plan.advance]
        watermarks.advance(self._target, [one.target for one in moved], snapshot)
        watermarks.confirm(self._target, [one.target for one in tables if not one.plan.advance])
        return reports | {
            str(one.target): replace(one.report, w=snapshot.w, seconds=one.request.times.total)
            for one in moved
        }

    def _staged_rows(self, staged: StagedTable) -> int:
        if not staged.has_rows:
            return 0
        staging = staging_name(staged.target)
        rows = count_rows(self._target, staging)
        if rows > ANALYZE_FROM_ROWS:
            self._target.execute(sql.SQL("analyze {}").format(staging.sql))
        return rows

    def _first_copy(self, staged: StagedTable, rows: int) -> Committed:
        """Adopt the loaded table; then merge what an interrupted copy had missed.

        Raises:
            Diverged: An interrupted copy that was continued holds a key twice.
        """
        planned, target = staged.planned, staged.target
        try:
            with planned.request.times.step("adopt"):
                oid = adopt(self._target, target, planned.key, locations=planned.locations)
        except psycopg.errors.UniqueViolation as error:
            if staged.scanned is None:
                raise  # the key that was named is none; no other copy would help
            raise Diverged(
                "The interrupted copy holds a key twice, so it is not continued: all rows are read."
            ) from error
        ledger.clear(self._target, target)
        if staged.scanned is not None:
            found = inspect(self._target, [target])[target]
            _, rows = run_all(self._merge(staged, found, False, rows))
        return Committed(oid, WrittenRows(inserted=rows), rows)

    def _into_existing(
        self, staged: StagedTable, found: TargetTable, linked: bool
    ) -> Generator[None, None, Committed]:
        """Change the target's definition, then write the rows by the staged method."""
        for change in staged.planned.changes:
            if change.statement is not None:
                alter(self._target, change.statement)
        methods = {
            WriteMethod.MERGE: self._merge,
            WriteMethod.BLOCKS: self._merge_blocks,
            WriteMethod.REPLACE: self._replace,
            WriteMethod.REPAIR: self._repair,
            WriteMethod.MULTISET: self._replace_multiset,
        }
        written, rows = yield from methods[staged.method](staged, found, linked)
        if found.row_triggers:
            check_triggers(self._target, staged, found)
        return Committed(found.oid, written, rows)

    def _merge(
        self, staged: StagedTable, found: TargetTable, linked: bool, loaded: int | None = None
    ) -> _Steps:
        """Merge the staged rows by key, delete what the source lacks, and check the counts.

        Args:
            staged: The staged rows.
            found: The target table.
            linked: Whether foreign keys join it to others of the same transaction.
            loaded: Of a first copy: how many rows it has.
        """
        planned = staged.planned
        written, deleted = WrittenRows(), 0
        rows = self._rows_before(planned) if loaded is None else loaded
        before = self._deletes.counts_before(staged)
        deletes_first = self._deletes_first(staged, found, linked)
        if deletes_first:
            deleted = self._delete_before_merge(staged, found, rows, before)
        if staged.has_rows:
            # A new leaf may hold a key under the xmin that another leaf had it under.
            by_xmin = staged.scanned is not None and not staged.scanned.new_leaves
            equality = Equality.XMIN if by_xmin else Equality.XMIN_AND_CONTENT
            with planned.request.times.step("merge"):
                blocks = before.blocks if before else None
                written = write.merge(self._target, write_spec(staged, found), equality, blocks)
        rows += written.inserted
        yield
        if not deletes_first:
            with planned.request.times.step("deletes"):
                deleted = self._deletes.delete(staged, rows, before, written.left)
        if staged.scanned is not None:
            check_counts(staged, rows - deleted)
        return replace(written, deleted=deleted), rows - deleted

    def _merge_blocks(self, staged: StagedTable, found: TargetTable, linked: bool) -> _Steps:
        """Write the changed rows, and delete block by block what the source no longer holds."""
        planned = staged.planned
        deletes = planned.request.spec.deletes
        rows = self._rows_before(planned)
        blocks = BlockWrite(
            self._target,
            write_spec(staged, found),
            staged.counts,
            planned.table,
            planned.plan.blocks or TableBlocks(),
            staged.has_rows,
        )
        live = partial(copy_live, self._source, self._target, planned.table)
        deletes_first = not planned.key or self._deletes_first(staged, found, linked)
        step = planned.request.times.step
        try:
            if deletes_first and deletes != "never":
                with step("merge"):
                    written = blocks.delete_and_write(live)
                yield
            else:
                with step("merge"):
                    written = blocks.write()
                yield
                with step("deletes"):
                    deleted = blocks.delete(live, keep=deletes == "never")
                written = replace(written, deleted=deleted)
        except WrongCount as wrong:
            raise Diverged(str(wrong)) from wrong
        if deletes == "keys":
            deleted = self._deletes.delete(staged, rows + written.inserted - written.deleted, None)
            written = replace(written, deleted=written.deleted + deleted)
        # Without a key a changed row is a deleted and an inserted one.
        lost = written.deleted if planned.key else max(0, written.deleted - written.inserted)
        self._deletes.check(planned, lost, rows)
        return written, rows + written.inserted - written.deleted

    def _deletes_first(self, staged: StagedTable, found: TargetTable, linked: bool) -> bool:
        """Return whether a new row may need the unique value of a deleted one."""
        return found.has_constraints_beside(staged.planned.key) and not (
            linked and found.referred_to
        )

    def _delete_before_merge(
        self, staged: StagedTable, found: TargetTable, rows: int, before: BucketCounts | None
    ) -> int:
        """Delete first, where a new row may need the unique value of a deleted one."""
        if staged.has_rows:
            rows += write.count_new_keys(self._target, write_spec(staged, found))
        with staged.planned.request.times.step("deletes"):
            return self._deletes.delete(staged, rows, before)

    def _replace(self, staged: StagedTable, found: TargetTable, linked: bool) -> _Steps:
        """Make the staged rows the content of the table, or of the scope of a repair."""
        rows = count_rows(self._target, staged.target)  # the watermark's count is not believed
        step = staged.planned.request.times.step
        spec, deletes_last = write_spec(staged, found), linked and found.referred_to
        with step("replace"):
            if deletes_last:
                written = write.merge(self._target, spec, Equality.XMIN_AND_CONTENT)
            else:
                written = write.replace_by_key(self._target, spec)
        yield
        if deletes_last:
            with step("replace"):
                written = replace(written, deleted=write.delete_unstaged(self._target, spec))
        self._deletes.check(staged.planned, written.deleted, rows)
        return written, rows + written.inserted - written.deleted

    def _repair(self, staged: StagedTable, found: TargetTable, linked: bool) -> _Steps:
        """Replace the rows of the key ranges that differ, where there are any."""
        if staged.has_rows:
            return (yield from self._replace(staged, found, linked))
        yield
        return WrittenRows(), count_rows(self._target, staged.target)

    def _replace_multiset(self, staged: StagedTable, found: TargetTable, linked: bool) -> _Steps:
        """Make the staged rows the content of a table without a key."""
        rows = count_rows(self._target, staged.target)
        with staged.planned.request.times.step("replace"):
            written = write.replace_multiset(self._target, write_spec(staged, found))
        yield
        # Without a key a changed row is a deleted and an inserted one.
        self._deletes.check(staged.planned, max(0, written.deleted - written.inserted), rows)
        return written, rows + written.inserted - written.deleted

    def _rows_before(self, planned: PlannedTable) -> int:
        watermark = planned.locked.watermark
        # By blocks the rows are counted on a schedule only; then the watermark is not believed.
        counts = planned.plan.mode == "scan" and planned.locations
        if watermark is not None and watermark.rows is not None and not counts:
            return watermark.rows
        return count_rows(self._target, planned.target)
