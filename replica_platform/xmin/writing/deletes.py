"""The deletes of a sync: whether any are needed, where they are looked for, how many are allowed.

The statements are `integrity.located_deletes`' and `integrity.deletes`'.
"""

from collections.abc import Mapping

import psycopg

from replica_platform.xmin.copy.buckets import BucketCounts
from replica_platform.xmin.integrity.delete_limit import DeleteLimit
from replica_platform.xmin.integrity.deletes import delete_absent_keys
from replica_platform.xmin.integrity.key_hashes import KeyHashes
from replica_platform.xmin.integrity.located_deletes import (
    counts_at,
    delete_located,
    suspicious_runs,
)
from replica_platform.xmin.plan import PlannedTable
from replica_platform.xmin.source.snapshot import SourceSnapshot
from replica_platform.xmin.stage import StagedTable
from replica_platform.xmin.target.block_counts import TableCounts, write_counts

_NOWHERE: Mapping[int, int] = {}


class Deletes:
    """The deletes of staged tables; called in a transaction on the target."""

    def __init__(
        self, source: SourceSnapshot, target: psycopg.Connection, max_fraction: float
    ) -> None:
        self._source = source
        self._target = target
        self._max_fraction = max_fraction

    def counts_before(self, staged: StagedTable) -> BucketCounts | None:
        """Return where the rows of the target lay when they were read; None where unknown."""
        planned, watermark = staged.planned, staged.planned.locked.watermark
        # Keys of another type in the target are not looked up one by one.
        if staged.scan is None or set(planned.key) & planned.casts.keys():
            return None
        if watermark is None:
            return staged.loaded
        return counts_at(self._target, planned.target, watermark.snapshot)

    def delete(
        self,
        staged: StagedTable,
        rows: int,
        before: BucketCounts | None = None,
        left: Mapping[int, int] = _NOWHERE,
    ) -> int:
        """Delete what the source lacks; in `auto` only where the counts say that rows are gone.

        Args:
            staged: The table.
            rows: How many rows the target has, or will have once the staged ones are merged.
            before: Where the rows lay at the last scan, where that is known.
            left: Where the rows lay that were updated.

        Returns:
            How many rows were deleted.

        Raises:
            TooManyDeletes: More would be deleted than is allowed.
        """
        planned = staged.planned
        deletes = planned.request.spec.deletes
        by_counts = deletes in ("auto", "blocks")  # where no blocks were read, as in `auto`
        if deletes == "never" or (by_counts and staged.source_rows == rows):
            return 0
        deleted = 0
        if by_counts and before is not None and staged.scan is not None:
            lost = before - staged.scan.kept - BucketCounts(before.blocks, left)
            deleted = delete_located(
                self._source.connection,
                planned.table,
                self._target,
                planned.target,
                planned.key,
                suspicious_runs(lost),
                rows - (staged.source_rows or 0),
            )
        if deletes == "keys" or rows - deleted != staged.source_rows:
            deleted += delete_absent_keys(
                self._source.connection,
                planned.table,
                self._target,
                planned.target,
                KeyHashes(planned.table, planned.key, rows, planned.casts),
            )
        self.check(planned, deleted, rows)
        return deleted

    def check(self, planned: PlannedTable, deleted: int, rows: int) -> None:
        """Refuse deletes beyond the limit.

        Raises:
            TooManyDeletes: More rows were deleted than is allowed.
        """
        if planned.taken_over:
            return  # taking over means to replace the rows
        DeleteLimit(
            planned.table,
            planned.target,
            planned.locked.watermark,
            self._source.snapshot.identity,
            self._max_fraction,
            planned.rewritten,
        ).check(deleted, rows)

    def write_counts(self, staged: StagedTable) -> None:
        """Store where the rows lay, beside the watermark."""
        if staged.scan is None:
            return
        live = staged.scan.live
        counts = TableCounts(staged.target, live.blocks, live.listed())
        write_counts(self._target, self._source.snapshot.text, [counts])
