"""The writing half of a sync: staged rows, deletes and the watermark, in one transaction a table.

What is committed together is decided here, one method for each `WriteMethod`. The statements are
those of `target.write`, `integrity.deletes` and `target.tables`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import psycopg
from psycopg import sql

from replica_platform.xmin.copy.buckets import BucketCounts
from replica_platform.xmin.first_copy import ledger
from replica_platform.xmin.integrity.delete_limit import DeleteLimit
from replica_platform.xmin.integrity.deletes import delete_absent_keys
from replica_platform.xmin.integrity.key_hashes import KeyHashes
from replica_platform.xmin.integrity.located_deletes import (
    counts_at,
    delete_located,
    suspicious_runs,
)
from replica_platform.xmin.plan import PlannedTable
from replica_platform.xmin.reports import SyncReport, WriteMethod
from replica_platform.xmin.source.snapshot import SourceSnapshot
from replica_platform.xmin.stage import StagedTable
from replica_platform.xmin.target import watermark as watermarks
from replica_platform.xmin.target import write
from replica_platform.xmin.target.block_counts import write_counts
from replica_platform.xmin.target.columns import writable_columns
from replica_platform.xmin.target.owner import former_locations
from replica_platform.xmin.target.schemas import create_schema
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
from replica_platform.xmin.target.watermark import Watermark
from replica_platform.xmin.target.write import Equality, WriteSpec, WrittenRows

# Smaller tables skip ANALYZE: the planner's estimate by their size is good enough.
ANALYZE_FROM_ROWS = 10_000


class Diverged(Exception):
    """The target is proven not to hold what its watermark, or the ledger of a copy, says."""


@dataclass(frozen=True)
class Committed:
    """The target table once its rows are written.

    Attributes:
        oid: Its oid.
        written: The rows that were written.
        rows: How many rows it has.
    """

    oid: int
    written: WrittenRows
    rows: int


class Commit:
    """Writes staged tables; called in a transaction on the target."""

    def __init__(
        self, source: SourceSnapshot, target: psycopg.Connection, max_delete_fraction: float
    ) -> None:
        self._source = source
        self._target = target
        self._max_delete_fraction = max_delete_fraction

    def __call__(self, staged: StagedTable) -> SyncReport:
        """Write the staged rows, the deletes and the watermark of one table.

        Raises:
            Diverged: The target does not hold what its watermark or its ledger says.
            TooManyDeletes: More rows would be deleted than is allowed.
        """
        planned, staging = staged.planned, staging_name(staged.target)
        rows_read = self._staged_rows(staged)
        delivered = self._delivered(staged)
        found = planned.locked.found
        if found is None:
            loaded = staged.rows_loaded
            if loaded is None:
                loaded = count_rows(self._target, load_name(staged.target))
            rows_read += loaded
            committed = self._first_copy(staged, loaded)
        else:
            committed = self._into_existing(staged, found)
        if staged.has_rows:
            drop(self._target, staging)
        watermarks.write(self._target, self._watermark(planned, committed, delivered))
        self._write_counts(staged)
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
            + tuple(change.note for change in planned.changes if change.note),
            seconds=planned.request.times.total,
            seconds_by_step=planned.request.times.by_step,
        )

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
        create_schema(self._target, target.schema)
        try:
            with planned.request.times.step("adopt"):
                oid = adopt(self._target, target, planned.key)
        except psycopg.errors.UniqueViolation as error:
            if staged.scanned is None:
                raise  # the key that was named is none; no other copy would help
            raise Diverged(
                "The interrupted copy holds a key twice, so it is not continued: all rows are read."
            ) from error
        ledger.clear(self._target, target)
        if staged.scanned is not None:
            _, rows = self._merge(staged, inspect(self._target, [target])[target], rows)
        return Committed(oid, WrittenRows(inserted=rows), rows)

    def _into_existing(self, staged: StagedTable, found: TargetTable) -> Committed:
        """Change the target's definition, then write the rows by the staged method."""
        for change in staged.planned.changes:
            if change.statement is not None:
                alter(self._target, change.statement)
        methods = {
            WriteMethod.MERGE: self._merge,
            WriteMethod.REPLACE: self._replace,
            WriteMethod.REPAIR: self._repair,
            WriteMethod.MULTISET: self._replace_multiset,
        }
        return Committed(found.oid, *methods[staged.method](staged, found))

    def _merge(
        self, staged: StagedTable, found: TargetTable, rows: int | None = None
    ) -> tuple[WrittenRows, int]:
        """Merge the staged rows by key, delete what the source lacks, and check the counts.

        Args:
            staged: The staged rows.
            found: The target table.
            rows: How many rows it has, where that is known.
        """
        planned = staged.planned
        written, deleted = WrittenRows(), 0
        rows = self._rows_before(planned) if rows is None else rows
        deletes_first = found.has_constraints_beside(planned.key)
        before = self._counts_before(staged)
        if deletes_first:
            deleted = self._delete_before_merge(staged, found, rows, before)
        if staged.has_rows:
            # A new leaf may hold a key under the xmin that another leaf had it under.
            by_xmin = staged.scanned is not None and not staged.scanned.new_leaves
            equality = Equality.XMIN if by_xmin else Equality.XMIN_AND_CONTENT
            with planned.request.times.step("merge"):
                written = write.merge(
                    self._target,
                    _write_spec(staged, found),
                    equality,
                    before.blocks if before else None,
                )
        rows += written.inserted
        if not deletes_first:
            with planned.request.times.step("deletes"):
                deleted = self._delete(staged, rows, before, written.left)
        if staged.scanned is not None:
            _check_counts(staged, rows - deleted)
        return replace(written, deleted=deleted), rows - deleted

    def _delete_before_merge(
        self, staged: StagedTable, found: TargetTable, rows: int, before: BucketCounts | None
    ) -> int:
        """Delete first, where a new row may need the unique value of a deleted one."""
        if staged.has_rows:
            rows += write.count_new_keys(self._target, _write_spec(staged, found))
        with staged.planned.request.times.step("deletes"):
            return self._delete(staged, rows, before, {})

    def _replace(self, staged: StagedTable, found: TargetTable) -> tuple[WrittenRows, int]:
        """Make the staged rows the content of the table, or of the scope of a repair."""
        rows = count_rows(self._target, staged.target)  # the watermark's count is not believed
        with staged.planned.request.times.step("replace"):
            written = write.replace_by_key(self._target, _write_spec(staged, found))
        self._check_deletes(staged.planned, written.deleted, rows)
        return written, rows + written.inserted - written.deleted

    def _repair(self, staged: StagedTable, found: TargetTable) -> tuple[WrittenRows, int]:
        """Replace the rows of the key ranges that differ, where there are any."""
        if staged.has_rows:
            return self._replace(staged, found)
        return WrittenRows(), count_rows(self._target, staged.target)

    def _replace_multiset(self, staged: StagedTable, found: TargetTable) -> tuple[WrittenRows, int]:
        """Make the staged rows the content of a table without a key."""
        rows = count_rows(self._target, staged.target)
        with staged.planned.request.times.step("replace"):
            written = write.replace_multiset(self._target, _write_spec(staged, found))
        # Without a key a changed row is a deleted and an inserted one.
        self._check_deletes(staged.planned, max(0, written.deleted - written.inserted), rows)
        return written, rows + written.inserted - written.deleted

    def _rows_before(self, planned: PlannedTable) -> int:
        watermark = planned.locked.watermark
        if watermark is not None and watermark.rows is not None:
            return watermark.rows
        return count_rows(self._target, planned.target)

    def _delete(
        self,
        staged: StagedTable,
        rows: int,
        before: BucketCounts | None,
        left: Mapping[int, int],
    ) -> int:
        """Delete what the source lacks; in `auto` only where the counts say that rows are gone.

        Args:
            staged: The table.
            rows: How many rows the target has, or will have once the staged ones are merged.
            before: Where the rows lay at the last scan.
            left: Where the updated rows lay.
        """
        planned = staged.planned
        deletes = planned.request.spec.deletes
        if deletes == "never" or (deletes == "auto" and staged.source_rows == rows):
            return 0
        deleted = 0
        if deletes == "auto" and before is not None and staged.scan is not None:
            lost = before - staged.scan.kept - BucketCounts(before.blocks, left)
            deleted = delete_located(
                self._source.connection,
                planned.table,
                self._target,
                planned.target,
                planned.key,
                suspicious_runs(lost),
            )
        if deletes == "keys" or rows - deleted != staged.source_rows:
            deleted += delete_absent_keys(
                self._source.connection,
                planned.table,
                self._target,
                planned.target,
                KeyHashes(planned.table, planned.key, rows, planned.casts),
            )
        self._check_deletes(planned, deleted, rows)
        return deleted

    def _counts_before(self, staged: StagedTable) -> BucketCounts | None:
        """Return where the rows of the target lay when they were read; None where unknown."""
        planned, watermark = staged.planned, staged.planned.locked.watermark
        if staged.scan is None or set(planned.key) & planned.casts.keys():
            return None
        if watermark is None:
            return staged.loaded
        return counts_at(self._target, planned.target, watermark.snapshot)

    def _write_counts(self, staged: StagedTable) -> None:
        """Store where the rows lay, beside the watermark."""
        if staged.scan is None:
            return
        live = staged.scan.live
        counts = [live.rows.get(number, 0) for number in range(max(live.rows, default=-1) + 1)]
        write_counts(self._target, staged.target, self._source.snapshot.text, live.blocks, counts)

    def _check_deletes(self, planned: PlannedTable, deleted: int, rows: int) -> None:
        if planned.taken_over:
            return  # taking over means to replace the rows
        DeleteLimit(
            planned.table,
            planned.target,
            planned.locked.watermark,
            self._source.snapshot.identity,
            self._max_delete_fraction,
            planned.rewritten,
        ).check(deleted, rows)

    def _delivered(self, staged: StagedTable) -> tuple[int, ...] | None:
        """Return the xids at or above the new W that need no second read; None for too many.

        They come from rows, never from the snapshot's list, which has no subtransactions.
        """
        w = self._source.snapshot.w
        if self._source.snapshot.quiet or not staged.planned.table.has_xmin:
            return ()
        delivered = {xid for xid in _delivered_before(staged) if xid >= w}
        if staged.has_rows:
            query = sql.SQL("select distinct source_xmin from {} where source_xmin >= {} limit {}")
            most = sql.Literal(watermarks.DELIVERED_CAP + 1)
            found = self._target.execute(
                query.format(staging_name(staged.target).sql, sql.Literal(w), most)
            )
            delivered |= {xid for (xid,) in found}
        return tuple(sorted(delivered)) if len(delivered) <= watermarks.DELIVERED_CAP else None

    def _watermark(
        self, planned: PlannedTable, committed: Committed, delivered: tuple[int, ...] | None
    ) -> Watermark:
        snapshot, table, plan = self._source.snapshot, planned.table, planned.plan
        former = former_locations(planned.locked.owner, snapshot.identity, table)
        return Watermark(
            target_table=str(planned.target),
            source_table=str(planned.request.source),
            mode=plan.mode,
            w=snapshot.w,
            next=snapshot.next,
            snapshot=snapshot.text,
            delivered=delivered or (),
            complete=delivered is not None,
            identity=replace(snapshot.identity, former=former),
            fingerprint=table.fingerprint,
            leaves=table.filenodes,
            rows=committed.rows,
            target_oid=committed.oid,
            deletes=planned.request.spec.deletes,
            timestamp_from=self._source.running_since if plan.mode == "timestamp" else None,
        )


