"""What a sync is asked for and what it returns.

Reports of integrity, status, tuning and upserts stand beside the code that measures them.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

from replica_platform.core.reports import DoneReport, ReportFields
from replica_platform.xmin.names import TableName, parse_schema

# The source keeps all row versions for as long; a slice spends well under a second on starting.
MAX_SNAPSHOT_S = 60.0


@dataclass(frozen=True)
class Mask:
    """What the target holds in a column instead of the source's value.

    Attributes:
        kind: `null`; `hash`, the SHA-256 of salt and value in hexadecimal digits, where NULL stays
            NULL and equal values stay equal; `fixed`, one value for every row.
        value: Of `fixed`: the value, as text of the column's type.
        salt: Of `hash`: a secret, without which the values could be guessed; it is never stored.
    """

    kind: str
    value: str | None = None
    salt: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class TableSpec:
    """One table of a group, with the options that `sync` has for one table.

    Attributes:
        table: The source table, `schema.table` as psql reads it.
        into: The schema in the target; None for the same schema.
        mode: `auto`, `full`, `scan`, `blocks` or `timestamp`.
        timestamp_column: The column that mode `timestamp` reads by.
        deletes: `auto`, `keys`, `blocks` or `never`.
        key: The key columns, where the source has no key (views).
        timestamp_zone: The time zone of the writers, for a timestamp column without one.
        columns: The columns to copy; None for all.
        left_out: Columns that are not copied.
        masks: What the target holds instead of a column's values, by column.
        lenient: Whether `left_out` and `masks` may name columns that the table lacks, as those of
            many tables together do.
    """

    table: str
    into: str | None = None
    mode: str = "auto"
    timestamp_column: str | None = None
    deletes: str = "auto"
    key: tuple[str, ...] | None = None
    timestamp_zone: str | None = None
    columns: tuple[str, ...] | None = None
    left_out: tuple[str, ...] = ()
    masks: Mapping[str, Mask] = field(default_factory=dict, hash=False)
    lenient: bool = False

    @property
    def target_name(self) -> TableName:
        """The target table.

        Raises:
            BadTableName: `table` or `into` is not a name.
        """
        source = TableName.parse(self.table)
        return TableName(parse_schema(self.into) if self.into else source.schema, source.table)


class WriteMethod(StrEnum):
    """How the rows that were read get into the target table.

    Attributes:
        NOTHING: The source is unchanged.
        FIRST_COPY: The table that was loaded becomes the target table.
        MERGE: Changed rows are merged by key; deleted rows are found by counts and keys.
        BLOCKS: Changed rows are merged by key, or without one inserted; deleted rows are found by
            the blocks that held them.
        REPLACE: All rows were read; target rows that are not among them are deleted.
        REPAIR: The same within the key ranges whose hashes differ.
        MULTISET: All rows of a table without a key; surplus rows are deleted, lacking ones
            inserted.
    """

    NOTHING = "nothing"
    FIRST_COPY = "first copy"
    MERGE = "merge"
    BLOCKS = "blocks"
    REPLACE = "replace"
    REPAIR = "repair"
    MULTISET = "multiset"


@dataclass(frozen=True)
class ContentProof(DoneReport):
    """The part of a table's content that one sync has proven.

    Attributes:
        rows: How many rows were compared by all their columns.
        differing: How many of them differed in the target, or were absent there.
        repaired: How many rows were written to repair that.
        bytes: Bytes of the source's heap that were read.
        seconds: How long it took.
        whole: Whether the part ended a round: every row was proven since the round began.
    """

    rows: int
    differing: int
    repaired: int
    bytes: int
    seconds: float
    whole: bool

    @property
    def sentence(self) -> str:
        """What was compared, and what differed."""
        compared = f"The content of {self.rows:,} rows was compared in {self.seconds:.1f} s"
        if not self.differing:
            return f"{compared}: equal."
        return (
            f"{compared}: {self.differing:,} differed, though nothing had changed them in the "
            f"source; {self.repaired:,} were repaired. Another program writes to the target."
        )


@dataclass(frozen=True)
class SyncReport(DoneReport):
    """What one sync of one table did.

    Attributes:
        table: The source table.
        target_table: The target table.
        mode: How the source was read: `full`, `scan`, `blocks`, `timestamp` or `none` (unchanged).
        why: One sentence: why this mode.
        written_by: How the target was written, one of `WriteMethod`.
        rows_read: Rows that came from the source.
        rows_inserted: Rows new in the target.
        rows_updated: Rows changed in the target.
        rows_deleted: Rows deleted from the target.
        bytes: Bytes of COPY that came from the source.
        seconds: How long the sync of the table took.
        rows: Rows in the target after the sync.
        w: The xid of the new watermark: every transaction below it has been delivered.
        lag_xids: How many xids `w` lies behind the source's next one.
        columns: The data columns, each with its type.
        notes: Further findings: columns added or kept, the transaction that holds W back.
        seconds_by_step: How long each step took.
        snapshots: How many snapshots of the source were taken, for all tables of the group.
        snapshot_s: Seconds that the longest one was held, and with it the source's horizon.
        source_connections: How many sessions read the source at the same time, at most.
        source_busy_s: Seconds that they worked on its rows, added up, for all tables of the group.
        proof: The part of the content that was proven; None where none was due.
        blocks_read: By blocks: how many heap blocks were read.
        blocks: By blocks: how many heap blocks the table has.
    """

    table: str
    target_table: str
    mode: str
    why: str
    written_by: str = WriteMethod.NOTHING
    rows_read: int = 0
    rows_inserted: int = 0
    rows_updated: int = 0
    rows_deleted: int = 0
    bytes: int = 0
    seconds: float = 0.0
    rows: int | None = None
    w: int | None = None
    lag_xids: int = 0
    columns: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    seconds_by_step: Mapping[str, float] = field(default_factory=dict)
    snapshots: int = 1
    snapshot_s: float = 0.0
    source_connections: int = 1
    source_busy_s: float = 0.0
    proof: ContentProof | None = None
    blocks_read: int = 0
    blocks: int = 0

    @property
    def changed(self) -> bool:
        """Whether the sync changed a row of the target."""
        return bool(self.rows_inserted or self.rows_updated or self.rows_deleted)

    @property
    def sentence(self) -> str:
        """What was done."""
        if self.mode == "none" and not self.changed:
            return f"{self.target_table} is unchanged: {self.why}"
        return (
            f"{self.target_table}: {self.rows_inserted:,} rows inserted, {self.rows_updated:,} "
            f"updated, {self.rows_deleted:,} deleted in {self.seconds:.1f} s ({self.mode})."
        )


@dataclass(frozen=True)
class GroupReport(ReportFields):
    """What one sync of a group did.

    Attributes:
        reports: A report for each table that was synced, by target table.
        failures: A sentence for each table that failed, by target table (`schema.table`), since
            two source tables may have one name.
        seconds: How long the sync took.
        atomic: Whether all tables were committed together or not at all.
        checkpoints: How many checkpoints were asked for on the source, for WAL summaries.
        summary_wait_s: How long was waited for WAL summaries.
        syncs: How many syncs it adds up: more than one of a group that was watched.
        lag_p50_s: Of a group that was watched: half of the changes were visible within this time
            after their commit.
        lag_p99_s: The same of 99 in 100.
    """

    reports: Mapping[str, SyncReport]
    failures: Mapping[str, str]
    seconds: float
    atomic: bool = False
    checkpoints: int = 0
    summary_wait_s: float = 0.0
    syncs: int = 1
    lag_p50_s: float | None = None
    lag_p99_s: float | None = None

    @property
    def ok(self) -> bool:
        """Whether no table failed."""
        return not self.failures

    @property
    def sentence(self) -> str:
        """How many tables were synced, and which failed and why."""
        changed = sum(report.changed for report in self.reports.values())
        done = f"{len(self.reports)} tables synced in {self.seconds:.1f} s, {changed} changed."
        failed = [f"{table} failed: {why}" for table, why in self.failures.items()]
        return " ".join([done, *failed])


class StepTimes:
    """Seconds that the sync of one table takes, in all and by step."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.by_step: dict[str, float] = {}

    @property
    def total(self) -> float:
        """Seconds since the sync of the table began."""
        return time.monotonic() - self._began

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Add the duration of the block to a step."""
        began = time.monotonic()
        yield
        self.by_step[name] = self.by_step.get(name, 0.0) + time.monotonic() - began
