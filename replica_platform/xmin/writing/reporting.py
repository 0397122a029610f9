"""What a group reports of its tables, and of which it proves a part."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from replica_platform.xmin.copy.source_load import SourceLoad
from replica_platform.xmin.integrity.prover import Prover
from replica_platform.xmin.plan import PlannedTable
from replica_platform.xmin.reports import SyncReport
from replica_platform.xmin.source.snapshot import HeldSnapshots

log = logging.getLogger(__name__)


def reported(
    planned: Sequence[PlannedTable],
    committed: Mapping[str, SyncReport],
    held: HeldSnapshots,
    load: SourceLoad,
) -> dict[str, SyncReport]:
    """Return the reports of the tables that were committed and of those that are unchanged."""
    reports: dict[str, SyncReport] = {}
    for one in planned:
        name = str(one.target)
        if name in committed:
            reports[name] = committed[name]
        elif one.idle:
            reports[name] = one.report
    return {
        name: replace(
            report,
            snapshots=held.count,
            snapshot_s=held.longest_s,
            source_connections=load.connections,
            source_busy_s=load.busy_s,
        )
        for name, report in reports.items()
    }


def log_reports(reports: Iterable[SyncReport]) -> None:
    """Log what was done with each table."""
    for report in reports:
        log.info(
            "sync of %s: %s read, %s inserted, %s updated, %s deleted in %.2f s",
            report.target_table,
            report.rows_read,
            report.rows_inserted,
            report.rows_updated,
            report.rows_deleted,
            report.seconds,
        )


def with_parts(prover: Prover, planned: Sequence[PlannedTable]) -> list[PlannedTable]:
    """Return the tables with the parts of their content that are to be proven now."""
    provable = {
        one.target: (one.locked.found.oid, one.table)
        for one in planned
        if one.locked.found and one.plan.mode != "full" and one.key and one.table.has_xmin
    }
    due = prover.due(provable)
    if prover.proves:
        planned = [_saying_what_is_not_proven(one) for one in planned]
    return [replace(one, part=due.get(one.target)) for one in planned]


def _saying_what_is_not_proven(one: PlannedTable) -> PlannedTable:
    if one.plan.mode == "full" or one.table.has_xmin:
        return one
    note = "Its content is not proven by parts, since it is no heap table; use validate --content."
    return replace(one, report=replace(one.report, notes=(*one.report.notes, note)))