def _write_spec(staged: StagedTable, found: TargetTable) -> WriteSpec:
    planned = staged.planned
    columns = writable_columns(planned.table, found)
    # Not where the delete would take more than the insert brings back.
    kept = set(found.columns) - found.generated - set(columns)
    delete_changed = (
        found.has_constraints_beside(planned.key) and not found.referred_to and not kept
    )
    return WriteSpec(
        staged.target,
        staging_name(staged.target),
        columns,
        planned.key,
        found.always_identity,
        planned.casts,
        delete_changed,
        staged.scope,
    )


def _delivered_before(staged: StagedTable) -> tuple[int, ...]:
    """Return what the watermark lists as delivered, where the sync continues from it."""
    watermark = staged.planned.locked.watermark
    if watermark is None or not watermark.complete or staged.planned.plan.mode != "scan":
        return ()
    return watermark.delivered


def _check_counts(staged: StagedTable, rows: int) -> None:
    """Compare the counts after a scan: the target has at least the source's rows.

    Raises:
        Diverged: It has fewer, or with deletes other than as many.
    """
    deletes, source_rows = staged.planned.request.spec.deletes, staged.source_rows
    if source_rows is None or rows == source_rows or (deletes == "never" and rows > source_rows):
        return
    raise Diverged(
        f"The target has {rows:,} rows where the source has {source_rows:,}, though its watermark "
        "says that all were delivered; somebody has written to it."
    )
