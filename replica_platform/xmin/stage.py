"""The reading half of a sync: what a plan needs of the source, left in a staging table.

Nothing that readers of the target see is changed here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from replica_platform.xmin.blocks.choice import TableBlocks
from replica_platform.xmin.blocks.read import (
    BlockCount,
    BlockList,
    changed_lists,
    count_blocks,
    listed_blocks,
    rows_of,
)
from replica_platform.xmin.copy.buckets import BucketCounts, bucket_blocks, kept_rows, live_rows
from replica_platform.xmin.copy.changes import (
    ChangedRows,
    ScannedBucket,
    changed_selections,
    most_tids_per_bucket,
    scan_range,
)
from replica_platform.xmin.copy.progress import GroupProgress
from replica_platform.xmin.copy.ranges import (
    BLOCK_BYTES,
    Range,
    Selection,
    copy_format,
    copy_out,
    ranges,
    rows_in,
)
from replica_platform.xmin.copy.stream import Copied, copy_stream
from replica_platform.xmin.copy.workers import Pair, Workers
from replica_platform.xmin.errors import translate_errors
from replica_platform.xmin.integrity.row_hashes import differing_keys
from replica_platform.xmin.names import TableName, columns_sql
from replica_platform.xmin.plan import PlannedTable
from replica_platform.xmin.reports import WriteMethod
from replica_platform.xmin.source.snapshot import SourceSnapshot
from replica_platform.xmin.target import types
from replica_platform.xmin.target.schemas import create_schema
from replica_platform.xmin.target.tables import (
    create_staging,
    load_name,
    staging_name,
    sync_columns,
)

ALL_ROWS = sql.SQL("true")


@dataclass(frozen=True)
class Scan:
    """What a scan of a whole table found.

    Attributes:
        rows: Its live rows.
        selections: What to copy of the changed ones.
        live: The live rows by bucket.
        kept: Those of them that the watermark covers.
    """

    rows: int
    selections: list[Selection]
    live: BucketCounts
    kept: BucketCounts


@dataclass(frozen=True)
class StagedTable:
    """A planned table whose rows wait in the target to be committed.

    Attributes:
        planned: The plan.
        method: How the rows get into the target table.
        has_rows: Whether rows wait in the staging table; those of a first copy are in another one.
        scanned: The rows that were read by xmin: of a scan, or to complete an interrupted copy.
        source_rows: The source's live rows, where a scan has counted them.
        scan: The whole result of that scan.
        loaded: Of a first copy that has been scanned: where its rows lay when they were loaded.
        counts: By blocks: what the changed blocks hold in the source.
        scope: Of a repair: the condition on the keys that were read.
        bytes: Bytes of COPY that came from the source.
        rows_loaded: Of a first copy: the rows in the table that becomes the target table; None
            where they have to be counted.
        notes: What the report says of the reading.
    """

    planned: PlannedTable
    method: WriteMethod
    has_rows: bool = False
    scanned: ChangedRows | None = None
    source_rows: int | None = None
    scan: Scan | None = None
    loaded: BucketCounts | None = None
    counts: tuple[BlockCount, ...] = ()
    scope: sql.Composable = field(default_factory=lambda: ALL_ROWS)
    bytes: int = 0
    rows_loaded: int | None = None
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
    """Reads planned tables at one snapshot of the source.

    Attributes:
        source: The snapshot.
        target: A session on the target.
        workers: The connections that read and write.
        batch_blocks: How many blocks a range holds at most.
    """

    def __init__(
        self,
        source: SourceSnapshot,
        target: psycopg.Connection,
        workers: Workers,
        batch_bytes: int,
        progress: GroupProgress,
    ) -> None:
        self.source = source
        self.target = target
        self.workers = workers
        self.batch_blocks = max(1, batch_bytes // BLOCK_BYTES)
        self._progress = progress

    def __call__(self, planned: PlannedTable) -> StagedTable:
        """Read what the plan needs."""
        with translate_errors("target", planned.target):
            self.create_types(planned)
            if planned.plan.mode == "none":
                return StagedTable(planned, WriteMethod.NOTHING)
            if planned.plan.blocks is not None and planned.plan.changed is not None:
                return self._changed_blocks(planned, planned.plan.blocks, planned.plan.changed)
            if planned.plan.changed is not None:
                return self._changed_rows(planned, planned.plan.changed)
            if planned.plan.compare_first:
                return self._differing_rows(planned)
            if planned.locked.found is None:
                return self._loaded_once(planned)
            return self._all_rows(planned)

    def create_types(self, planned: PlannedTable) -> None:
        """Create the types of the table's columns in the target."""
        with translate_errors("source", planned.request.source):
            needed = types.types_of(self.source.connection, planned.table)
        types.keep_in_step(self.target, needed)
        types.make_operators_visible(self.target, needed)

    def create_schema(self, planned: PlannedTable) -> None:
        """Create the schema of the target table, where it is absent.

        Before anything is read, and by itself: another sync may create the same schema.
        """
        create_schema(self.target, planned.target.schema)

    def _changed_rows(self, planned: PlannedTable, changed: ChangedRows) -> StagedTable:
        """Scan the table, and copy the rows that the watermark does not cover."""
        scan = self.scan(planned, changed)
        size = self.copy_changed(planned, scan.selections)
        return StagedTable(
            planned,
            WriteMethod.MERGE,
            has_rows=bool(scan.selections),
            scanned=changed,
            source_rows=scan.rows,
            scan=scan,
            bytes=size,
        )

    def _changed_blocks(
        self, planned: PlannedTable, blocks: TableBlocks, changed: ChangedRows
    ) -> StagedTable:
        """Count the rows of the changed blocks, and copy those that changed."""

        def count(source: psycopg.Connection, one: BlockList) -> list[BlockCount]:
            with translate_errors("source", planned.request.source), source.transaction():
                return count_blocks(source, one, changed)

        listed = listed_blocks(planned.table, blocks)
        with planned.request.times.step("count"):
            found = [one for some in self.workers.read(count, listed) for one in some]
        wanted = changed_lists(listed, found)
        selections = [rows_of(planned.table, one, changed) for one in wanted]
        whole = [leaf for leaf in planned.table.leaves if leaf.oid in blocks.whole]
        for one in ranges(whole, self.batch_blocks, self.workers.count):
            selections.append(rows_in(one, ALL_ROWS))
        size = self.copy_changed(planned, selections)
        notes = (f"{blocks.words} read", blocks.reading)
        return StagedTable(
            planned,
            WriteMethod.BLOCKS,
            has_rows=bool(selections),
            scanned=changed,
            counts=tuple(found),
            bytes=size,
            notes=tuple(note for note in notes if note),
        )

    def copy_changed(self, planned: PlannedTable, selections: Sequence[Selection]) -> int:
        """Copy selections into the staging table, where there are any; return the bytes."""
        if not selections:
            return 0
        return self._copy(planned, staging_name(planned.target), selections).bytes

    def _differing_rows(self, planned: PlannedTable) -> StagedTable:
        """Copy the key ranges whose hashes differ on the two sides."""
        # Old rows have one constant in a new column, and the target does not have the column yet.
        added = {column.name for column in planned.plan.added}
        with planned.request.times.step("verify"):
            differs = differing_keys(
                self.source.connection,
                planned.table,
                self.target,
                planned.target,
                planned.key,
                [name for name in planned.table.names if name not in added],
                planned.casts,
                locations=planned.locations,
            )
        method = WriteMethod.REPAIR
        if planned.request.spec.deletes == "never":
            method = WriteMethod.MERGE
        if differs is None:
            return StagedTable(planned, method)
        size = self._copy(planned, staging_name(planned.target), self._rows(planned, differs)).bytes
        return StagedTable(planned, method, has_rows=True, scope=differs, bytes=size)

    def _all_rows(self, planned: PlannedTable) -> StagedTable:
        """Copy every row, or by timestamp those of the window."""
        window = planned.window if planned.plan.since else None
        selections = self._rows(planned, window or ALL_ROWS)
        size = self._copy(planned, staging_name(planned.target), selections).bytes
        method = WriteMethod.REPLACE if planned.key else WriteMethod.MULTISET
        if planned.plan.since or planned.request.spec.deletes == "never":
            method = WriteMethod.MERGE
        return StagedTable(planned, method, has_rows=True, bytes=size)

    def _loaded_once(self, planned: PlannedTable) -> StagedTable:
        """Load a table without xmin into what becomes the target table."""
        self.create_schema(planned)
        rows = self._rows(planned, ALL_ROWS)
        copied = self._copy(planned, load_name(planned.target), rows, logged=True)
        return StagedTable(
            planned, WriteMethod.FIRST_COPY, bytes=copied.bytes, rows_loaded=copied.rows
        )

    def scan(self, planned: PlannedTable, changed: ChangedRows) -> Scan:
        """Count the live rows, and find what to copy of the changed ones."""
        blocks = bucket_blocks(planned.table)
        leaves = planned.table.leaves
        pieces = ranges(leaves, self.batch_blocks, self.workers.count, blocks)
        most_tids = most_tids_per_bucket(sum(leaf.blocks // blocks + 1 for leaf in leaves))

        def scan(source: psycopg.Connection, one: Range) -> list[ScannedBucket]:
            with translate_errors("source", planned.request.source), source.transaction():
                return scan_range(source, one, changed, blocks, most_tids)

        with planned.request.times.step("scan"):
            scanned = [one for piece in self.workers.read(scan, pieces) for one in piece]
        return Scan(
            sum(one.rows for one in scanned),
            changed_selections(scanned, changed),
            live_rows(scanned, blocks),
            kept_rows(scanned, blocks),
        )

    def ranges(self, planned: PlannedTable) -> list[Range]:
        """Cut the table's leaves into ranges."""
        return ranges(planned.table.leaves, self.batch_blocks, self.workers.count)

    def _rows(self, planned: PlannedTable, where: sql.Composable) -> list[Selection]:
        """Return the rows of the table that meet a condition, range by range."""
        if not planned.table.has_xmin:
            return [Selection(planned.table.name.sql, where)]
        return [rows_in(one, where) for one in self.ranges(planned)]

    def _copy(
        self,
        planned: PlannedTable,
        staging: TableName,
        selections: Sequence[Selection],
        *,
        logged: bool = False,
    ) -> Copied:
        """Copy selections into a new staging table."""
        create_staging(
            self.target, staging, planned.table, locations=planned.locations, logged=logged
        )
        copy = self.copier(planned, staging)
        with planned.request.times.step("copy"):
            pieces = self.workers.copy(copy, selections)
        return Copied(sum(one.bytes for one in pieces), sum(one.rows for one in pieces))

    def copier(
        self, planned: PlannedTable, staging: TableName
    ) -> Callable[[Pair, Selection], Copied]:
        """Return what copies one selection into a staging table.

        Args:
            planned: The table.
            staging: The staging table.
        """
        table, source_name = planned.table, planned.request.source
        command = sql.SQL("copy {} ({}) from stdin (format {})").format(
            staging.sql,
            columns_sql([*table.names, *sync_columns(locations=planned.locations)]),
            copy_format(table),
        )
        name = str(planned.target)

        def on_bytes(size: int) -> None:
            self._progress.add(name, size)

        def copy(pair: Pair, selection: Selection) -> Copied:
            query = copy_out(table, self.source.snapshot, selection, locations=planned.locations)
            with translate_errors("source", source_name), pair.source.transaction():
                return copy_stream(pair.source, query, pair.target, command, source_name, on_bytes)

        return copy
