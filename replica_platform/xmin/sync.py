"""One sync, top to bottom: lock, watermark, snapshot, plan, stage, barrier, commit.

The story belongs here, and what happens to the others when a table fails; each step is a module. A
single table is a group of one.
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
from replica_platform.core.reports import Progress
from replica_platform.xmin.commit import Commit
from replica_platform.xmin.commit_group import GroupCommit, Outcome
from replica_platform.xmin.copy.ranges import BLOCK_BYTES
from replica_platform.xmin.copy.tune import MEASURED_FROM_BYTES, Tuning, choose
from replica_platform.xmin.copy.workers import Workers
from replica_platform.xmin.errors import (
    CannotSync,
    SourceInterrupted,
    TargetInterrupted,
    translate_errors,
)
from replica_platform.xmin.integrity.parts import Proving
from replica_platform.xmin.integrity.prover import Prover
from replica_platform.xmin.lock import LockedTable, SyncRequest, lock_tables
from replica_platform.xmin.names import TableName
from replica_platform.xmin.plan import PlannedTable, plan_table
from replica_platform.xmin.reports import GroupReport, SyncReport, TableSpec
from replica_platform.xmin.session import open_target
from replica_platform.xmin.source.snapshot import SourceSnapshot
from replica_platform.xmin.stage import Stage, StagedTable
from replica_platform.xmin.target import watermark as watermarks
from replica_platform.xmin.target.foreign_keys import ForeignKeys, read_foreign_keys

log = logging.getLogger(__name__)

TURNS = 4
_JOINED = "A table that a foreign key joins to it has to be synced again."


@dataclass(frozen=True)
class SyncOptions:
    """How a group is synced.

    Attributes:
        source: The DSN of the source.
        target: The DSN of the target.
        atomic: Whether all tables are committed together or not at all.
        workers: How many pairs of connections copy side by side; None chooses.
        batch_bytes: How many bytes of heap a range holds; None chooses.
        max_delete_fraction: The largest fraction of a table that may be deleted.
        take_over: Whether targets may be taken from other source tables.
        proving: How much of the content is proven; None proves nothing.
        progress: Told the bytes done and expected of each table.
    """

    source: str
    target: str
    atomic: bool
    workers: int | None
    batch_bytes: int | None
    max_delete_fraction: float
    take_over: bool
    proving: Proving | None
    progress: Progress | None


def sync(
    source: str,
    target: str,
    table: str,
    *,
    into: str | None = None,
    mode: str = "auto",
    timestamp_column: str | None = None,
    timestamp_zone: str | None = None,
    deletes: str = "auto",
    workers: int | None = None,
    batch_bytes: int | None = None,
    key: Sequence[str] | None = None,
    max_delete_fraction: float = 0.5,
    take_over: bool = False,
    prove: Proving | None = None,
    progress: Progress | None = None,
) -> SyncReport:
    """Bring one table of the target in step with its source.

    Args:
        source: The DSN of the source.
        target: The DSN of the target.
        table: The source table, `schema.table` as psql reads it.
        into: The schema in the target, as `into.table`; None for the same schema.
        mode: `auto`, `full`, `scan` or `timestamp`.
        timestamp_column: The column that mode `timestamp` reads by.
        timestamp_zone: The time zone of the writers, where `timestamp_column` has none.
        deletes: `auto` compares keys when the counts say that rows are gone, `keys` always;
            `never` keeps them.
        workers: How many pairs of connections copy side by side; None chooses.
        batch_bytes: How many bytes of heap a range holds; None chooses.
        key: The key columns, where the source has no key (views).
        max_delete_fraction: The largest fraction of a table of over 1,000 rows that may be deleted.
        take_over: Whether the target may be taken from another source table.
        prove: How much of the content this sync compares and repairs; None compares nothing.
        progress: Told the bytes done and expected.

    Returns:
        What was read and written, and why.

    Raises:
        TransientError: A server did not answer or ended the sync (`CannotConnect`, `TableBusy`,
            `SourceInterrupted`, `TargetInterrupted`, `NotFlushed`); sync again.
        TerminalError: The sync cannot work as asked (`BadTableName`, `NoSuchTable`,
            `MissingGrant`, `CannotSync`, `SchemaRefused`, `TargetTaken`, `TooManyDeletes`).
            Any of these leaves the target table as it was.
    """
    spec = TableSpec(
        table, into, mode, timestamp_column, deletes, tuple(key) if key else None, timestamp_zone
    )
    options = SyncOptions(
        source, target, True, workers, batch_bytes, max_delete_fraction, take_over, prove, progress
    )
    group = _Group(options, [spec])
    report = group.sync()
    for error in group.errors.values():
        raise error
    return next(iter(report.reports.values()))


def sync_group(
    source: str,
    target: str,
    tables: Sequence[TableSpec],
    *,
    atomic: bool = False,
    workers: int | None = None,
    batch_bytes: int | None = None,
    max_delete_fraction: float = 0.5,
    take_over: bool = False,
    prove: Proving | None = None,
    progress: Progress | None = None,
) -> GroupReport:
    """Sync many tables at one snapshot of the source, so that they fit together.

    A table that fails is named in the report's `failures`, and the others are committed. Of two
    that would arrive in one target table, both fail.

    Args:
        source: The DSN of the source.
        target: The DSN of the target.
        tables: The tables.
        atomic: Whether a table that fails keeps all others from being committed.
        workers: How many pairs of connections copy side by side; None chooses.
        batch_bytes: How many bytes of heap a range holds; None chooses.
        max_delete_fraction: The largest fraction of a table of over 1,000 rows that may be deleted.
        take_over: Whether targets may be taken from other source tables.
        prove: How much of the content of each table this sync compares and repairs; None compares
            nothing.
        progress: Told the bytes done and expected of each table.

    Returns:
        Reports and failures by target table.

    Raises:
        CannotConnect: A server does not answer.
        SourceInterrupted: The source ended the session that holds the snapshot.
        TargetInterrupted: The target ended the session that holds the locks.
        NotFlushed: The source did not flush its WAL in time.
    """
    options = SyncOptions(
        source,
        target,
        atomic,
        workers,
        batch_bytes,
        max_delete_fraction,
        take_over,
        prove,
        progress,
    )
    return _Group(options, tables).sync()


class _OneTable(Protocol):
    @property
    def target(self) -> TableName: ...


Before = TypeVar("Before", bound=_OneTable)
After = TypeVar("After")


class _Group:
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
            target = stack.enter_context(open_target(options.target))
            locked, foreign_keys = self._lock(target, requests)
            source = stack.enter_context(SourceSnapshot(options.source))
            self._begin(source, locked)
            planned = self._each(partial(plan_table, source), locked)
            prover = Prover(target, options.proving)
            planned = _with_parts(prover, planned)
            tuning = self._tune(source, target, planned)
            workers = stack.enter_context(Workers(source, options.target, target, tuning.workers))
            stage = Stage(source, target, workers, tuning.batch_bytes, options.progress)
            staged = self._each(stage, [one for one in planned if not one.idle])

            def release_source() -> None:
                workers.release()
                source.release()

            commit = Commit(source, target, options.max_delete_fraction, prover)
            outcome = self._commit(
                source, staged, GroupCommit(target, commit, foreign_keys, release_source)
            )
        return _reports(planned, outcome.reports), outcome.diverged

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
        self, source: SourceSnapshot, staged: Sequence[StagedTable], commit: GroupCommit
    ) -> Outcome:
        """Pass the barrier, then commit."""
        if not staged or (self._options.atomic and self.errors):
            return Outcome()
        with translate_errors("source", _names(one.planned.request.source for one in staged)):
            source.wait_until_flushed()
        outcome = commit.together(staged) if self._options.atomic else commit.each(staged)
        for name, error in outcome.errors.items():
            log.warning("sync of %s failed: %s", name, error)
        self.errors |= outcome.errors
        return outcome


def _reports(
    planned: Sequence[PlannedTable], committed: dict[str, SyncReport]
) -> dict[str, SyncReport]:
    """Return the reports of the tables that were committed and of those that are unchanged."""
    reports: dict[str, SyncReport] = {}
    for one in planned:
        name = str(one.target)
        if one.idle:
            reports[name] = one.report
        elif name in committed:
            reports[name] = committed[name]
    for name, report in reports.items():
        log.info(
            "sync of %s: %s read, %s inserted, %s updated, %s deleted in %.2f s", name,
            report.rows_read, report.rows_inserted, report.rows_updated, report.rows_deleted,
            report.seconds,
        )  # fmt: skip
    return reports


def _with_parts(prover: Prover, planned: Sequence[PlannedTable]) -> list[PlannedTable]:
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
