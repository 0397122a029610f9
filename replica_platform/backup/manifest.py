"""The manifest of a backup: what it holds, how it is written and read.

The manifest (`<backup>.json`, beside the file) makes a file a backup: it is written last, holds
the time and the checksum, and whatever lists or deletes backups goes by it.
"""

import json
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from replica_platform.core.files import write_atomically
from replica_platform.core.reports import ReportFields, format_bytes, plain

SUFFIX = ".json"
# Clocks are set by a few seconds at a time; a backup dated later than this has a wrong date.
CLOCK_TOLERANCE = timedelta(hours=1)


@dataclass(frozen=True)
class Backup(ReportFields):
    """A verified copy of a SQLite file, and what was in it when it was taken.

    Attributes:
        file: The backup.
        name: The stem of the file that was copied.
        source: The absolute path that was copied.
        taken_at: When the backup was taken, in UTC.
        bytes: Size of the backup.
        sha256: Hexadecimal digest of its bytes.
        md5: The same by MD5, for tools that know no other; empty where it was not asked for.
        pages: Pages of the database.
        page_size: Bytes of a page.
        tables: Rows of each table.
        newest: The newest value of each column that holds a time: `{"table.column": value}`.
        integrity: What SQLite's integrity_check said of the copy; `ok` unless `unchecked` is set.
        journal_mode: The source's journal mode; a restore brings it back.
        checkpoint: (busy, WAL frames, moved frames) of the checkpoint before it; None if skipped.
        copy_s: How long the copying took, in seconds.
        check_s: How long the checks of the copy took, in seconds.
        seconds: How long the whole backup took.
        sqlite_version: The SQLite that copied it.
        tool_version: The version of this package.
        verified_at: When the backup was last read and compared with this manifest.
        damage: What the last verification found wrong; None if nothing.
        unchecked: Why SQLite could not check all of the copy; None if it did.
        pending: Rows that an outbox held as undelivered; None for any other file.
        drilled_at: When the backup was last restored as a drill; None if never.
        drill_restore_s: How long that restore took, in seconds; None if it failed.
        drill_problem: What the drill found wrong; None if nothing.
        blocks: The block store that has the content; None where the backup is a file.
        key_id: Names the key that encrypts the blocks; None if they are in clear.
        stored_bytes: Bytes that were sent to the block store for this backup, compressed: the
            rest was there. None where the backup is a file.
    """

    file: Path
    name: str
    source: str
    taken_at: datetime
    bytes: int
    sha256: str
    md5: str
    pages: int
    page_size: int
    tables: dict[str, int | None]
    newest: dict[str, str | int | float]
    integrity: str
    journal_mode: str
    checkpoint: list[int] | None
    copy_s: float
    check_s: float
    seconds: float
    sqlite_version: str
    tool_version: str
    verified_at: datetime
    damage: str | None = None
    unchecked: str | None = None
    pending: int | None = None
    drilled_at: datetime | None = None
    drill_restore_s: float | None = None
    drill_problem: str | None = None
    blocks: str | None = None
    key_id: str | None = None
    stored_bytes: int | None = None

    @property
    def manifest(self) -> Path:
        """The JSON file beside the backup."""
        return manifest_of(self.file)

    @property
    def rows(self) -> int:
        """The rows of all tables together."""
        return sum(count or 0 for count in self.tables.values())

    @property
    def problem(self) -> str | None:
        """What is known to be wrong with the backup, from one `stat` and the last verification.

        Of one that is kept as blocks, only the verification says something.
        """
        if self.damage:
            return self.damage
        if self.blocks:
            return None  # no request for each backup that is listed
        try:
            size = self.file.stat().st_size
        except OSError:
            return "its file is gone"
        return None if size == self.bytes else "its size is wrong"

    @property
    def ok(self) -> bool:
        """Whether no problem is known; `verify` reads the whole file."""
        return self.problem is None

    @property
    def sentence(self) -> str:
        """What the backup holds, or what is wrong with it."""
        if self.problem:
            return f"{self.file.name} cannot be relied on: {self.problem}. Take a new backup."
        return (
            f"{self.file} holds {len(self.tables)} tables, {self.rows:,} rows in "
            f"{format_bytes(self.bytes)}, as of {self.taken_at:%Y-%m-%d %H:%M:%S} UTC."
            f"{self._about_blocks()}{self._about_pending()}{about_unchecked(self.unchecked)}"
        )

    @property
    def used_bytes(self) -> int:
        """The room that the backup took: its size, or what was sent for it."""
        return self.bytes if self.stored_bytes is None else self.stored_bytes

    def _about_blocks(self) -> str:
        if self.blocks is None:
            return ""
        encrypted = "encrypted, " if self.key_id else ""
        return (
            f" It is kept as blocks in {self.blocks}, {encrypted}of which "
            f"{format_bytes(self.used_bytes)} were new."
        )

    def _about_pending(self) -> str:
        if self.pending is None:
            return ""
        return f" It is an outbox; {self.pending:,} rows were not delivered yet."

    def is_in_future(self, now: datetime) -> bool:
        """Return whether a wrong clock must have dated the backup, or `now`."""
        return self.taken_at > now + CLOCK_TOLERANCE

    def manifest_text(self) -> str:
        """Return the manifest's content: every field, the file without its folder.

        Without the folder, a backup and its manifest may be moved together.
        """
        values = {field.name: plain(getattr(self, field.name)) for field in fields(self)}
        return json.dumps({**values, "file": self.file.name}, indent=2) + "\n"

    def save(self) -> None:
        """Replace the manifest atomically."""
        write_atomically(self.manifest, self.manifest_text().encode())


def about_unchecked(reason: str | None) -> str:
    """Return a sentence for a file that SQLite could not check in full, with a space before it."""
    return f" It was copied, not fully checkable: {reason}." if reason else ""


def manifest_of(file: Path) -> Path:
    """Return the path of a backup file's manifest."""
    return file.with_name(file.name + SUFFIX)


def read_manifest(path: Path) -> Backup | None:
    """Return the backup that a manifest describes; None if it is no manifest, or damaged."""
    backup = parse_manifest(path)
    return backup if backup and backup.manifest == path else None


def parse_manifest(path: Path) -> Backup | None:
    """Return the same for a manifest that may still have a temporary name."""
    try:
        return parse_fields(json.loads(path.read_bytes()), path.parent)
    except (OSError, ValueError):
        return None


def parse_fields(fields: dict[str, Any], folder: Path) -> Backup | None:
    """Return the backup that the fields of a manifest describe; None if they are not its fields."""
    try:
        content = {**fields, "file": (folder / "_").with_name(fields["file"])}
        for key in ("taken_at", "verified_at", "drilled_at"):
            if content.get(key) is not None:
                content[key] = datetime.fromisoformat(content[key]).astimezone(UTC)
        return Backup(**content)
    except (ValueError, TypeError, KeyError):
        return None


def in_utc(moment: datetime) -> datetime:
    """Return the moment in UTC; one without a time zone is taken to be in UTC already."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
