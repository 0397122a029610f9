"""The plan of one table: its owner is checked, and it is decided how to read and how to change it.

All that can be refused is refused here, before a row is read; the decision itself is `decide`'s.
"""

import logging
from dataclasses import dataclass, replace

from psycopg import sql

from replica_platform.xmin.blocks.choice import TableBlocks
from replica_platform.xmin.blocks.reading import BlockReading, Candidate
from replica_platform.xmin.copy.changes import ChangedRows, holds_covered_rows
from replica_platform.xmin.decide import Plan, Situation, decide
from replica_platform.xmin.errors import CannotSync, translate_errors
from replica_platform.xmin.integrity.parts import Part
from replica_platform.xmin.lock import LockedTable, SyncRequest
from replica_platform.xmin.names import TableName
from replica_platform.xmin.reports import SyncReport
from replica_platform.xmin.source.blocker import find_blocker
from replica_platform.xmin.source.catalog import SourceTable
from replica_platform.xmin.source.projection import (
    check_fixed_values,
    project,
    refuse_exposure,
)
from replica_platform.xmin.source.snapshot import FARTHEST, SourceSnapshot
from replica_platform.xmin.source.timestamp import window
from replica_platform.xmin.target.columns import Change, column_changes, wider_in_target
from replica_platform.xmin.target.owner import check_owner
from replica_platform.xmin.target.watermark import Watermark

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedTable:
    """A table that is to be read, and how.

    Attributes:
        locked: The locked target table.
        table: The source table.
        key: The key that rows are matched by; empty for none.
        plan: How it is read.
        changes: What brings the target's definition in step.
        taken_over: Whether the target is taken from another source table.
        window: By timestamp: the condition that the rows to read meet.
        rewritten: Oids of the leaves that were rewritten since and still hold rows older than W.
        report: What can be reported before anything is read; final for a plan of mode `none`.
        locations: Whether each row is written with its location in the source.
        part: The part of the content that is to be proven; None where none is due.
    """

    locked: LockedTable
    table: SourceTable
    key: tuple[str, ...]
    plan: Plan
    changes: tuple[Change, ...]
    taken_over: bool
    window: sql.Composable | None
    rewritten: frozenset[int]
    report: SyncReport
    locations: bool = False
    part: Part | None = None

    @property
    def idle(self) -> bool:
        """Whether there is nothing to read, to write or to prove."""
        return self.plan.mode == "none" and self.part is None

    @property
    def request(self) -> SyncRequest:
        """What was asked for."""
        return self.locked.request

    @property
    def casts(self) -> dict[str, str]:
        """The columns that are wider in the target, with their types there."""
        found = self.locked.found
        return wider_in_target(self.table, found) if found else {}

    @property
    def target(self) -> TableName:
        """The target table's name."""
        return self.locked.target

    @property
    def is_loaded(self) -> bool:
        """Whether the table is a heap that the target lacks, so that its ranges are loaded."""
        return self.locked.found is None and self.table.has_xmin


def plan_table(source: SourceSnapshot, blocks: BlockReading, locked: LockedTable) -> PlannedTable:
    """Plan one table.

    Args:
        source: The snapshot of the sync.
        blocks: What is known of the blocks of all tables.
        locked: The locked target table.

    Raises:
        NoSuchTable: The source has no such table.
        MissingGrant: The source's role may not read it.
        TargetTaken: The target holds another source table.
        SchemaRefused: The target's columns cannot follow the source's.
        CannotSync: The table cannot be synced as asked.
    """
    request = locked.request
    if request.source in source.failures:
        raise source.failures[request.source]
    described = source.tables[request.source]
    key = request.spec.key or described.key
    table = project(described, request.spec, key)
    with translate_errors("source", request.source):
        if locked.watermark is not None:
            refuse_exposure(table, locked.watermark.fingerprint, locked.target)
        check_fixed_values(source.connection, table)
        taken_over = _check_owner(source, locked, table)
        rewritten = _rewritten(source, locked.watermark, table)
        locations = blocks.keeps_locations(candidate(locked, table))
        changed = blocks.tables.get(str(locked.target), "")
        plan = decide(_situation(source, locked, table, key, rewritten, locations, changed))
        condition = None
        if plan.mode == "timestamp":
            plan, condition = _timed(source, locked, table, plan)
        report = _report(source, locked, table, plan)
    log.info("sync of %s: %s, because: %s", request.source, plan.mode, plan.why)
    changes: tuple[Change, ...] = ()
    if plan.mode != "none" and locked.found is not None:
        delivered = locked.watermark.fingerprint if locked.watermark else None
        changes = column_changes(
            locked.target,
            locked.found,
            table,
            key,
            plan.added,
            delivered,
            locations=locations,
        )
    return PlannedTable(
        locked, table, key, plan, changes, taken_over, condition, rewritten, report, locations
    )


