"""The reading half of a sync: what a plan needs of the source, left in a staging table.

Nothing that readers of the target see is changed here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from replica_platform.core.reports import Progress
from replica_platform.xmin import resume
from replica_platform.xmin.copy.changes import (
    ChangedRows,
    ScannedRange,
    changed_selections,
    scan_range,
)
from replica_platform.xmin.copy.ranges import (
    BLOCK_BYTES,
    Range,
    Selection,
    copy_format,
    copy_out,
    ranges,
    rows_in,
)
from replica_platform.xmin.copy.stream import copy_stream
from replica_platform.xmin.copy.workers import Pair, Workers
from replica_platform.xmin.errors import translate_errors
from replica_platform.xmin.integrity.row_hashes import differing_keys
from replica_platform.xmin.names import TableName, columns_sql
from replica_platform.xmin.plan import PlannedTable
from replica_platform.xmin.reports import WriteMethod
from replica_platform.xmin.resume import InterruptedCopy
from replica_platform.xmin.source.snapshot import SourceSnapshot
from replica_platform.xmin.target import types
from replica_platform.xmin.target.schemas import create_schema
from replica_platform.xmin.target.tables import (
    SYNC_COLUMNS,
    create_staging,
    load_name,
    staging_name,
)

_ALL_ROWS = sql.SQL("true")


@dataclass(frozen=True)
class StagedTable:
    """A planned table whose rows wait in the target to be committed.

    Attributes:
        planned: The plan.
        method: How the rows get into the target table.
        has_rows: Whether rows wait in the staging table; those of a first copy are in another one.
        scanned: The rows that were read by xmin: of a scan, or to complete an interrupted copy.
        source_rows: The source's live rows, where a scan has counted them.
        scope: Of a repair: the condition on the keys that were read.
        bytes: Bytes of COPY that came from the source.
        notes: What the report says of the reading.
    """

    planned: PlannedTable
    method: WriteMethod
    has_rows: bool = False
    scanned: ChangedRows | None = None
    source_rows: int | None = None
    scope: sql.Composable = field(default_factory=lambda: _ALL_ROWS)
    bytes: int = 0
    notes: tuple[str, ...] = ()

    @property
    def reads_source(self) -> bool:
        """Whether the commit may have to compare keys or content with the source."""
        if self.planned.part is not None:
            return True
        if self.planned.request.spec.deletes == "never":
            return False
        return self.method is WriteMethod.MERGE or self.scanned is not None

    @property
    def target(self) -> TableName:
        """The target table's name."""
        return self.planned.target


