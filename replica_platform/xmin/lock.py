"""The first step of a sync: check what is asked, lock each target table, read its watermark.

Locked before the watermark is read, so that a sync that waited for another one reads the newest.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psycopg

from replica_platform.core.errors import PlatformError
from replica_platform.core.reports import Progress
from replica_platform.xmin.blocks.reading import BlockOptions
from replica_platform.xmin.errors import LOCK_TIMEOUT_S, CannotSync, TableBusy
from replica_platform.xmin.integrity.parts import Proving
from replica_platform.xmin.names import TableName
from replica_platform.xmin.reports import MAX_SNAPSHOT_S, StepTimes, SyncReport, TableSpec
from replica_platform.xmin.target import watermark as watermarks
from replica_platform.xmin.target.schemas import SCHEMA
from replica_platform.xmin.target.tables import TargetTable, inspect
from replica_platform.xmin.target.watermark import Watermark

DELETES = ("auto", "keys", "blocks", "never")


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
        max_snapshot_s: How long a first copy holds a snapshot of the source, in seconds.
        blocks: What a sync by blocks may cost the source.
        max_source_connections: How many sessions may read the source; None chooses.
        max_source_fraction: The largest fraction of the time that each of them may work.
        on_report: Told the report of each table as soon as it is committed.
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
    max_snapshot_s: float = MAX_SNAPSHOT_S
    blocks: BlockOptions = field(default_factory=BlockOptions)
    max_source_connections: int | None = None
    max_source_fraction: float = 1.0
    on_report: Callable[[SyncReport], None] | None = None

    def __post_init__(self) -> None:
        """Check the limits.

        Raises:
            CannotSync: A limit is not above zero.
        """
        if not self.max_snapshot_s > 0:
            raise CannotSync(f"max_snapshot_s is above 0 seconds, not {self.max_snapshot_s}.")
        if not 0 < self.max_source_fraction <= 1:
            raise CannotSync(
                f"max_source_fraction is above 0 and at most 1, not {self.max_source_fraction}."
            )
        if self.max_source_connections is not None and self.max_source_connections < 1:
            raise CannotSync(
                f"max_source_connections is at least 1, not {self.max_source_connections}."
            )


@dataclass(frozen=True)
class SyncRequest:
    """One table to sync, its names read and its options checked.

    Attributes:
        spec: What was asked for.
        source: The source table.
        target: The target table.
        doubt: Why the target is not believed to hold what its watermark says; empty where it is.
        take_over: Whether the target may be taken from another source table.
        times: How long the sync of the table takes.
    """

    spec: TableSpec
    source: TableName
    target: TableName
    doubt: str = ""
    take_over: bool = False
    times: StepTimes = field(default_factory=StepTimes, compare=False)

    @classmethod
    def of(cls, spec: TableSpec, doubt: str = "", *, take_over: bool = False) -> "SyncRequest":
        """Read and check a spec.

        Raises:
            BadTableName: A name of the spec is not a name.
            CannotSync: An option of the spec does not exist, or the target is the sync's schema.
        """
        if spec.deletes not in DELETES:
            raise CannotSync(f"deletes is one of {', '.join(DELETES)}, not {spec.deletes!r}.")
        target = spec.target_name
        if target.schema == SCHEMA:
            raise CannotSync(
                f"The schema {SCHEMA} of the target holds the sync's own tables; let {spec.table} "
                "arrive in another one with `into`."
            )
        return cls(spec, TableName.parse(spec.table), target, doubt, take_over)


@dataclass(frozen=True)
class LockedTable:
    """A target table that no other sync writes to until this one ends.

    Attributes:
        request: What was asked for.
        found: The target table; None where there is none.
        owner: The watermark that names the owner of the target table, even if the
            table was created again since; None where there is no table.
        watermark: The watermark that the sync continues from.
    """

    request: SyncRequest
    found: TargetTable | None
    owner: Watermark | None
    watermark: Watermark | None

    @property
    def target(self) -> TableName:
        """The target table's name."""
        return self.request.target


def target_of(spec: TableSpec) -> str:
    """Return the target table of a spec, by which all that is reported of it goes."""
    try:
        return str(spec.target_name)
    except PlatformError:
        return spec.table


def shared_targets(tables: Sequence[TableSpec]) -> dict[str, PlatformError]:
    """Return an error for each target table that several specs would arrive in."""
    by_target: dict[str, list[str]] = {}
    for spec in tables:
        by_target.setdefault(target_of(spec), []).append(spec.table)
    return {
        target: CannotSync(
            f"{' and '.join(names)} both arrive as {target}; "
            "list one of them, or let them arrive in different schemas with `into`."
        )
        for target, names in by_target.items()
        if len(names) > 1
    }


def lock_tables(
    target: psycopg.Connection, requests: Sequence[SyncRequest]
) -> tuple[list[LockedTable], dict[str, PlatformError]]:
    """Lock the target tables and read their watermarks; return also those that stay busy."""
    busy = _lock(target, requests)
    locked = [request for request in requests if str(request.target) not in busy]
    names = [request.target for request in locked]
    marks = watermarks.read(target, names)
    found = inspect(target, names)
    return [
        _locked(request, found.get(request.target), marks.get(request.target)) for request in locked
    ], busy


def _lock(target: psycopg.Connection, requests: Sequence[SyncRequest]) -> dict[str, PlatformError]:
    if watermarks.lock_all(target, [request.target for request in requests]):
        return {}
    busy: dict[str, PlatformError] = {}
    until = time.monotonic() + LOCK_TIMEOUT_S
    # In one order, so that two groups never wait for each other.
    for name in sorted(request.target for request in requests):
        while not watermarks.lock(target, name):
            if time.monotonic() > until:
                busy[str(name)] = TableBusy(
                    f"Another sync of {name} is running; try again when it is done."
                )
                break
            time.sleep(0.05)
    return busy


def _locked(
    request: SyncRequest, found: TargetTable | None, watermark: Watermark | None
) -> LockedTable:
    owner = watermark if found else None
    # A table that was dropped and created again is not the one that the watermark describes.
    same = owner is not None and found is not None and owner.target_oid == found.oid
    return LockedTable(request, found, owner, owner if same else None)