def candidate(locked: LockedTable, table: SourceTable) -> Candidate:
    """Return what decides whether a table can be read by blocks."""
    spec = locked.request.spec
    watermark = None if locked.request.doubt else locked.watermark
    return Candidate(str(locked.target), spec.mode, spec.deletes, table, watermark)


def _check_owner(source: SourceSnapshot, locked: LockedTable, table: SourceTable) -> bool:
    request = locked.request
    taken_over = check_owner(
        source.connection,
        source.snapshot.identity,
        table,
        locked.target,
        locked.owner,
        take_over=request.take_over,
    )
    if taken_over and request.spec.deletes == "never":
        raise CannotSync(
            f"{locked.target} cannot be taken over with deletes='never': the rows of its former "
            "owner would stay among the new ones. Take it over with deletes='auto', or drop it."
        )
    return taken_over


def _rewritten(
    source: SourceSnapshot, watermark: Watermark | None, table: SourceTable
) -> frozenset[int]:
    """Return the leaves that have another file than before, and have not been emptied.

    TRUNCATE leaves no row older than W; all that came after it is read anyway.
    """
    if watermark is None:
        return frozenset()
    replaced = [
        leaf
        for leaf in table.leaves
        if watermark.leaves.get(str(leaf.oid), leaf.filenode) != leaf.filenode
    ]
    comparable = 0 <= source.snapshot.next - watermark.w < FARTHEST
    return frozenset(
        leaf.oid
        for leaf in replaced
        if not comparable or holds_covered_rows(source.connection, leaf, ChangedRows(watermark.w))
    )


def _situation(
    source: SourceSnapshot,
    locked: LockedTable,
    table: SourceTable,
    key: tuple[str, ...],
    rewritten: frozenset[int],
    locations: bool,
    blocks: TableBlocks | str,
) -> Situation:
    return Situation(
        spec=locked.request.spec,
        table=table,
        snapshot=source.snapshot,
        key=key,
        watermark=locked.watermark,
        target_columns=locked.found.columns if locked.found else (),
        rewritten=rewritten,
        doubt=locked.request.doubt,
        locations=locations,
        blocks=blocks,
    )


def _timed(
    source: SourceSnapshot, locked: LockedTable, table: SourceTable, plan: Plan
) -> tuple[Plan, sql.Composable]:
    """Find the rows to read by the timestamp column; add to the reason what is assumed."""
    spec = locked.request.spec
    column = spec.timestamp_column or ""
    read = window(source.connection, table.oid, column, plan.since, spec.timestamp_zone)
    watermark = locked.watermark
    if plan.since and read.zoneless and watermark and not watermark.identity.name:
        # A watermark without the database's name is of a version that compared as UTC.
        why = f"Rows are read by {column}. An earlier version may have missed some, so all."
        plan = replace(plan, since=None, why=why)
    return replace(plan, why=f"{plan.why} {read.assumed}".rstrip()), read.condition


def _report(
    source: SourceSnapshot, locked: LockedTable, table: SourceTable, plan: Plan
) -> SyncReport:
    snapshot, watermark = source.snapshot, locked.watermark
    report = SyncReport(
        str(locked.request.source),
        str(locked.target),
        plan.mode,
        plan.why,
        lag_xids=snapshot.next - snapshot.w,
        columns=tuple(table.types.items()),
    )
    if watermark is None:
        return report
    if watermark.w == snapshot.w and not snapshot.quiet:
        blocker = find_blocker(source.connection, snapshot)
        report = replace(report, notes=(blocker,) if blocker else ())
    if plan.mode == "none":
        report = replace(report, rows=watermark.rows, w=watermark.w)
    return report
