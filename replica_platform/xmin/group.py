"""One sync, top to bottom: lock, watermark, snapshot, plan, load, stage, barrier, commit.

The story belongs here, and what happens to the others when a table fails; each step is a module. A
single table is a group of one. Large first copies are loaded at several snapshots; all tables of a
group are completed at the last one.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

import psycopg

from replica_platform.core.errors import PlatformError
from replica_platform.xmin.blocks import history
from replica_platform.xmin.blocks.reading import (
    BlockReading,
    begin_summary,
    read_blocks,
)
from replica_platform.xmin.commit import Commit
from replica_platform.xmin.commit_group import GroupCommit, Outcome
from replica_platform.xmin.copy.progress import GroupProgress
from replica_platform.xmin.copy.ranges import BLOCK_BYTES
from replica_platform.xmin.copy.source_load import SourceLoad
from replica_platform.xmin.copy.tune import MEASURED_FROM_BYTES, Tuning, choose
from replica_platform.xmin.copy.workers import Workers
from replica_platform.xmin.errors import (
    SourceInterrupted,
    TargetInterrupted,
    translate_errors,
)
from replica_platform.xmin.first_copy.load import FirstCopies, fitting_batch_bytes
from replica_platform.xmin.integrity.prover import Prover
from replica_platform.xmin.lock import (
    LockedTable,
    SyncOptions,
    SyncRequest,
    lock_tables,
    shared_targets,
    target_of,
)
from replica_platform.xmin.names import TableName
from replica_platform.xmin.plan import PlannedTable, candidate, plan_table
from replica_platform.xmin.reports import GroupReport, SyncReport, TableSpec
from replica_platform.xmin.session import end_session, open_target
from replica_platform.xmin.source.snapshot import HeldSnapshots, SourceSnapshot
from replica_platform.xmin.stage import Stage, StagedTable
from replica_platform.xmin.target import watermark as watermarks
from replica_platform.xmin.target.foreign_keys import ForeignKeys, read_foreign_keys
from replica_platform.xmin.writing.reporting import log_reports, reported, with_parts

log = logging.getLogger(__name__)

TURNS = 4
_JOINED = "A table that a foreign key joins to it has to be synced again."


class _OneTable(Protocol):
    @property
    def target(self) -> TableName: ...


Before = TypeVar("Before", bound=_OneTable)
After = TypeVar("After")


@dataclass(frozen=True)
class _Now:
    """The connections and plans of one snapshot."""

    source: SourceSnapshot
    planned: list[PlannedTable]
    tuning: Tuning
    workers: Workers
    stage: Stage


class Group:
    """One group of tables; each turn is over one set of connections and one snapshot.

    Attributes:
        errors: The tables that failed, by target table like all that is reported.
    """

    def __init__(self, options: SyncOptions, tables: Sequence[TableSpec]) -> None:
        self._options = options
        self._tables = tables
        self._on_standby = False
        self._checkpoints = 0
        self._summary_wait_s = 0.0
        self._load_of_source = SourceLoad(
            options.max_source_connections, options.max_source_fraction
        )
        self._progress = GroupProgress(options.progress)
        self._held = HeldSnapshots()
        self.errors: dict[str, PlatformError] = shared_targets(tables)

    def sync(self) -> GroupReport:
        """Sync the tables, some again at a new snapshot where that can help."""
        began = time.monotonic()
        reports: dict[str, SyncReport] = {}
        doubts: dict[str, str] = {}
        tables = [spec for spec in self._tables if target_of(spec) not in self.errors]
        todo = tables
        for turn in range(TURNS):
            if not todo:
                break
            done, diverged = self._turn(todo, doubts)
            reports |= done
            doubts |= diverged
            again = self._again(diverged, last=turn == TURNS - 1)
            todo = [spec for spec in tables if target_of(spec) in again]
            if todo and self._options.atomic:
                todo = tables
        return self._report(reports, time.monotonic() - began)

    def _report(self, reports: dict[str, SyncReport], seconds: float) -> GroupReport:
        atomic, on_report = self._options.atomic, self._options.on_report
        failures = {name: str(error) for name, error in self.errors.items()}
        if atomic and failures:
            reports = {}
        if atomic and on_report:
            for report in reports.values():
                on_report(report)
        return GroupReport(
            reports,
            failures,
            seconds,
            atomic,
            self._checkpoints,
            self._summary_wait_s,
        )

    def _again(self, diverged: dict[str, str], *, last: bool) -> set[str]:
        """Return the target tables to sync again, at a new snapshot.

        Those that are not what their watermark says, and on a standby those whose rows the replay
        removed while the snapshot still saw them.
        """
        if last:
            self.errors |= {
                name: TargetInterrupted(f"{why or _JOINED} Run the same sync again.")
                for name, why in diverged.items()
            }
            return set()
        again = set(diverged)
        if self._on_standby:
            again |= {n for n, e in self.errors.items() if isinstance(e, SourceInterrupted)}
            self.errors = {n: e for n, e in self.errors.items() if n not in again}
        return again

    def _turn(
        self, specs: Sequence[TableSpec], doubts: dict[str, str]
    ) -> tuple[dict[str, SyncReport], dict[str, str]]:
        """Sync tables at one snapshot; return the reports, and why targets have diverged."""
        options = self._options
        requests = self._requests(specs, doubts)
        with ExitStack() as stack:
            target = open_target(options.target)
            stack.callback(end_session, target)
            locked, foreign_keys = self._lock(target, requests)
            prover = Prover(target, options.proving)
            copies = FirstCopies(target, options.max_snapshot_s)
            held = self._held = HeldSnapshots()
            tuning = None
            while True:
                with self._snapshot(target, locked, prover, tuning) as now, held.noting(now.source):
                    tuning = now.tuning
                    self._expect(now.planned)
                    if self._load(copies, now):
                        outcome = self._finish(copies, target, now, prover, foreign_keys)
                        break
                copies.add_keys()
                # A table that failed stays out of the slices that follow.
                locked = [one for one in locked if str(one.target) not in self.errors]
        reports = reported(now.planned, outcome.reports, held, self._load_of_source)
        log_reports(reports.values())
        return reports, outcome.diverged

    @contextmanager
    def _snapshot(
        self,
        target: psycopg.Connection,
        locked: Sequence[LockedTable],
        prover: Prover,
        tuning: Tuning | None,
    ) -> Iterator["_Now"]:
        """Take a snapshot of the source, and plan the tables as it sees them."""
        options = self._options
        with ExitStack() as stack:
            source = stack.enter_context(SourceSnapshot(options.source))
            if tuning is None:
                self._begin_summary(source, locked)
            self._begin(source, locked)
            blocks = self._read_blocks(source, target, locked)
            planned = self._each(partial(plan_table, source, blocks), locked)
            planned = with_parts(prover, planned)
            tuning = tuning or self._tune(source, target, planned)
            workers = stack.enter_context(
                Workers(source, options.target, target, tuning.workers, self._load_of_source)
            )
            stage = Stage(source, target, workers, tuning.batch_bytes, self._progress)
            yield _Now(source, planned, tuning, workers, stage)

    def _load(self, copies: FirstCopies, now: "_Now") -> bool:
        """Load first copies; return whether the rest can be done at this snapshot."""
        copies.begin_slice()
        loads = [one for one in now.planned if one.is_loaded and one.key]
        complete = self._each(partial(copies.load, now.stage), loads)
        return all(complete) and copies.may_end(now.stage)

    def _finish(
        self,
        copies: FirstCopies,
        target: psycopg.Connection,
        now: "_Now",
        prover: Prover,
        foreign_keys: ForeignKeys,
    ) -> Outcome:
        """Stage what is not loaded, and commit all."""
        if self._options.atomic and self.errors:
            return Outcome()

        def stage(one: PlannedTable) -> StagedTable:
            staged = copies.staged(now.stage, one) if one.is_loaded else now.stage(one)
            self._progress.end(str(one.target))
            return staged

        def release_source() -> None:
            now.workers.release()
            now.source.release()

        todo = [one for one in now.planned if not one.idle and str(one.target) not in self.errors]
        staged = self._each(stage, todo)
        same = [one for one in now.planned if one.plan.mode == "none"]
        commit = Commit(now.source, target, self._options.max_delete_fraction, prover)
        group = GroupCommit(target, commit, foreign_keys, release_source)
        return self._commit(now.source, staged, same, group)

    def _hand_over(
        self,
        source: SourceSnapshot,
        planned: Sequence[PlannedTable],
        committed: Mapping[str, SyncReport],
    ) -> None:
        """Give the caller the reports of tables that were committed, while others still wait."""
        if self._options.on_report:
            held = self._held.including(source)
            for report in reported(planned, committed, held, self._load_of_source).values():
                self._options.on_report(report)

    def _expect(self, planned: Sequence[PlannedTable]) -> None:
        for one in planned:
            if one.is_loaded or one.plan.mode == "full":
                self._progress.expect(str(one.target), one.table.blocks * BLOCK_BYTES)

    def _requests(self, specs: Sequence[TableSpec], doubts: dict[str, str]) -> list[SyncRequest]:
        requests = []
        for spec in specs:
            name = target_of(spec)
            with self._recording(name):
                doubt = doubts.get(name, "")
                requests.append(SyncRequest.of(spec, doubt, take_over=self._options.take_over))
        return requests

    def _lock(
        self, target: psycopg.Connection, requests: Sequence[SyncRequest]
    ) -> tuple[list[LockedTable], ForeignKeys]:
        """Lock the target tables; refuse those that no order of writing satisfies."""
        with translate_errors("target", _names(request.target for request in requests)):
            watermarks.prepare(target)
            locked, busy = lock_tables(target, requests)
            foreign_keys = read_foreign_keys(
                target, {one.target: one.found.oid for one in locked if one.found}
            )
        refused = foreign_keys.circular()
        self.errors |= busy | {str(name): error for name, error in refused.items()}
        return [one for one in locked if one.target not in refused], foreign_keys

    def _begin(self, source: SourceSnapshot, locked: Sequence[LockedTable]) -> None:
        names = [one.request.source for one in locked]
        with translate_errors("source", _names(names)):
            source.begin(names)
        self._on_standby = source.snapshot.insert_lsn is None

    def _begin_summary(self, source: SourceSnapshot, locked: Sequence[LockedTable]) -> None:
        """Let later syncs by blocks start here, where a table is copied for them now."""
        new = [one for one in locked if one.request.spec.mode == "blocks" and not one.watermark]
        if new:
            with translate_errors("source", _names(one.request.source for one in new)):
                dsn, options = self._options.source, self._options.blocks
                self._checkpoints += begin_summary(source.connection, dsn, options)

    def _read_blocks(
        self, source: SourceSnapshot, target: psycopg.Connection, locked: Sequence[LockedTable]
    ) -> BlockReading:
        """Find the changed blocks of the tables that are read by them."""
        candidates = [
            candidate(one, source.tables[one.request.source])
            for one in locked
            if one.request.source in source.tables
        ]
        with translate_errors("target", "the history of the source"):
            known = history.read(target, source.snapshot.identity)
        with translate_errors("source", _names(one.request.source for one in locked)):
            found = read_blocks(source, known, candidates, self._options.blocks)
        self._checkpoints += found.waited.checkpoint
        self._summary_wait_s += found.waited.seconds
        return found

    def _tune(
        self, source: SourceSnapshot, target: psycopg.Connection, planned: Sequence[PlannedTable]
    ) -> Tuning:
        new_blocks = sum(one.table.blocks for one in planned if one.locked.watermark is None)
        tuning = choose(
            source.connection,
            target,
            None,
            self._options.workers,
            self._options.batch_bytes,
            measure=new_blocks * BLOCK_BYTES >= MEASURED_FROM_BYTES,
        )
        if self._options.batch_bytes is None:
            batch_bytes = fitting_batch_bytes(tuning.batch_bytes, self._options.max_snapshot_s)
            tuning = replace(tuning, batch_bytes=batch_bytes)
        log.info("workers: %s batch bytes: %s", tuning.why["workers"], tuning.why["batch_bytes"])
        return tuning

    def _each(self, step: Callable[[Before], After], tables: Sequence[Before]) -> list[After]:
        """Take a step with each table; those that fail are recorded and left out."""
        results = []
        for one in tables:
            with self._recording(str(one.target)):
                results.append(step(one))
        return results

    @contextmanager
    def _recording(self, name: str) -> Iterator[None]:
        """Record a table's error and continue with the others."""
        try:
            yield
        except PlatformError as error:
            self.errors[name] = error
            log.warning("sync of %s failed: %s", name, error)

    def _commit(
        self,
        source: SourceSnapshot,
        staged: Sequence[StagedTable],
        same: Sequence[PlannedTable],
        commit: GroupCommit,
    ) -> Outcome:
        """Pass the barrier, then commit; `same` are tables whose rows are to stay as they are."""
        if not (staged or same) or (self._options.atomic and self.errors):
            return Outcome()
        with translate_errors("source", _names(one.planned.request.source for one in staged)):
            source.wait_until_flushed()
        unchanged, staged = ([], staged) if self._options.atomic else commit.split(staged)
        moved = [one.planned for one in unchanged]
        with translate_errors("target", _names(one.target for one in [*same, *moved])):
            reports = commit.advance(same, unchanged)
        if self._options.atomic:
            outcome = commit.together(staged)
        else:
            self._hand_over(source, [*(one for one in same if one.idle), *moved], reports)
            planned = {str(one.target): one.planned for one in staged}
            outcome = commit.each(
                staged, lambda done: self._hand_over(source, [planned[name] for name in done], done)
            )
        outcome.reports = reports | outcome.reports
        for name, error in outcome.errors.items():
            log.warning("sync of %s failed: %s", name, error)
        self.errors |= outcome.errors
        return outcome


def _names(tables: Iterable[TableName]) -> str:
    return ", ".join(map(str, tables))
