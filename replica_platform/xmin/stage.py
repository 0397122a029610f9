"""Plan a table, read what is needed at the leader's snapshot, and leave it in a staging table.

Nothing that readers of the target see is touched here.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import psycopg
from psycopg import sql

from replica_platform.errors import PlatformError
from replica_platform.xmin import target as targets
from replica_platform.xmin import types
from replica_platform.xmin.catalog import Table
from replica_platform.xmin.crew import Crew, Pair
from replica_platform.xmin.job import Job
from replica_platform.xmin.names import columns_sql
from replica_platform.xmin.plan import Plan, decide
from replica_platform.xmin.pump import relay
from replica_platform.xmin.read import (
    Found,
    Part,
    Range,
    copy_out,
    look,
    only,
    parts_of,
    ranges,
    select,
)
from replica_platform.xmin.reports import SyncReport
from replica_platform.xmin.session import in_words
from replica_platform.xmin.source import Leader
from replica_platform.xmin.timestamp import since_condition

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
BLOCK_BYTES = 8192


class Stage:
    """The reading half of a sync, over the connections that it holds."""

    def __init__(
        self,
        leader: Leader,
        home: psycopg.Connection,
        crew: Crew,
        batch_bytes: int,
        progress: Progress | None,
    ) -> None:
        self._leader = leader
        self._home = home
        self._crew = crew
        self._batch_blocks = max(1, batch_bytes // BLOCK_BYTES)
        self._progress = progress

    def __call__(self, job: Job) -> None:
        """Plan and stage one table."""
        problem = self._leader.failures.get(job.source)
        if isinstance(problem, PlatformError):
            raise problem
        table = job.table = self._leader.tables[job.source]
        plan = self._plan(job, table)
        log.info("sync of %s: %s, because: %s", job.source, plan.mode, plan.why)
        if plan.mode == "none":
            return
        with in_words("source", str(job.source)):
            needed = types.needed(self._leader.connection, table)
        with in_words("target", str(job.target)):
            types.keep_in_step(self._home, needed)
        if plan.mode == "scan":
            self._changed(job, table, plan)
        else:
            self._whole(job, table, plan)

    def _plan(self, job: Job, table: Table) -> Plan:
        snapshot = self._leader.snapshot
        job.key = job.spec.key or table.key
        plan = job.plan = decide(
            table, snapshot, job.before, mode=job.spec.mode, key=job.key,
            timestamp_column=job.spec.timestamp_column, deletes=job.spec.deletes,
            target_columns=job.found.columns if job.found else (), distrust=job.distrust,
        )  # fmt: skip
        job.report = SyncReport(
            str(job.source), str(job.target), plan.mode, plan.why,
            lag_xids=snapshot.next - snapshot.w,
            columns=tuple((column.name, column.type) for column in table.columns),
        )  # fmt: skip
        if plan.mode == "none" and job.before:
            job.report = replace(job.report, rows=job.before.rows, w=job.before.w)
        elif job.found is not None:
            # Refused here, before anything is read.
            job.changes = targets.changes(job.target, job.found, table, job.key, plan.added)
        return plan

    def _changed(self, job: Job, table: Table, plan: Plan) -> None:
        pieces = self._ranges(table)

        def see(source: psycopg.Connection, part: Range) -> Found:
            with in_words("source", str(job.source)), source.transaction():
                return look(source, part, plan, len(pieces))

        with job.step("scan"):
            looks = self._crew.look(see, pieces)
        job.source_rows = sum(found.rows for found in looks)
        hits = [found for found in looks if found.changed]
        if hits:
            self._copy(job, table, parts_of(hits, plan))

    def _whole(self, job: Job, table: Table, plan: Plan) -> None:
        where: sql.Composable = sql.SQL("true")
        if plan.since and job.spec.timestamp_column:
            where = since_condition(job.spec.timestamp_column, plan.since)
        if not table.has_xmin:
            self._copy(job, table, [Part(table.name.sql, where)])
            return
        both = sql.SQL("{} and {}")
        parts = [
            Part(only(part.leaf), both.format(part.condition, where))
            for part in self._ranges(table)
        ]
        self._copy(job, table, parts)

    def _ranges(self, table: Table) -> list[Range]:
        return [part for leaf in table.leaves for part in ranges(leaf, self._batch_blocks)]

    def _copy(self, job: Job, table: Table, parts: Sequence[Part]) -> None:
        """Bring parts of the table into a new staging table, side by side."""
        snapshot = self._leader.snapshot
        with in_words("target", str(job.target)):
            # A new target adds the epoch when it is rewritten as a logged table anyway.
            raw = job.found is None and table.has_xmin
            staging = targets.make_staging(self._home, job.target, table, raw=raw)
        job.staged = True
        into = sql.SQL("copy {} ({}) from stdin (format {})").format(
            staging.sql,
            columns_sql([*table.names, *targets.OWN]),
            sql.SQL("binary" if table.binary else "text"),
        )
        expected = table.blocks * BLOCK_BYTES
        done = 0

        def moved(size: int) -> None:
            nonlocal done
            done += size
            if self._progress:
                self._progress(done, max(expected, done))

        def move(pair: Pair, part: Part) -> int:
            query = copy_out(select(table, snapshot, part, raw=raw), table.binary)
            with in_words("source", str(job.source)), pair[0].transaction():
                return relay(pair[0], query, pair[1], into, str(job.source), moved)

        with job.step("copy"):
            total = sum(self._crew.move(move, parts))
        assert job.report is not None
        job.report = replace(job.report, bytes=total)
