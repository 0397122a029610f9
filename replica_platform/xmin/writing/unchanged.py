"""Tables that were scanned and found as they were: their watermarks move, all in two statements.

Most tables of a large group are such. A transaction each would cost more than their scans.
"""

from collections.abc import Sequence
from dataclasses import replace

import psycopg

from replica_platform.xmin.reports import SyncReport
from replica_platform.xmin.source.snapshot import SourceSnapshot
from replica_platform.xmin.stage import StagedTable
from replica_platform.xmin.target import watermark as watermarks
from replica_platform.xmin.target.block_counts import TableCounts, write_counts
from replica_platform.xmin.target.write import WrittenRows
from replica_platform.xmin.writing.next_watermark import delivered_xids, next_watermark
from replica_platform.xmin.writing.written import Committed

_MOVES = ("w", "next", "snapshot", "delivered", "located_at", "counted_at")


def is_unchanged(source: SourceSnapshot, target: psycopg.Connection, staged: StagedTable) -> bool:
    """Return whether nothing but the position in the source's history is to be written.

    Args:
        source: The snapshot of the sync.
        target: A session on the target.
        staged: The table.
    """
    planned, before = staged.planned, staged.planned.locked.watermark
    found = planned.locked.found
    if (
        staged.scan is None
        or staged.has_rows
        or before is None
        or found is None
        or not before.complete
        or planned.part is not None
        or planned.changes
        or planned.locations  # then the target's rows are counted too
        or planned.request.spec.deletes not in ("auto", "blocks")
        or before.rows is None
        or before.rows != staged.source_rows
    ):
        return False
    committed = Committed(found.oid, WrittenRows(), before.rows)
    after = next_watermark(source, planned, committed, delivered_xids(source, target, staged))
    return replace(after, **{name: getattr(before, name) for name in _MOVES}) == before


def advance_unchanged(
    source: SourceSnapshot, target: psycopg.Connection, tables: Sequence[StagedTable]
) -> dict[str, SyncReport]:
    """Move the watermarks and counts of tables that are unchanged, and return their reports."""
    snapshot = source.snapshot
    watermarks.advance(target, [one.target for one in tables], snapshot, counted=True)
    counts = [
        TableCounts(one.target, one.scan.live.blocks, one.scan.live.listed())
        for one in tables
        if one.scan is not None
    ]
    write_counts(target, snapshot.text, counts)
    return {
        str(one.target): replace(
            one.planned.report,
            written_by=one.method,
            bytes=one.bytes,
            rows=one.source_rows,
            w=snapshot.w,
            notes=one.planned.report.notes + one.notes,
            seconds=one.planned.request.times.total,
            seconds_by_step=one.planned.request.times.by_step,
        )
        for one in tables
    }