class Stage:
    """Reads planned tables, over the connections of one sync."""

    def __init__(
        self,
        source: SourceSnapshot,
        target: psycopg.Connection,
        workers: Workers,
        batch_bytes: int,
        progress: Progress | None,
    ) -> None:
        self._source = source
        self._target = target
        self._workers = workers
        self._batch_blocks = max(1, batch_bytes // BLOCK_BYTES)
        self._progress = progress

    def __call__(self, planned: PlannedTable) -> StagedTable:
        """Read what the plan needs."""
        with translate_errors("target", planned.target):
            self._create_types(planned)
            if planned.plan.mode == "none":
                return StagedTable(planned, WriteMethod.NOTHING)
            if planned.plan.changed is not None:
                return self._changed_rows(planned, planned.plan.changed)
            if planned.plan.compare_first:
                return self._differing_rows(planned)
            if planned.locked.found is None:
                return self._first_copy(planned)
            return self._all_rows(planned)

    def _create_types(self, planned: PlannedTable) -> None:
        with translate_errors("source", planned.request.source):
            needed = types.types_of(self._source.connection, planned.table)
        types.keep_in_step(self._target, needed)
        types.make_operators_visible(self._target, needed)

    def _changed_rows(self, planned: PlannedTable, changed: ChangedRows) -> StagedTable:
        """Scan the table, and copy the rows that the watermark does not cover."""
        source_rows, selections = self._scan(planned, changed)
        size = self._copy(planned, staging_name(planned.target), selections) if selections else 0
        return StagedTable(
            planned,
            WriteMethod.MERGE,
            has_rows=bool(selections),
            scanned=changed,
            source_rows=source_rows,
            bytes=size,
        )

    def _differing_rows(self, planned: PlannedTable) -> StagedTable:
        """Copy the key ranges whose hashes differ on the two sides."""
        # Old rows have one constant in a new column, and the target does not have the column yet.
        added = {column.name for column in planned.plan.added}
        with planned.request.times.step("verify"):
            differs = differing_keys(
                self._source.connection,
                planned.table,
                self._target,
                planned.target,
                planned.key,
                [name for name in planned.table.names if name not in added],
                planned.casts,
            )
        method = WriteMethod.REPAIR
        if planned.request.spec.deletes == "never":
            method = WriteMethod.MERGE
        if differs is None:
            return StagedTable(planned, method)
        size = self._copy(planned, staging_name(planned.target), self._rows(planned, differs))
        return StagedTable(planned, method, has_rows=True, scope=differs, bytes=size)

    def _all_rows(self, planned: PlannedTable) -> StagedTable:
        """Copy every row, or by timestamp those of the window."""
        window = planned.window if planned.plan.since else None
        selections = self._rows(planned, window or _ALL_ROWS)
        size = self._copy(planned, staging_name(planned.target), selections)
        method = WriteMethod.REPLACE if planned.key else WriteMethod.MULTISET
        if planned.plan.since or planned.request.spec.deletes == "never":
            method = WriteMethod.MERGE
        return StagedTable(planned, method, has_rows=True, bytes=size)

    def _first_copy(self, planned: PlannedTable) -> StagedTable:
        """Load every row into what becomes the target table."""
        # Before anything is read, and by itself: another sync may create the same schema.
        create_schema(self._target, planned.target.schema)
        load = load_name(planned.target)
        if not planned.table.has_xmin:
            rows = self._rows(planned, _ALL_ROWS)
            size = self._copy(planned, load, rows, logged=True)
            return StagedTable(planned, WriteMethod.FIRST_COPY, bytes=size)
        interrupted = self._interrupted(planned)
        if interrupted is not None:
            return self._continued_copy(planned, load, interrupted)
        start = resume.copy_start(
            planned.table, self._source.snapshot, self._batch_blocks, self._workers.count
        )
        # A copy that is continued reads from W on, and trusts all older transactions to be durable.
        with translate_errors("source", planned.request.source):
            self._source.wait_until_flushed()
        with self._target.transaction():
            create_staging(self._target, load, planned.table, logged=True)
            resume.write_start(self._target, planned.target, start)
        size = self._load(planned, load, self._ranges(planned), _ALL_ROWS)
        return StagedTable(planned, WriteMethod.FIRST_COPY, bytes=size)

    def _interrupted(self, planned: PlannedTable) -> InterruptedCopy | None:
        if not planned.key or planned.request.doubt:
            return None
        return resume.find_interrupted(
            self._target, planned.target, planned.table, self._source.snapshot
        )

    def _continued_copy(
        self, planned: PlannedTable, load: TableName, interrupted: InterruptedCopy
    ) -> StagedTable:
        """Load the ranges that have not arrived, and stage what is newer than the first W."""
        size = self._load(planned, load, interrupted.waiting, interrupted.older)
        source_rows, selections = self._scan(planned, interrupted.newer)
        if selections:
            size += self._copy(planned, staging_name(planned.target), selections)
        return StagedTable(
            planned,
            WriteMethod.FIRST_COPY,
            has_rows=bool(selections),
            scanned=interrupted.newer,
            source_rows=source_rows,
            bytes=size,
            notes=(interrupted.note,),
        )

    def _scan(self, planned: PlannedTable, changed: ChangedRows) -> tuple[int, list[Selection]]:
        """Return the number of live rows, and what to copy of the changed ones."""
        pieces = self._ranges(planned)

        def scan(source: psycopg.Connection, one: Range) -> ScannedRange:
            with translate_errors("source", planned.request.source), source.transaction():
                return scan_range(source, one, changed, len(pieces))

        with planned.request.times.step("scan"):
            scanned = self._workers.read(scan, pieces)
        return sum(one.rows for one in scanned), changed_selections(scanned, changed)

    def _ranges(self, planned: PlannedTable) -> list[Range]:
        return ranges(planned.table.leaves, self._batch_blocks, self._workers.count)

    def _rows(self, planned: PlannedTable, where: sql.Composable) -> list[Selection]:
        """Return the rows of the table that meet a condition, range by range."""
        if not planned.table.has_xmin:
            return [Selection(planned.table.name.sql, where)]
        return [rows_in(one, where) for one in self._ranges(planned)]

    def _copy(
        self,
        planned: PlannedTable,
        staging: TableName,
        selections: Sequence[Selection],
        *,
        logged: bool = False,
    ) -> int:
        """Copy selections into a new staging table; return the bytes."""
        create_staging(self._target, staging, planned.table, logged=logged)
        copy = self._copier(planned, staging)
        with planned.request.times.step("copy"):
            return sum(self._workers.copy(copy, selections))

    def _load(
        self,
        planned: PlannedTable,
        load: TableName,
        waiting: Sequence[Range],
        where: sql.Composable,
    ) -> int:
        """Copy ranges into the table of a first copy, each with its line in the ledger."""
        copy = self._copier(planned, load)

        def load_range(pair: Pair, one: Range) -> int:
            with translate_errors("target", planned.target), pair.target.transaction():
                size = copy(pair, rows_in(one, where))
                resume.write_range(pair.target, planned.target, one)
            return size

        with planned.request.times.step("copy"):
            return sum(self._workers.copy(load_range, waiting))

    def _copier(
        self, planned: PlannedTable, staging: TableName
    ) -> Callable[[Pair, Selection], int]:
        """Return what copies one selection into a staging table, and returns its bytes."""
        table, source_name = planned.table, planned.request.source
        command = sql.SQL("copy {} ({}) from stdin (format {})").format(
            staging.sql, columns_sql([*table.names, *SYNC_COLUMNS]), copy_format(table)
        )
        expected = table.blocks * BLOCK_BYTES
        done = 0

        def on_bytes(size: int) -> None:
            nonlocal done
            done += size
            if self._progress:
                self._progress(done, max(expected, done), "bytes")

        def copy(pair: Pair, selection: Selection) -> int:
            query = copy_out(table, self._source.snapshot, selection)
            with translate_errors("source", source_name), pair.source.transaction():
                return copy_stream(pair.source, query, pair.target, command, source_name, on_bytes)

        return copy
