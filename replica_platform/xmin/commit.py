"""Staged rows, deletes and the mark into the target, in one transaction a table.

What is committed together is decided here; the statements are `apply`'s, `deletes`' and
`target`'s.
"""

import time
from dataclasses import replace

import psycopg
from psycopg import sql

from replica_platform.xmin import resume
from replica_platform.xmin.copy.ranges import full_xid
from replica_platform.xmin.errors import TooManyDeletes
from replica_platform.xmin.integrity import deletes
from replica_platform.xmin.job import Diverged, Job
from replica_platform.xmin.names import TableName
from replica_platform.xmin.plan import Plan
from replica_platform.xmin.source.catalog import Table
from replica_platform.xmin.source.snapshot import Leader
from replica_platform.xmin.target import apply, owner
from replica_platform.xmin.target import tables as targets
from replica_platform.xmin.target import watermark as mark

# Below, the planner's guess from the table's size is good enough, and quicker than the truth.
ANALYZE_FROM = 10_000


class Settle:
    """The writing half of a sync; called in a transaction on the target."""

    def __init__(
        self, leader: Leader, home: psycopg.Connection, max_delete_fraction: float
    ) -> None:
        self._leader = leader
        self._home = home
        self._max_fraction = max_delete_fraction

    def __call__(self, job: Job) -> None:
        """Apply what is staged and write the mark. Errors: `Diverged`, `TooManyDeletes`."""
        table, plan, report = job.planned()
        staging = targets.staging_name(job.target)
        read = _count(self._home, staging) if job.staged else 0
        if job.loaded:
            read += _count(self._home, targets.load_name(job.target))
            oid, written, rows = self._load(job, table, plan)
            delivered, complete = self._delivered(job, table, plan, job.target)
        else:
            assert job.found is not None
            oid = job.found.oid
            delivered, complete = self._delivered(job, table, plan, staging)
            for change in job.changes:
                self._home.execute(change.statement)
            written, rows = self._write(job, table, plan, staging)
        if job.staged:
            targets.drop(self._home, staging)
        mark.write(self._home, self._mark(job, table, plan, delivered, complete, rows, oid))
        job.report = replace(
            report,
            rows_read=read,
            rows_inserted=written.inserted,
            rows_updated=written.updated,
            rows_deleted=written.deleted,
            rows=rows,
            w=self._leader.snapshot.w,
            notes=report.notes + tuple(change.note for change in job.changes if change.note),
            seconds=time.monotonic() - job.began,
            seconds_by_step=job.seconds,
        )

    def _load(self, job: Job, table: Table, plan: Plan) -> tuple[int, apply.Written, int]:
        """Make a first copy the target table; then merge what an interrupted one had missed."""
        targets.make_schema(self._home, job.target.schema)
        with job.step("adopt"):
            epoch: sql.Composable = sql.SQL("source_xmin")
            if table.has_xmin:
                epoch = full_xid(self._leader.snapshot, epoch)
            oid = targets.adopt(self._home, job.target, job.key, epoch)
        resume.clear(self._home, job.target)
        rows = _count(self._home, job.target)
        if job.rest is None:
            return oid, apply.Written(inserted=rows), rows
        job.found = targets.look(self._home, [job.target])[job.target]
        staging = targets.staging_name(job.target)
        _, rows = self._write(job, table, job.rest, staging)
        return oid, apply.Written(inserted=rows), rows

    def _write(
        self, job: Job, table: Table, plan: Plan, staging: TableName
    ) -> tuple[apply.Written, int]:
        columns = targets.columns_to_write(table, job.found)
        fixed = frozenset(targets.never_set(job.found))
        casts = targets.casts(table, job.found)
        scope = job.scope or sql.SQL("true")
        shape = apply.Shape(job.target, staging, columns, job.key, fixed, casts, scope)
        if job.staged and _count(self._home, staging) > ANALYZE_FROM:
            self._home.execute(sql.SQL("analyze {}").format(staging.sql))
        rows = job.before.rows if job.before else None
        if rows is None:
            rows = _count(self._home, job.target)
        if plan.verify and not job.staged:
            return apply.Written(), _count(self._home, job.target)
        whole = plan.mode == "full" or (plan.mode == "timestamp" and plan.since is None)
        if whole and job.spec.deletes != "never":
            if plan.mode == "full":
                rows = _count(self._home, job.target)  # a full copy believes no mark
            with job.step("replace"):
                written = apply.replace_all(self._home, shape)
            # Without a key a changed row is a deleted and an inserted one.
            fewer = written.deleted if job.key else max(0, written.deleted - written.inserted)
            self._check_deletes(job, table, fewer, rows)
            return written, rows + written.inserted - written.deleted
        written = apply.Written()
        if job.staged:
            # A leaf that is new may hold a key under the xmin that another leaf had it under.
            trust = plan.mode == "scan" and not plan.whole
            with job.step("merge"):
                written = apply.merge(self._home, shape, trust_xmin=trust)
        rows += written.inserted
        with job.step("deletes"):
            gone = self._delete(job, table, rows)
        if plan.mode == "scan":
            _agree(job, rows - gone)
        return replace(written, deleted=gone), rows - gone

    def _delete(self, job: Job, table: Table, rows: int) -> int:
        """Deletes: in `auto` the keys are compared only when the counts say that some are gone."""
        if job.spec.deletes == "never" or not job.key:
            return 0
        if job.spec.deletes == "auto" and job.source_rows == rows:
            return 0
        types = {column.name: column.type for column in table.columns}
        keys = deletes.Keys(job.key, [types[name] for name in job.key], rows)
        gone = deletes.delete_orphans(
            self._leader.connection, table.rows(job.key), self._home, job.target, keys
        )
        self._check_deletes(job, table, gone, rows)
        return gone

    def _check_deletes(self, job: Job, table: Table, gone: int, rows: int) -> None:
        """Refuse a delete that looks like a wrong source; the transaction rolls it back."""
        if job.taken_over:
            return  # to replace the rows is what taking over means
        before, now = job.before, self._leader.snapshot.identity
        same_server = before is not None and before.identity == now
        if before and not same_server and gone and gone == rows:
            raise TooManyDeletes(
                f"{table.name} has none of the {rows:,} rows of {job.target} any more, and its "
                "source is another server than at the last sync; nothing was deleted. "
                f"If that is right, drop {job.target} and sync again."
            )
        leaves = {str(leaf.oid): leaf.filenode for leaf in table.leaves}
        if before and same_server and any(leaves.get(o) != f for o, f in before.leaves.items()):
            return  # TRUNCATE gives a new filenode, DETACH takes the leaf: it was meant
        # Under the same names on another server may be another application's small table.
        moved = before is not None and owner.moved(before.identity, now)
        allowed = 0 if moved else deletes.ALWAYS_ALLOWED
        deletes.check_fraction(gone, rows, job.target, self._max_fraction, allowed)

    def _delivered(
        self, job: Job, table: Table, plan: Plan, rows: TableName
    ) -> tuple[tuple[int, ...], bool]:
        """The xids at or above the new W that the target has now: they need no second read.

        They come from rows, never from the snapshot's list, which knows no subtransactions.
        """
        snapshot = self._leader.snapshot
        if snapshot.quiet or not table.has_xmin:
            return (), True
        seen: set[int] = set()
        if plan.mode == "scan" and job.before and job.before.complete:
            seen = {xid for xid in job.before.delivered if xid >= snapshot.w}
        if job.staged:
            query = sql.SQL("select distinct source_xmin from {} where source_xmin >= {} limit {}")
            limits = sql.Literal(snapshot.w), sql.Literal(mark.DELIVERED_CAP + 1)
            seen |= {xid for (xid,) in self._home.execute(query.format(rows.sql, *limits))}
        if len(seen) > mark.DELIVERED_CAP:
            return (), False
        return tuple(sorted(seen)), True

    def _mark(
        self,
        job: Job,
        table: Table,
        plan: Plan,
        delivered: tuple[int, ...],
        complete: bool,
        rows: int,
        oid: int,
    ) -> mark.Mark:
        snapshot = self._leader.snapshot
        return mark.Mark(
            target_table=str(job.target),
            source_table=str(job.source),
            mode=plan.mode,
            w=snapshot.w,
            next=snapshot.next,
            snapshot=snapshot.text,
            delivered=delivered,
            complete=complete,
            identity=replace(
                snapshot.identity, former=owner.former(job.holder, snapshot.identity, table)
            ),
            fingerprint=table.fingerprint,
            leaves={str(leaf.oid): leaf.filenode for leaf in table.leaves},
            rows=rows,
            target_oid=oid,
            deletes=job.spec.deletes,
            timestamp_from=self._leader.running_since if plan.mode == "timestamp" else None,
        )


def _agree(job: Job, rows: int) -> None:
    """After a scan the target has at least the source's rows; fewer prove that some were lost."""
    short = job.source_rows is not None and rows < job.source_rows
    over = job.spec.deletes != "never" and rows != job.source_rows
    if short or over:
        raise Diverged(
            f"The target has {rows:,} rows where the source has {job.source_rows:,}, "
            "though its mark says that all were delivered; somebody has written to it."
        )


def _count(connection: psycopg.Connection, table: TableName) -> int:
    row = connection.execute(sql.SQL("select count(*) from {}").format(table.sql)).fetchone()
    assert row is not None
    return int(row[0])
