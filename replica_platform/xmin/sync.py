"""One sync, top to bottom: lock, mark, snapshot, plan, stage, barrier, apply with the mark.

The story belongs here; reading is `stage`'s and writing `settle`'s. A single table is a group
of one.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext

import psycopg

from replica_platform.core.errors import PlatformError
from replica_platform.core.reports import Progress
from replica_platform.xmin.commit import Settle
from replica_platform.xmin.copy.ranges import BLOCK_BYTES
from replica_platform.xmin.copy.workers import Crew
from replica_platform.xmin.errors import CannotSync, SourceInterrupted, TableBusy
from replica_platform.xmin.job import Diverged, Job, target_of
from replica_platform.xmin.reports import GroupReport, SyncReport, TableSpec
from replica_platform.xmin.session import LOCK_TIMEOUT_S, in_words, open_target
from replica_platform.xmin.source.snapshot import Leader
from replica_platform.xmin.stage import Stage
from replica_platform.xmin.target import tables as targets
from replica_platform.xmin.target import watermark as mark
from replica_platform.xmin.tune import MEASURED_FROM_BYTES, choose

log = logging.getLogger(__name__)

TURNS = 4


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
    progress: Progress | None = None,
) -> SyncReport:
    """Bring one table of `target` in step with `source`; both are DSNs.

    `table` is `schema.table` as psql reads it; it arrives as `into.table`. With `take_over` it may
    replace the rows of another source table there. `timestamp_zone` is the time zone of the
    writers, where `timestamp_column` has none. `progress` is told bytes done and bytes expected.
    Errors: those of `replica_platform.xmin.errors`, each of which leaves the target as it was.
    """
    spec = TableSpec(
        table, into, mode, timestamp_column, deletes, tuple(key) if key else None, timestamp_zone
    )
    run = _Run(
        source, target, [spec], True, workers, batch_bytes, max_delete_fraction, take_over, progress
    )
    group = run()
    for error in run.errors.values():
        raise error
    return next(iter(group.reports.values()))


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
    progress: Progress | None = None,
) -> GroupReport:
    """Sync many tables at one snapshot of the source, so that they fit together.

    Reports and failures go by the target table; of two that meet in one target none is synced.
    With `take_over` targets may be taken from other source tables. A table that fails is named in
    `failures`; the others are committed, unless the group is `atomic`: then none is.
    """
    return _Run(
        source, target, tables, atomic, workers, batch_bytes, max_delete_fraction, take_over,
        progress,
    )()  # fmt: skip


class _Run:
    """One group, over one set of connections and one snapshot."""

    def __init__(
        self,
        source: str,
        target: str,
        tables: Sequence[TableSpec],
        atomic: bool,
        workers: int | None,
        batch_bytes: int | None,
        max_delete_fraction: float,
        take_over: bool,
        progress: Progress | None,
    ) -> None:
        self.source, self.target, self.tables, self.atomic = source, target, tables, atomic
        self.take_over = take_over
        self.workers, self.batch_bytes = workers, batch_bytes
        self.max_delete_fraction, self.progress = max_delete_fraction, progress
        # Errors, like all that is told of a table, go by the target.
        self.errors: dict[str, PlatformError] = _meeting(tables)
        self.on_standby = False

    def __call__(self) -> GroupReport:
        began = time.monotonic()
        reports: dict[str, SyncReport] = {}
        distrusted: dict[str, str] = {}
        tables = [spec for spec in self.tables if _place(spec) not in self.errors]
        todo = tables
        for turn in range(TURNS if tables else 0):
            done, diverged = self._once(todo, distrusted)
            reports |= done
            # Another turn at a new snapshot: for a target that is not what its mark says, and
            # where a standby's replay had to take away rows that the snapshot still saw.
            distrusted |= diverged
            again = set(diverged)
            if self.on_standby and turn < TURNS - 1:
                again |= {n for n, e in self.errors.items() if isinstance(e, SourceInterrupted)}
                self.errors = {n: e for n, e in self.errors.items() if n not in again}
            if not again:
                break
            todo = [spec for spec in tables if self.atomic or _place(spec) in again]
        if self.atomic and self.errors:
            reports = {}
        failures = {name: str(error) for name, error in self.errors.items()}
        return GroupReport(reports, failures, time.monotonic() - began, self.atomic)

    def _once(
        self, specs: Sequence[TableSpec], distrusted: dict[str, str]
    ) -> tuple[dict[str, SyncReport], dict[str, str]]:
        jobs: list[Job] = []
        for spec in specs:
            with self._alone(_place(spec)):
                jobs.append(Job.of(spec, distrusted.get(_place(spec), ""), self.take_over))
        with ExitStack() as stack:
            home = stack.enter_context(open_target(self.target))
            with in_words("target", _names(jobs)):
                mark.prepare(home)
                self._take(home, jobs)
            leader = stack.enter_context(Leader(self.source))
            with in_words("source", _names(jobs)):
                leader.begin([job.source for job in self._alive(jobs)])
            self.on_standby = leader.snapshot.insert_lsn is None
            tuning = choose(
                leader.connection, home, None, self.workers, self.batch_bytes,
                measure=_to_copy(leader, jobs) >= MEASURED_FROM_BYTES,
            )  # fmt: skip
            log.info(
                "workers: %s batch bytes: %s", tuning.why["workers"], tuning.why["batch_bytes"]
            )
            crew = stack.enter_context(Crew(leader, self.target, home, tuning.workers))
            stage = Stage(leader, home, crew, tuning.batch_bytes, self.progress)
            for job in self._alive(jobs):
                with self._alone(str(job.target)):
                    stage(job)
            diverged = self._settle(leader, home, self._alive(jobs))
        done = [job for job in self._alive(jobs) if str(job.target) not in diverged]
        reports = {str(job.target): job.report for job in done if job.report}
        for name, report in reports.items():
            log.info(
                "sync of %s: %s read, %s inserted, %s updated, %s deleted in %.2f s", name,
                report.rows_read, report.rows_inserted, report.rows_updated, report.rows_deleted,
                report.seconds,
            )  # fmt: skip
        return reports, diverged

    def _alive(self, jobs: list[Job]) -> list[Job]:
        return [job for job in jobs if str(job.target) not in self.errors]

    @contextmanager
    def _alone(self, table: str) -> Iterator[None]:
        """Let a table fail by its name, and the others go on."""
        try:
            yield
        except PlatformError as error:
            self.errors[table] = error
            log.warning("sync of %s failed: %s", table, error)

    def _take(self, home: psycopg.Connection, jobs: list[Job]) -> None:
        """Hold each target table, and only then read its mark: whoever waits sees the newest."""
        until = time.monotonic() + LOCK_TIMEOUT_S
        # In one order, so that two groups never wait for each other.
        for job in sorted(jobs, key=lambda job: job.target):
            while not mark.lock(home, str(job.target)):
                if time.monotonic() > until:
                    self.errors[str(job.target)] = TableBusy(
                        f"Another sync of {job.target} is running; try again when it is done."
                    )
                    break
                time.sleep(0.05)
        marks = mark.read(home, [str(job.target) for job in jobs])
        found = targets.look(home, [job.target for job in jobs])
        for job in jobs:
            job.found = found.get(job.target)
            before = marks.get(str(job.target))
            job.holder = before if job.found else None
            # A table dropped and made anew by somebody else is not the one the mark speaks of.
            known = before and job.found and before.target_oid == job.found.oid
            job.before = before if known else None

    def _settle(self, leader: Leader, home: psycopg.Connection, jobs: list[Job]) -> dict[str, str]:
        """Pass the barrier, then commit each table with its mark, or all of them at once."""
        jobs = [job for job in jobs if job.plan and job.plan.mode != "none"]
        diverged: dict[str, str] = {}
        if not jobs or (self.atomic and self.errors):
            return diverged
        with in_words("source", _names(jobs)):
            leader.wait_until_flushed()
        settle = Settle(leader, home, self.max_delete_fraction)

        def settle_one(job: Job) -> None:
            try:
                with in_words("target", str(job.target)), home.transaction():
                    settle(job)
            except Diverged as finding:
                diverged[str(job.target)] = str(finding)
                if self.atomic:
                    raise psycopg.Rollback(outer) from finding

        with home.transaction() if self.atomic else nullcontext() as outer:
            for job in jobs:
                with self._alone(str(job.target)):
                    settle_one(job)
            if self.atomic and self.errors:
                raise psycopg.Rollback(outer)
        return diverged


def _to_copy(leader: Leader, jobs: list[Job]) -> int:
    """Bytes of heap that a first copy is ahead of."""
    new = [
        leader.tables[job.source] for job in jobs if not job.before and job.source in leader.tables
    ]
    return sum(table.blocks for table in new) * BLOCK_BYTES


def _place(spec: TableSpec) -> str:
    """The target table of a spec, by which all that is told of it goes."""
    try:
        return str(target_of(spec))
    except PlatformError:
        return spec.table


def _meeting(tables: Sequence[TableSpec]) -> dict[str, PlatformError]:
    """An error for each target table in which several specs meet."""
    by_place: dict[str, list[str]] = {}
    for spec in tables:
        by_place.setdefault(_place(spec), []).append(spec.table)
    return {
        place: CannotSync(
            f"{' and '.join(names)} both arrive as {place}; "
            "list one of them, or let them arrive in different schemas with `into`."
        )
        for place, names in by_place.items()
        if len(names) > 1
    }


def _names(jobs: list[Job]) -> str:
    return ", ".join(str(job.source) for job in jobs)
