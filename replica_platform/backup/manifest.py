"""One backup as its manifest tells it, and the manifest's way to the disk and back.

The manifest (`<backup>.json`, beside the file) is what makes a file a backup: it is written
last, it holds the time and the checksum, and everything that lists or deletes goes by it.
"""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from replica_platform.core.files import write_atomically

SUFFIX = ".json"


@dataclass(frozen=True)
class Backup:
    """A verified copy of one SQLite file, and what was seen in it when it was taken."""

    file: Path
    name: str
    source: str
    """The absolute path that was copied, or the `ssh://` address."""
    taken_at: datetime
    bytes: int
    sha256: str
    md5: str
    pages: int
    page_size: int
    tables: dict[str, int | None]
    """Rows of each table."""
    newest: dict[str, str | int | float]
    """The newest value of each column that holds a time: `{"table.column": value}`."""
    integrity: str
    """What SQLite's integrity_check said of the copy: `ok`."""
    journal_mode: str
    """The source's; a restore brings it back (the copy itself is a single quiet file)."""
    checkpoint: list[int] | None
    """What the checkpoint before it answered (busy, WAL frames, moved); None when skipped."""
    copy_s: float
    check_s: float
    seconds: float
    sqlite_version: str
    tool_version: str
    verified_at: datetime
    damage: str | None = None
    """What the latest verification found wrong; None when it found nothing."""

    @property
    def manifest(self) -> Path:
        """The JSON file beside the backup."""
        return manifest_of(self.file)

    @property
    def rows(self) -> int:
        """All tables' rows together."""
        return sum(count or 0 for count in self.tables.values())

    @property
    def sound(self) -> bool:
        """Nothing is known against it, at the price of one `stat`; `verify` reads it all."""
        try:
            return self.damage is None and self.file.stat().st_size == self.bytes
        except OSError:
            return False

    def as_dict(self) -> dict[str, Any]:
        """The same in plain JSON types."""
        times = {"taken_at": self.taken_at.isoformat(), "verified_at": self.verified_at.isoformat()}
        return {**asdict(self), "file": str(self.file), **times}

    def manifest_text(self) -> str:
        """What stands in the manifest: all but the folder, so that the pair may be moved."""
        content = {**self.as_dict(), "file": self.file.name}
        return json.dumps(content, indent=2) + "\n"

    def save(self) -> None:
        """Write the manifest anew, wholly or not at all."""
        write_atomically(self.manifest, self.manifest_text().encode())


def manifest_of(file: Path) -> Path:
    """Where the manifest of a backup file lies."""
    return file.with_name(file.name + SUFFIX)


def read_manifest(path: Path) -> Backup | None:
    """The backup that a manifest tells of; None when it is not one (or is damaged)."""
    backup = parse_manifest(path)
    return backup if backup and backup.manifest == path else None


def parse_manifest(path: Path) -> Backup | None:
    """The same of a manifest that may not have its final name yet."""
    try:
        content = json.loads(path.read_bytes())
        content["file"] = path.with_name(content["file"])
        for key in ("taken_at", "verified_at"):
            content[key] = datetime.fromisoformat(content[key]).astimezone(UTC)
        return Backup(**content)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def in_utc(moment: datetime) -> datetime:
    """The same moment in UTC; one without a zone is taken to be in UTC already."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
