"""One sync, top to bottom: lock, watermark, snapshot, plan, load, stage, barrier, commit.

The story belongs here, and what happens to the others when a table fails; each step is a module. A
single table is a group of one. Large first copies are loaded at several snapshots; all tables of a
group are completed at the last one.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

import psycopg

from replica_platform.core.errors import PlatformError
from replica_platform.xmin.commit import Commit, Diverged
from replica_platform.xmin.copy.ranges import BLOCK_BYTES
from replica_platform.xmin.copy.tune import MEASURED_FROM_BYTES, Tuning, choose
from replica_platform.xmin.copy.workers import Workers
from replica_platform.xmin.errors import (
    CannotSync,
    SourceInterrupted,
    TargetInterrupted,
    translate_errors,
)
from replica_platform.xmin.first_copy.load import FirstCopies, fitting_batch_bytes
from replica_platform.xmin.lock import LockedTable, SyncRequest, lock_tables
from replica_platform.xmin.names import TableName
from replica_platform.xmin.plan import PlannedTable, plan_table
from replica_platform.xmin.reports import GroupReport, SyncOptions, SyncReport, TableSpec
from replica_platform.xmin.session import open_target
from replica_platform.xmin.source.snapshot import SourceSnapshot
from replica_platform.xmin.stage import Stage, StagedTable
from replica_platform.xmin.target import watermark as watermarks

log = logging.getLogger(__name__)

TURNS = 4


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


@dataclass
class _Held:
    """How long snapshots of the source were held.

    Attributes:
        count: How many there were.
        longest_s: Seconds of the longest one.
    """

    count: int = 0
    longest_s: float = 0.0

    @contextmanager
    def noting(self, source: SourceSnapshot) -> Iterator[None]:
        """Take note of one snapshot."""
        try:
            yield
        finally:
            self.count += 1
            self.longest_s = max(self.longest_s, source.held_s, source.age_s)


class _RolledBack(Exception):
    """A table of an atomic group failed: the transaction of all of them is rolled back."""


class Group:
    """One group of tables; each turn is over one set of connections and one snapshot.

    Attributes:
        errors: The tables that failed, by target table like all that is reported.
    """

    def __init__(self, options: SyncOptions, tables: Sequence[TableSpec]) -> None:
        self._options = options
        self._tables = tables
        self._on_standby = False
        self.errors: dict[str, PlatformError] = _same_targets(tables)

    def sync(self) -> GroupReport:
        """Sync the tables, some again at a new snapshot where that can help."""
        began = time.monotonic()
        reports: dict[str, SyncReport] = {}
        doubts: dict[str, str] = {}
        tables = [spec for spec in self._tables if _target(spec) not in self.errors]
        todo = tables
        for turn in range(TURNS):
            if not todo:
                break
            done, diverged = self._turn(todo, doubts)
            reports |= done
            doubts |= diverged
            again = self._again(diverged, last=turn == TURNS - 1)
            todo = [spec for spec in tables if _target(spec) in again]
            if todo and self._options.atomic:
                todo = tables
        return self._report(reports, time.monotonic() - began)

    def _report(self, reports: dict[str, SyncReport], seconds: float) -> GroupReport:
        atomic = self._options.atomic
        failures = {name: str(error) for name, error in self.errors.items()}
        return GroupReport({} if atomic and failures else reports, failures, seconds, atomic)

    def _again(self, diverged: dict[str, str], *, last: bool) -> set[str]:
        """Return the target tables to sync again, at a new snapshot.

        Those that are not what their watermark says, and on a standby those whose rows the replay
        removed while the snapshot still saw them.
        """
        if last:
            self.errors |= {
                name: TargetInterrupted(f"{why} Run the same sync again.")
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
        with open_target(options.target) as target:
            locked = self._lock(target, requests)
            copies = FirstCopies(target, options.max_snapshot_s)
            held = _Held()
            tuning = None
            while True:
                with self._snapshot(target, locked, tuning) as now, held.noting(now.source):
                    tuning = now.tuning
                    if self._load(copies, now):
                        committed, diverged = self._finish(copies, target, now)
                        break
                copies.add_keys()
                # A table that failed stays out of the slices that follow.
                locked = [one for one in locked if str(one.target) not in self.errors]
        return _reports(now.planned, committed, held), diverged

    @contextmanager
    def _snapshot(
        self, target: psycopg.Connection, locked: Sequence[LockedTable], tuning: Tuning | None
    ) -> Iterator["_Now"]:
        """Take a snapshot of the source, and plan the tables as it sees them."""
        options = self._options
        with ExitStack() as stack:
            source = stack.enter_context(SourceSnapshot(options.source))
            self._begin(source, locked)
            planned = self._each(partial(plan_table, source), locked)
            tuning = tuning or self._tune(source, target, planned)
            workers = stack.enter_context(Workers(source, options.target, target, tuning.workers))
            stage = Stage(source, target, workers, tuning.batch_bytes, options.progress)
            yield _Now(source, planned, tuning, workers, stage)

    def _load(self, copies: FirstCopies, now: "_Now") -> bool:
        """Load first copies; return whether the rest can be done at this snapshot."""
        copies.begin_slice()
        loads = [one for one in now.planned if one.is_loaded and one.key]
        complete = self._each(partial(copies.load, now.stage), loads)
        return all(complete) and copies.may_end(now.stage)

    def _finish(
        self, copies: FirstCopies, target: psycopg.Connection, now: "_Now"
    ) -> tuple[dict[str, SyncReport], dict[str, str]]:
        """Stage what is not loaded, and commit all; return what `_commit` does."""
        if self._options.atomic and self.errors:
            return {}, {}

        def stage(one: PlannedTable) -> StagedTable:
            return copies.staged(now.stage, one) if one.is_loaded else now.stage(one)

        todo = [
            one
            for one in now.planned
            if one.plan.mode != "none" and str(one.target) not in self.errors
        ]
        staged = self._each(stage, todo)

        def release_source() -> None:
            now.workers.release()
            now.source.release()

        return self._commit(now.source, target, staged, release_source)

    def _requests(self, specs: Sequence[TableSpec], doubts: dict[str, str]) -> list[SyncRequest]:
        requests = []
        for spec in specs:
            name = _target(spec)
            with self._recording(name):
                doubt = doubts.get(name, "")
                requests.append(SyncRequest.of(spec, doubt, take_over=self._options.take_over))
        return requests

    def _lock(
        self, target: psycopg.Connection, requests: Sequence[SyncRequest]
    ) -> list[LockedTable]:
        with translate_errors("target", _names(request.target for request in requests)):
            watermarks.prepare(target)
            locked, busy = lock_tables(target, requests)
        self.errors |= busy
        return locked

    def _begin(self, source: SourceSnapshot, locked: Sequence[LockedTable]) -> None:
        names = [one.request.source for one in locked]
        with translate_errors("source", _names(names)):
            source.begin(names)
        self._on_standby = source.snapshot.insert_lsn is None

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
        target: psycopg.Connection,
        staged: Sequence[StagedTable],
        release_source: Callable[[], None],
    ) -> tuple[dict[str, SyncReport], dict[str, str]]:
        """Pass the barrier, then commit; return the reports, and why targets have diverged.

        Tables that may need the source go first. It is released before the others: while its
        snapshot is open, the source keeps old row versions and lets no table be altered.
        """
        atomic = self._options.atomic
        if not staged or (atomic and self.errors):
            return {}, {}
        with translate_errors("source", _names(one.planned.request.source for one in staged)):
            source.wait_until_flushed()
        commit = Commit(source, target, self._options.max_delete_fraction)
        if atomic:
            return self._commit_together(target, commit, staged, release_source)
        return self._commit_each(target, commit, staged, release_source)

    def _commit_each(
        self,
        target: psycopg.Connection,
        commit: Commit,
        staged: Sequence[StagedTable],
        release_source: Callable[[], None],
    ) -> tuple[dict[str, SyncReport], dict[str, str]]:
        """Commit each table with its watermark."""
        reports: dict[str, SyncReport] = {}
        diverged: dict[str, str] = {}
        for one in sorted(staged, key=lambda one: not one.reads_source):
            if not one.reads_source:
                release_source()
            name = str(one.target)
            with self._recording(name):
                try:
                    with translate_errors("target", name), target.transaction():
                        report = commit(one)
                except Diverged as finding:
                    diverged[name] = str(finding)
                else:  # only now the transaction has been committed
                    reports[name] = report
        return reports, diverged

    def _commit_together(
        self,
        target: psycopg.Connection,
        commit: Commit,
        staged: Sequence[StagedTable],
        release_source: Callable[[], None],
    ) -> tuple[dict[str, SyncReport], dict[str, str]]:
        """Commit all tables in one transaction, or none."""
        diverged: dict[str, str] = {}
        try:
            with (
                translate_errors("target", _names(one.target for one in staged)),
                target.transaction(),
            ):
                reports, diverged = self._commit_each(target, commit, staged, release_source)
                if self.errors or diverged:
                    raise _RolledBack
        except _RolledBack:
            return {}, diverged
        except PlatformError as error:  # the common transaction failed, and with it every table
            self.errors |= {str(one.target): error for one in staged}
            return {}, {}
        return reports, diverged


def _reports(
    planned: Sequence[PlannedTable], committed: dict[str, SyncReport], held: _Held
) -> dict[str, SyncReport]:
    """Return the reports of the tables that were committed and of those that are unchanged."""
    reports: dict[str, SyncReport] = {}
    for one in planned:
        name = str(one.target)
        if one.plan.mode == "none":
            reports[name] = one.report
        elif name in committed:
            reports[name] = committed[name]
    for name, report in reports.items():
        reports[name] = replace(report, snapshots=held.count, snapshot_s=held.longest_s)
        log.info(
            "sync of %s: %s read, %s inserted, %s updated, %s deleted in %.2f s", name,
            report.rows_read, report.rows_inserted, report.rows_updated, report.rows_deleted,
            report.seconds,
        )  # fmt: skip
    return reports


def _target(spec: TableSpec) -> str:
    """Return the target table of a spec, by which all that is reported of it goes."""
    try:
        return str(spec.target_name)
    except PlatformError:
        return spec.table


def _same_targets(tables: Sequence[TableSpec]) -> dict[str, PlatformError]:
    """Return an error for each target table that several specs would arrive in."""
    by_target: dict[str, list[str]] = {}
    for spec in tables:
        by_target.setdefault(_target(spec), []).append(spec.table)
    return {
        target: CannotSync(
            f"{' and '.join(names)} both arrive as {target}; "
            "list one of them, or let them arrive in different schemas with `into`."
        )
        for target, names in by_target.items()
        if len(names) > 1
    }


def _names(tables: Iterable[TableName]) -> str:
    return ", ".join(map(str, tables))
