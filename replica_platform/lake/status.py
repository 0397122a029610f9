"""The state of a lake: its snapshots and files, and whether every file is there."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from replica_platform.core.reports import ReportFields, format_age, format_bytes
from replica_platform.lake.catalog import Catalog
from replica_platform.lake.definition import Lake
from replica_platform.lake.files import parquet_files

# A file without a commit may be one of a write that is not finished.
ORPHAN_AGE_S = 86_400
SHOWN = 3


@dataclass(frozen=True)
class LakeStatus(ReportFields):
    """The state of a lake.

    Attributes:
        lake: The schema of its catalog.
        exists: Whether it was made.
        newest: The newest snapshot; None where there is no lake.
        newest_at: When it was committed.
        oldest_at: When the oldest kept snapshot was committed.
        snapshots: How many snapshots are kept.
        tables: How many tables there are.
        files: How many data files the newest snapshot has.
        file_bytes: Their size.
        delete_files: How many files list deleted rows.
        scheduled: How many files of expired snapshots wait for their removal.
        listed: Whether the files were listed; else nothing is known of the next two.
        orphans: Files that are in no snapshot and old enough to belong to no write any more.
        missing: Files that a kept snapshot needs and that are not there.
    """

    lake: str
    exists: bool
    newest: int | None = None
    newest_at: datetime | None = None
    oldest_at: datetime | None = None
    snapshots: int = 0
    tables: int = 0
    files: int = 0
    file_bytes: int = 0
    delete_files: int = 0
    scheduled: int = 0
    listed: bool = False
    orphans: Sequence[str] = ()
    missing: Sequence[str] = ()

    @property
    def ok(self) -> bool:
        """Whether the lake is there and no file is missing."""
        return self.exists and not self.missing

    @property
    def age_s(self) -> float | None:
        """Seconds since the newest snapshot."""
        return (datetime.now(UTC) - self.newest_at).total_seconds() if self.newest_at else None

    @property
    def sentence(self) -> str:
        """What there is, and what is wrong."""
        if not self.exists:
            return (
                f"There is no lake in the schema {self.lake} of the catalog yet; its first write "
                "makes it (`LakeWriter`)."
            )
        if self.missing:
            some = ", ".join(self.missing[:SHOWN])
            return (
                f"The lake {self.lake} lacks {len(self.missing)} files, such as {some}; bring them "
                "back from a backup of its data. Readers keep the generations that they have."
            )
        found = (
            f"Snapshot {self.newest} is {format_age(self.age_s)} old, one of {self.snapshots}; "
            f"{self.tables} tables in {self.files:,} files ({format_bytes(self.file_bytes)})"
        )
        if self.orphans:
            return f"{found}; `replica lake maintain` removes {len(self.orphans):,} orphans."
        return f"{found}, none missing, no orphans." if self.listed else f"{found}."


def status(lake: Lake, *, orphan_age_s: float = ORPHAN_AGE_S, files: bool = True) -> LakeStatus:
    """Return the state of a lake; no file is read.

    Args:
        lake: The lake.
        orphan_age_s: The age in seconds from which a file without a snapshot is an orphan.
        files: Whether the files are listed, to find what is missing and what are orphans. Without
            it only the catalog is asked.

    Raises:
        CannotConnect: The catalog's server does not answer.
        LakeUnavailable: The catalog or the data does not answer.
    """
    with Catalog(lake) as catalog:
        if not catalog.exists():
            return LakeStatus(lake.schema, exists=False)
        newest = catalog.newest()
        snapshots, oldest_at, tables, data_files, file_bytes, delete_files, scheduled = (
            catalog.counts()
        )
        missing, orphans = _compared(catalog, orphan_age_s) if files else (set(), set())
    return LakeStatus(
        lake=lake.schema,
        exists=True,
        newest=newest.number,
        newest_at=newest.at,
        oldest_at=oldest_at,
        snapshots=snapshots,
        tables=tables,
        files=data_files,
        file_bytes=file_bytes,
        delete_files=delete_files,
        scheduled=scheduled,
        listed=files,
        orphans=tuple(sorted(orphans)),
        missing=tuple(sorted(missing)),
    )


def _compared(catalog: Catalog, orphan_age_s: float) -> tuple[set[str], set[str]]:
    """Return the files that are missing, and those that are orphans."""
    needed = catalog.files()
    there = parquet_files(catalog.lake)
    # What maintenance has removed meanwhile is no longer needed.
    missing = needed - there.keys()
    missing = missing & catalog.files() if missing else missing
    before = datetime.now(UTC) - timedelta(seconds=orphan_age_s)
    orphans = {path for path, written_at in there.items() if written_at <= before} - needed
    return missing, orphans - catalog.scheduled() if orphans else orphans
