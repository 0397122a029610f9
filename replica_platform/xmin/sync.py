"""The functions that sync: one table, or many at one snapshot. How that goes is `group`'s."""

from collections.abc import Callable, Sequence

from replica_platform.core.reports import Progress
from replica_platform.xmin.blocks.reading import BlockOptions
from replica_platform.xmin.group import Group
from replica_platform.xmin.integrity.parts import Proving
from replica_platform.xmin.lock import SyncOptions
from replica_platform.xmin.reports import (
    MAX_SNAPSHOT_S,
    GroupReport,
    SyncReport,
    TableSpec,
)


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
    blocks: BlockOptions | None = None,
    progress: Progress | None = None,
    max_snapshot_s: float = MAX_SNAPSHOT_S,
    max_source_connections: int | None = None,
    max_source_fraction: float = 1.0,
) -> SyncReport:
    """Bring one table of the target in step with its source.

    Args:
        source: The DSN of the source.
        target: The DSN of the target.
        table: The source table, `schema.table` as psql reads it.
        into: The schema in the target, as `into.table`; None for the same schema.
        mode: `auto`, `full`, `scan`, `blocks` or `timestamp`.
        timestamp_column: The column that mode `timestamp` reads by.
        timestamp_zone: The time zone of the writers, where `timestamp_column` has none.
        deletes: `auto` compares keys when the counts say that rows are gone, `keys` always;
            `blocks` finds them by changed blocks where those are read (as `auto` does), `never`
            keeps them.
        workers: How many pairs of connections copy side by side; None chooses.
        batch_bytes: How many bytes of heap a range holds; None chooses.
        key: The key columns, where the source has no key (views).
        max_delete_fraction: The largest fraction of a table of over 1,000 rows that may be deleted.
        take_over: Whether the target may be taken from another source table.
        prove: How much of the content this sync compares and repairs; None compares nothing.
        blocks: What a sync by blocks may cost the source.
        progress: Told the bytes done and expected.
        max_snapshot_s: How long a first copy holds a snapshot of the source, in seconds; a larger
            table is copied in slices.
        max_source_connections: How many sessions may read the source; None chooses.
        max_source_fraction: The largest fraction of the time that each of them may work; the sync
            pauses in between, and holds its snapshot the longer.

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
        source, target, True, workers, batch_bytes, max_delete_fraction, take_over, prove,
        progress, max_snapshot_s, blocks or BlockOptions(), max_source_connections,
        max_source_fraction,
    )  # fmt: skip
    group = Group(options, [spec])
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
    blocks: BlockOptions | None = None,
    progress: Progress | None = None,
    max_snapshot_s: float = MAX_SNAPSHOT_S,
    max_source_connections: int | None = None,
    max_source_fraction: float = 1.0,
    on_report: Callable[[SyncReport], None] | None = None,
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
        blocks: What a sync by blocks may cost the source.
        progress: Told the bytes done and expected of all tables together.
        max_snapshot_s: How long a first copy holds a snapshot of the source, in seconds; larger
            tables are copied in slices, and all are completed at one snapshot.
        max_source_connections: How many sessions may read the source; None chooses.
        max_source_fraction: The largest fraction of the time that each of them may work; the sync
            pauses in between, and holds its snapshot the longer.
        on_report: Told the report of each table as soon as it is committed, while others still
            wait; of an atomic group when all are. It is called in the sync's thread, which waits
            for it with the snapshot held. What it raises ends the sync; what is committed stays.

    Returns:
        Reports and failures by target table.

    Raises:
        CannotConnect: A server does not answer.
        SourceInterrupted: The source ended the session that holds the snapshot.
        TargetInterrupted: The target ended the session that holds the locks.
        NotFlushed: The source did not flush its WAL in time.
    """
    options = SyncOptions(
        source, target, atomic, workers, batch_bytes, max_delete_fraction, take_over, prove,
        progress, max_snapshot_s, blocks or BlockOptions(), max_source_connections,
        max_source_fraction, on_report,
    )  # fmt: skip
    return Group(options, tables).sync()
