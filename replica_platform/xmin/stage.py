"""Plan a table, read what is needed at the leader's snapshot, and leave it in a staging table.

Nothing that readers of the target see is touched here.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import psycopg
from psycopg import sql

from replica_platform.core.errors import PlatformError
from replica_platform.core.reports import Progress
from replica_platform.xmin import resume
from replica_platform.xmin.copy.ranges import (
    BLOCK_BYTES,
    Found,
    Part,
    Range,
    changed,
    copy_out,
    look,
    only,
    parts_of,
    ranges,
    select,
)
from replica_platform.xmin.copy.stream import relay
from replica_platform.xmin.copy.workers import Crew, Pair
from replica_platform.xmin.errors import CannotSync
from replica_platform.xmin.integrity import row_hashes as verify
from replica_platform.xmin.job import Job
from replica_platform.xmin.names import TableName, columns_sql
from replica_platform.xmin.plan import Plan, decide
from replica_platform.xmin.reports import SyncReport
from replica_platform.xmin.session import in_words
from replica_platform.xmin.source import blocker as culprit
from replica_platform.xmin.source import timestamp
from replica_platform.xmin.source.catalog import Table
from replica_platform.xmin.source.snapshot import Leader
from replica_platform.xmin.target import owner, types
from replica_platform.xmin.target import tables as targets

log = logging.getLogger(__name__)


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
        self._own(job, table)
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
        elif plan.verify:
            self._verified(job, table)
        else:
            self._whole(job, table, plan)

    def _own(self, job: Job, table: Table) -> None:
        """Refuse a target that holds another source table. Errors: `TargetTaken`."""
        source, now = self._leader.connection, self._leader.snapshot.identity
        with in_words("source", str(job.source)):
            job.taken_over = owner.check(
                source, now, table, job.target, job.holder, take_over=job.take_over
            )
        if job.taken_over and job.spec.deletes == "never":
            raise CannotSync(
                f"{job.target} cannot be taken over with deletes='never': the rows of its former "
                "owner would stay among the new ones. Take it over with deletes='auto', or drop it."
            )

    def _plan(self, job: Job, table: Table) -> Plan:
        snapshot = self._leader.snapshot
        job.key = job.spec.key or table.key
        plan = job.plan = decide(
            table, snapshot, job.before, mode=job.spec.mode, key=job.key,
            timestamp_column=job.spec.timestamp_column, deletes=job.spec.deletes,
            target_columns=job.found.columns if job.found else (), distrust=job.distrust,
        )  # fmt: skip
        if plan.mode == "timestamp":
            plan = job.plan = self._timed(job, table, plan)
        job.report = SyncReport(
            str(job.source), str(job.target), plan.mode, plan.why,
            lag_xids=snapshot.next - snapshot.w,
            columns=tuple((column.name, column.type) for column in table.columns),
        )  # fmt: skip
        if job.before and job.before.w == snapshot.w and not snapshot.quiet:
            holder = culprit.of(self._leader.connection, snapshot)
            job.report = replace(job.report, notes=(holder,) if holder else ())
        if plan.mode == "none" and job.before:
            job.report = replace(job.report, rows=job.before.rows, w=job.before.w)
        elif job.found is not None:
            # Refused here, before anything is read.
            job.changes = targets.changes(job.target, job.found, table, job.key, plan.added)
        return plan

    def _timed(self, job: Job, table: Table, plan: Plan) -> Plan:
        """Find out what is read by the timestamp column, and add to the reason what is assumed."""
        source, column = self._leader.connection, job.spec.timestamp_column or ""
        with in_words("source", str(job.source)):
            window = timestamp.window(
                source, table.oid, column, plan.since, job.spec.timestamp_zone
            )
        job.window = window.condition
        if plan.since and window.zoneless and job.before and not job.before.identity.name:
            # A watermark without the database's name is of a version that compared as UTC.
            why = f"Rows are read by {column}. An earlier version may have missed some, so all."
            plan = replace(plan, since=None, why=why)
        return replace(plan, why=f"{plan.why} {window.assumed}".rstrip())

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

    def _verified(self, job: Job, table: Table) -> None:
        """Read the key ranges whose hashes differ on the two sides."""
        source = self._leader.connection
        with job.step("verify"), in_words("target", str(job.target)):
            differs = verify.differing(source, table, self._home, job.target, job.key)
        job.scope = differs or sql.SQL("false")
        if differs is not None:
            self._copy(job, table, [_part(part, differs) for part in self._ranges(table)])

    def _whole(self, job: Job, table: Table, plan: Plan) -> None:
        where = job.window if plan.since and job.window else sql.SQL("true")
        if job.found is None and table.has_xmin:
            self._first(job, table)
        elif table.has_xmin:
            self._copy(job, table, [_part(part, where) for part in self._ranges(table)])
        else:
            self._copy(job, table, [Part(table.name.sql, where)])

    def _first(self, job: Job, table: Table) -> None:
        """A first copy, or what an interrupted one still lacks."""
        load = targets.load_name(job.target)
        snapshot = self._leader.snapshot
        found = None
        if job.key and not job.distrust:
            found = resume.find(self._home, job.target, table, snapshot)
        where: sql.Composable = sql.SQL("true")
        todo = self._ranges(table)
        if found is None:
            half = resume.begun(table, snapshot, self._batch_blocks, self._crew.workers)
            with in_words("target", str(job.target)), self._home.transaction():
                # A new target adds the epoch when it is rewritten as a logged table anyway.
                targets.make_staging(self._home, load, table, raw=True)
                resume.write_head(self._home, job.target, half)
        else:
            half, done = found
            job.rest = Plan("scan", "", w=half.w)
            where = sql.SQL("not ({})").format(changed(job.rest))
            blocks = half.heap_blocks
            leaves = [replace(leaf, blocks=blocks[str(leaf.oid)]) for leaf in table.leaves]
            cut = [p for leaf in leaves for p in ranges(leaf, half.range_blocks, half.streams)]
            todo = [part for part in cut if resume.key_of(part) not in done]
            assert job.report is not None
            note = f"an interrupted copy went on: {len(done)} of {len(cut)} ranges had arrived"
            job.report = replace(job.report, notes=(note,))
        job.loaded = True
        self._move(job, table, load, todo, where)
        if job.rest is not None:
            self._changed(job, table, job.rest)

    def _ranges(self, table: Table) -> list[Range]:
        blocks, streams = self._batch_blocks, self._crew.workers
        return [part for leaf in table.leaves for part in ranges(leaf, blocks, streams)]

    def _copy(self, job: Job, table: Table, parts: Sequence[Part]) -> None:
        """Bring parts of the table into a new staging table, to be merged from there."""
        loads = job.found is None and job.rest is None
        staging = targets.load_name(job.target) if loads else targets.staging_name(job.target)
        with in_words("target", str(job.target)):
            targets.make_staging(self._home, staging, table)
        job.loaded, job.staged = job.loaded or loads, not loads
        relays = self._relays(job, table, staging)
        with job.step("copy"):
            self._count(job, sum(self._crew.move(relays, parts)))

    def _move(
        self,
        job: Job,
        table: Table,
        load: TableName,
        todo: Sequence[Range],
        where: sql.Composable,
    ) -> None:
        """Bring ranges into the table of a first copy, each with its line in the ledger."""
        relays = self._relays(job, table, load, raw=True)

        def move(pair: Pair, part: Range) -> int:
            with pair[1].transaction():
                size = relays(pair, _part(part, where))
                resume.write_range(pair[1], job.target, part)
            return size

        with job.step("copy"):
            self._count(job, sum(self._crew.move(move, todo)))

    def _relays(
        self, job: Job, table: Table, staging: TableName, *, raw: bool = False
    ) -> Callable[[Pair, Part], int]:
        """What moves one part of the table into a staging table, and returns its bytes."""
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
                self._progress(done, max(expected, done), "bytes")

        def move(pair: Pair, part: Part) -> int:
            query = copy_out(select(table, self._leader.snapshot, part, raw=raw), table.binary)
            with in_words("source", str(job.source)), pair[0].transaction():
                return relay(pair[0], query, pair[1], into, str(job.source), moved)

        return move

    def _count(self, job: Job, size: int) -> None:
        assert job.report is not None
        job.report = replace(job.report, bytes=job.report.bytes + size)


def _part(part: Range, where: sql.Composable) -> Part:
    both = sql.SQL("{} and {}").format(part.condition, where)
    return Part(only(part.leaf), both)
