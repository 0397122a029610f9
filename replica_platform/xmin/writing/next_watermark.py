"""The watermark that a commit leaves for the next sync."""

from dataclasses import replace
from datetime import UTC, datetime

import psycopg
from psycopg import sql

from replica_platform.xmin.plan import PlannedTable
from replica_platform.xmin.source.snapshot import SourceSnapshot
from replica_platform.xmin.stage import StagedTable
from replica_platform.xmin.target import watermark as watermarks
from replica_platform.xmin.target.owner import former_locations
from replica_platform.xmin.target.tables import staging_name
from replica_platform.xmin.target.watermark import Watermark
from replica_platform.xmin.writing.written import Committed


def delivered_xids(
    source: SourceSnapshot, target: psycopg.Connection, staged: StagedTable
) -> tuple[int, ...] | None:
    """Return the xids at or above the new W that need no second read; None for too many.

    They come from rows, never from the snapshot's list, which has no subtransactions.
    """
    w = source.snapshot.w
    if source.snapshot.quiet or not staged.planned.table.has_xmin:
        return ()
    delivered = {xid for xid in _delivered_before(staged) if xid >= w}
    if staged.has_rows:
        query = sql.SQL("select distinct source_xmin from {} where source_xmin >= {} limit {}")
        most = sql.Literal(watermarks.DELIVERED_CAP + 1)
        found = target.execute(query.format(staging_name(staged.target).sql, sql.Literal(w), most))
        delivered |= {xid for (xid,) in found}
    return tuple(sorted(delivered)) if len(delivered) <= watermarks.DELIVERED_CAP else None


def next_watermark(
    source: SourceSnapshot,
    planned: PlannedTable,
    committed: Committed,
    delivered: tuple[int, ...] | None,
) -> Watermark:
    """Return the watermark of a table that is being committed."""
    snapshot, table, plan = source.snapshot, planned.table, planned.plan
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
        timestamp_from=source.running_since if plan.mode == "timestamp" else None,
        locations=table.filenodes if planned.locations else {},
        located_at=snapshot.text,
        counted_at=_counted_at(planned),
    )


def _counted_at(planned: PlannedTable) -> datetime | None:
    """Return when the rows of both sides were last counted: now, but for a sync by blocks."""
    watermark = planned.locked.watermark
    if planned.plan.mode == "blocks" and watermark is not None:
        return watermark.counted_at
    return datetime.now(UTC)


def _delivered_before(staged: StagedTable) -> tuple[int, ...]:
    """Return what the watermark lists as delivered, where the sync continues from it."""
    watermark = staged.planned.locked.watermark
    continues = staged.planned.plan.mode in ("scan", "blocks")
    if watermark is None or not watermark.complete or not continues:
        return ()
    return watermark.delivered
