"""One sync, top to bottom: lock, mark, snapshot, plan, stage, barrier, apply with the mark.

The story belongs here; each step's statements are in the module of its name. A single table is
a group of one.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace

import psycopg
from psycopg import sql

from replica_platform.errors import PlatformError
from replica_platform.xmin import apply, deletes, mark
from replica_platform.xmin import target as targets
from replica_platform.xmin.catalog import Table
from replica_platform.xmin.crew import Crew, Pair
from replica_platform.xmin.errors import CannotSync, TableBusy
from replica_platform.xmin.names import TableName, columns_sql, parse_schema
from replica_platform.xmin.plan import Plan, decide
from replica_platform.xmin.pump import relay
from replica_platform.xmin.read import (
    Found,
    Range,
    condition_of,
    copy_out,
    look,
    only,
    ranges,
    select,
)
from replica_platform.xmin.reports import GroupReport, SyncReport, TableSpec
from replica_platform.xmin.session import LOCK_TIMEOUT_S, in_words, open_target
from replica_platform.xmin.source import Leader, Snapshot
from replica_platform.xmin.timestamp import since_condition
from replica_platform.xmin.tune import choose

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
DELETES = ("auto", "keys", "never")
BLOCK_BYTES = 8192


@dataclass
class Job:
    """One table on its way through a sync."""

    spec: TableSpec
    source: TableName
    target: TableName
    before: mark.Mark | None = None
    found: targets.Target | None = None
    table: Table | None = None
    key: tuple[str, ...] = ()
    plan: Plan | None = None
    staged: bool = False
    source_rows: int | None = None
    """Live rows under the snapshot, where they were counted."""
    report: SyncReport | None = None
    began: float = field(default_factory=time.monotonic)


def sync(
    source: str,
    target: str,
    table: str,
    *,
    into: str | None = None,
    mode: str = "auto",
    timestamp_column: str | None = None,
    deletes: str = "auto",
    workers: int | None = None,
    batch_bytes: int | None = None,
    key: Sequence[str] | None = None,
    max_delete_fraction: float = 0.5,
    progress: Progress | None = None,
) -> SyncReport:
    """Bring one table of `target` in step with `source`; both are DSNs.

    `table` is `schema.table` as psql reads it; it arrives as `into.table`. `progress` is told
    bytes done and bytes expected. Errors: those of `replica_platform.xmin.errors`, each of
    which leaves the target as it was.
    """
    spec = TableSpec(table, into, mode, timestamp_column, deletes, tuple(key) if key else None)
    errors: dict[str, PlatformError] = {}
    group = _run(
        source, target, [spec], errors, atomic=True, workers=workers, batch_bytes=batch_bytes,
        max_delete_fraction=max_delete_fraction, progress=progress,
    )  # fmt: skip
    for error in errors.values():
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
    progress: Progress | None = None,
) -> GroupReport:
    """Sync many tables at one snapshot of the source, so that they fit together.

    A table that fails is named in `failures`; the others are committed, unless the group is
    `atomic`: then none is.
    """
    return _run(
        source, target, tables, {}, atomic=atomic, workers=workers, batch_bytes=batch_bytes,
        max_delete_fraction=max_delete_fraction, progress=progress,
    )  # fmt: skip


def _run(
    source: str,
    target_dsn: str,
    tables: Sequence[TableSpec],
    errors: dict[str, PlatformError],
    *,
    atomic: bool,
    workers: int | None,
    batch_bytes: int | None,
    max_delete_fraction: float,
    progress: Progress | None,
) -> GroupReport:
    began = time.monotonic()
    jobs: list[Job] = []
    for spec in tables:
        try:
            jobs.append(_job(spec))
        except PlatformError as error:
            errors[spec.table] = error
    with ExitStack() as stack:
        home = stack.enter_context(open_target(target_dsn))
        with in_words("target", "the marks"):
            mark.prepare(home)
            _take(home, jobs, errors)
        leader = stack.enter_context(Leader(source))
        with in_words("source", _names(jobs)):
            leader.begin([job.source for job in jobs if not _failed(job, errors)])
        tuning = choose(leader.connection, home, None, workers, batch_bytes)
        crew = stack.enter_context(Crew(leader, target_dsn, home, tuning.workers))
        work = _Work(leader, home, crew, tuning.batch_bytes, max_delete_fraction, progress)
        for job in jobs:
            if not _failed(job, errors):
                _guarded(job, errors, work.stage)
        work.settle(jobs, errors, atomic=atomic)
    reports = {job.spec.table: job.report for job in jobs if job.report is not None}
    if atomic and errors:
        reports = {}
    failures = {name: str(error) for name, error in errors.items()}
    return GroupReport(reports, failures, time.monotonic() - began, atomic)


def _job(spec: TableSpec) -> Job:
    if spec.deletes not in DELETES:
        raise CannotSync(f"deletes is one of {', '.join(DELETES)}, not {spec.deletes!r}.")
    source = TableName.parse(spec.table)
    schema = parse_schema(spec.into) if spec.into else source.schema
    return Job(spec, source, TableName(schema, source.table))


def _take(home: psycopg.Connection, jobs: list[Job], errors: dict[str, PlatformError]) -> None:
    """Hold each target table, then read its mark: whoever waits must see the newest."""
    until = time.monotonic() + LOCK_TIMEOUT_S
    for job in jobs:
        while not mark.lock(home, str(job.target)):
            if time.monotonic() > until:
                errors[job.spec.table] = TableBusy(
                    f"Another sync of {job.target} is running; try again when it is done."
                )
                break
            time.sleep(0.05)
    marks = mark.read(home, [str(job.target) for job in jobs])
    found = targets.look(home, [job.target for job in jobs])
    for job in jobs:
        job.found = found.get(job.target)
        before = marks.get(str(job.target))
        # A table dropped and made anew by somebody else is not the one the mark speaks of.
        known = before and job.found and before.target_oid == job.found.oid
        job.before = before if known else None


def _guarded(job: Job, errors: dict[str, PlatformError], step: Callable[[Job], None]) -> None:
    try:
        with in_words("source", str(job.source)):
            step(job)
    except PlatformError as error:
        errors[job.spec.table] = error
        log.warning("sync of %s failed: %s", job.source, error)


def _failed(job: Job, errors: dict[str, PlatformError]) -> bool:
    return job.spec.table in errors


def _names(jobs: list[Job]) -> str:
    return ", ".join(str(job.source) for job in jobs)


class _Work:
    """The steps of one group, over the connections that it holds."""

    def __init__(
        self,
        leader: Leader,
        home: psycopg.Connection,
        crew: Crew,
        batch_bytes: int,
        max_delete_fraction: float,
        progress: Progress | None,
    ) -> None:
        self.leader = leader
        self.home = home
        self.crew = crew
        self.batch_blocks = max(1, batch_bytes // BLOCK_BYTES)
        self.max_delete_fraction = max_delete_fraction
        self.progress = progress

    @property
    def snapshot(self) -> Snapshot:
        return self.leader.snapshot

    def stage(self, job: Job) -> None:
        """Plan the table, read what is needed, and leave it in its staging table."""
        problem = self.leader.failures.get(job.source)
        if isinstance(problem, PlatformError):
            raise problem
        table = job.table = self.leader.tables[job.source]
        job.key = job.spec.key or table.key
        plan = job.plan = decide(
            table, self.snapshot, job.before, mode=job.spec.mode, key=job.key,
            timestamp_column=job.spec.timestamp_column, deletes=job.spec.deletes,
        )  # fmt: skip
        log.info("sync of %s: %s, because: %s", job.source, plan.mode, plan.why)
        job.report = SyncReport(
            str(job.source), str(job.target), plan.mode, plan.why,
            lag_xids=self.snapshot.next - self.snapshot.w,
        )  # fmt: skip
        if plan.mode == "none":
            assert job.before is not None
            job.report = replace(job.report, rows=job.before.rows, w=job.before.w)
        elif plan.mode == "scan":
            self._stage_changed(job, table, plan)
        else:
            self._stage_whole(job, table, plan)

    def _stage_changed(self, job: Job, table: Table, plan: Plan) -> None:
        parts = [part for leaf in table.leaves for part in ranges(leaf, self.batch_blocks)]
        looks = self.crew.each(lambda pair, part: look(pair[0], part, plan), parts)
        job.source_rows = sum(found.rows for found in looks)
        hits = [found for found in looks if found.changed]
        if hits:
            self._copy(job, table, [_part(found, plan) for found in hits])

    def _stage_whole(self, job: Job, table: Table, plan: Plan) -> None:
        where: sql.Composable = sql.SQL("true")
        if plan.mode == "timestamp" and plan.since and job.spec.timestamp_column:
            where = since_condition(job.spec.timestamp_column, plan.since)
        if not table.has_xmin:
            self._copy(job, table, [(table.name.sql, where)])
            return
        parts = [part for leaf in table.leaves for part in ranges(leaf, self.batch_blocks)]
        both = [
            (only(part.leaf), sql.SQL("{} and {}").format(part.condition, where)) for part in parts
        ]
        self._copy(job, table, both)

    def _copy(
        self, job: Job, table: Table, parts: Sequence[tuple[sql.Composable, sql.Composable]]
    ) -> None:
        staging = targets.make_staging(self.home, job.target, table)
        job.staged = True
        columns = columns_sql([*table.names, *targets.OWN])
        into = sql.SQL("copy {} ({}) from stdin (format {})").format(
            staging.sql, columns, sql.SQL("binary" if table.binary else "text")
        )
        expected = table.blocks * BLOCK_BYTES
        done = [0]

        def moved(size: int) -> None:
            done[0] += size
            if self.progress:
                self.progress(done[0], max(expected, done[0]))

        def move(pair: Pair, part: tuple[sql.Composable, sql.Composable]) -> int:
            query = select(table, self.snapshot, *part)
            return relay(pair[0], copy_out(query, table.binary), pair[1], into, moved)

        total = sum(self.crew.each(move, parts))
        assert job.report is not None
        job.report = replace(job.report, bytes=total)

    def settle(self, jobs: list[Job], errors: dict[str, PlatformError], *, atomic: bool) -> None:
        """Wait for the barrier, then commit rows and marks: each table, or all or nothing."""
        ready = [job for job in jobs if not _failed(job, errors) and job.plan is not None]
        ready = [job for job in ready if job.plan and job.plan.mode != "none"]
        if not ready:
            return
        with in_words("source", _names(ready)):
            self.leader.wait_until_flushed()
        if atomic and errors:
            return
        outer = self.home.transaction() if atomic else nullcontext()
        try:
            with outer:
                for job in ready:
                    self._settle_one(job, errors, atomic=atomic)
        except PlatformError:
            if not errors:
                raise

    def _settle_one(self, job: Job, errors: dict[str, PlatformError], *, atomic: bool) -> None:
        try:
            with in_words("target", str(job.target)), self.home.transaction():
                self._apply(job)
        except PlatformError as error:
            errors[job.spec.table] = error
            job.report = None
            log.warning("sync of %s failed: %s", job.source, error)
            if atomic:
                raise

    def _apply(self, job: Job) -> None:
        table, plan, report = job.table, job.plan, job.report
        assert table is not None and plan is not None and report is not None
        notes: list[str] = []
        staging = targets.staging_name(job.target)
        read = _count(self.home, staging) if job.staged else 0
        delivered, complete = self._delivered(job, staging)
        if job.found is None:
            targets.make_schema(self.home, job.target.schema)
            targets.adopt_staging(self.home, job.target, job.key)
            written = apply.Written(inserted=read)
            rows: int | None = read
        else:
            if job.before is None or plan.mode != "scan":
                notes = targets.keep_in_step(self.home, job.target, job.found, table, job.key)
            written, rows = self._write(job, table, plan, staging)
            targets.drop_staging(self.home, job.target)
        place = targets.look(self.home, [job.target])[job.target]
        mark.write(self.home, self._mark(job, delivered, complete, rows, place.oid))
        job.report = replace(
            report, rows_read=read, rows_inserted=written.inserted, rows_updated=written.updated,
            rows_deleted=written.deleted, rows=rows, w=self.snapshot.w, notes=tuple(notes),
            seconds=time.monotonic() - job.began,
        )  # fmt: skip

    def _write(
        self, job: Job, table: Table, plan: Plan, staging: TableName
    ) -> tuple[apply.Written, int | None]:
        columns = targets.columns_to_write(table, job.found)
        shape = apply.Shape(
            job.target, staging, columns, job.key, frozenset(targets.never_set(job.found))
        )
        if job.staged:
            self.home.execute(sql.SQL("analyze {}").format(staging.sql))
        whole = plan.mode == "full" or (plan.mode == "timestamp" and plan.since is None)
        if whole and job.spec.deletes != "never":
            before = job.before.rows if job.before and job.before.rows is not None else None
            if before is None:
                before = _count(self.home, job.target)
            written = apply.replace(self.home, shape)
            if job.key:
                deletes.check_fraction(
                    written.deleted, before, job.target, self.max_delete_fraction
                )
            return written, before + written.inserted - written.deleted
        written = apply.Written()
        if job.staged:
            written = apply.merge(self.home, shape, trust_xmin=plan.mode == "scan")
        rows = job.before.rows if job.before else None
        if rows is not None:
            rows += written.inserted
        else:
            rows = _count(self.home, job.target)
        gone = self._delete(job, table, plan, rows)
        return replace(written, deleted=gone), rows - gone

    def _delete(self, job: Job, table: Table, plan: Plan, rows: int) -> int:
        """Deletes: in `auto` the keys are compared only when the counts say that some are gone."""
        if job.spec.deletes == "never" or not job.key:
            return 0
        if job.spec.deletes == "auto" and job.source_rows == rows:
            return 0
        types = {column.name: column.type for column in table.columns}
        keys = deletes.Keys(job.key, [types[name] for name in job.key], rows)
        place = sql.SQL("only {}").format(table.name.sql) if table.kind == "r" else table.name.sql
        return deletes.delete_orphans(
            self.leader.connection, place, self.home, job.target, keys,
            rows=rows, max_fraction=self.max_delete_fraction,
        )  # fmt: skip

    def _delivered(self, job: Job, staging: TableName) -> tuple[tuple[int, ...], bool]:
        """The xids at or above the new W that the target has now: they need no second read.

        They come from rows, never from the snapshot's list, which knows no subtransactions.
        """
        if self.snapshot.quiet or job.table is None or not job.table.has_xmin:
            return (), True
        w = self.snapshot.w
        seen: set[int] = set()
        if job.plan and job.plan.mode == "scan" and job.before and job.before.complete:
            seen = {xid for xid in job.before.delivered if xid >= w}
        if job.staged:
            query = sql.SQL("select distinct source_xmin from {} where source_xmin >= {} limit {}")
            limit = mark.DELIVERED_CAP + 1
            rows = self.home.execute(query.format(staging.sql, sql.Literal(w), sql.Literal(limit)))
            seen |= {xid for (xid,) in rows}
        if len(seen) > mark.DELIVERED_CAP:
            return (), False
        return tuple(sorted(seen)), True

    def _mark(
        self, job: Job, delivered: tuple[int, ...], complete: bool, rows: int | None, oid: int
    ) -> mark.Mark:
        table, plan = job.table, job.plan
        assert table is not None and plan is not None
        since = None
        if plan.mode == "timestamp":
            since = self.leader.running_since
        return mark.Mark(
            target_table=str(job.target),
            source_table=str(job.source),
            mode=plan.mode,
            w=self.snapshot.w,
            next=self.snapshot.next,
            snapshot=self.snapshot.text,
            delivered=delivered,
            complete=complete,
            identity=self.snapshot.identity,
            fingerprint=table.fingerprint,
            leaves={str(leaf.oid): leaf.filenode for leaf in table.leaves},
            lsn=self.snapshot.insert_lsn,
            rows=rows,
            target_oid=oid,
            deletes=job.spec.deletes,
            timestamp_from=since,
        )


def _part(found: Found, plan: Plan) -> tuple[sql.Composable, sql.Composable]:
    part: Range = found.range
    return only(part.leaf), condition_of(found, plan)


def _count(connection: psycopg.Connection, table: TableName) -> int:
    row = connection.execute(sql.SQL("select count(*) from {}").format(table.sql)).fetchone()
    assert row is not None
    return int(row[0])
