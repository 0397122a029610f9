"""Is this backup still what its manifest says? Read from the disk again, never believed."""

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from replica_platform.backup.child.process import in_child
from replica_platform.backup.errors import ChildFailed, Unreadable
from replica_platform.backup.folder import at_work
from replica_platform.backup.manifest import Backup, manifest_of, read_manifest
from replica_platform.core.reports import Progress


@dataclass(frozen=True)
class Verification:
    """What one reading of a backup found."""

    file: Path
    ok: bool
    sentence: str
    problems: list[str]
    checked_at: datetime
    bytes: int
    sha256: str
    integrity: str
    tables: dict[str, int | None]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The same in plain JSON types."""
        return {**asdict(self), "file": str(self.file), "checked_at": self.checked_at.isoformat()}


def verify(backup: Path, *, progress: Progress | None = None) -> Verification:
    """Read a backup again: digest, integrity check, rows of each table, against its manifest.

    The outcome is noted in the manifest where the folder can be written; retention and
    `stats` go by it. Raises `Unreadable` where there is no manifest to compare with.
    """
    backup = backup.absolute()
    known = read_manifest(manifest_of(backup))
    if known is None:
        raise Unreadable(
            f"{backup} has no readable manifest ({manifest_of(backup).name}), so nothing is "
            "known of what it should hold; take a new backup."
        )
    outcome = reread(known, progress)
    try:
        with at_work(backup.parent, known.name):
            note(known, outcome)
    except OSError:
        pass  # read-only media: the answer stands without a note
    return outcome


def reread(known: Backup, progress: Progress | None = None) -> Verification:
    """The reading itself, which writes nothing."""
    problems = []
    try:
        facts = in_child("examine", progress, file=str(known.file), drop_cache=True)
    except (Unreadable, ChildFailed) as error:  # a bad sector ends the child by SIGBUS
        facts = {"bytes": 0, "sha256": "", "integrity": "", "tables": {}, "check_s": 0.0}
        problems.append(str(error).rstrip("."))
    else:
        problems += _differences(known, facts)
    count = sum(rows or 0 for rows in facts["tables"].values())
    sentence = (
        f"{known.file.name} cannot be relied on: {'; '.join(problems)}. Take a new backup."
        if problems
        else f"{known.file.name} is sound: {len(known.tables)} tables, {count:,} rows."
    )
    return Verification(
        file=known.file,
        ok=not problems,
        sentence=sentence,
        problems=problems,
        checked_at=datetime.now(UTC),
        bytes=facts["bytes"],
        sha256=facts["sha256"],
        integrity=facts["integrity"],
        tables=facts["tables"],
        seconds=facts["check_s"],
    )


def note(known: Backup, outcome: Verification) -> None:
    """Write the outcome into the manifest, if the backup is still there."""
    if known.manifest.exists():
        damage = "; ".join(outcome.problems) or None
        replace(known, verified_at=outcome.checked_at, damage=damage).save()


def _differences(known: Backup, facts: dict[str, Any]) -> list[str]:
    found = []
    if facts["bytes"] != known.bytes:
        found.append(f"it has {facts['bytes']:,} bytes where the manifest says {known.bytes:,}")
    elif facts["sha256"] != known.sha256:
        found.append("its content is not what was written (SHA-256 differs)")
    if facts["integrity"] != "ok":
        found.append(f"SQLite finds it damaged ({facts['integrity']})")
    elif facts["tables"] != known.tables:
        found.append("its tables or their rows are not those of the manifest")
    wal = known.file.with_name(known.file.name + "-wal")
    if wal.exists() and wal.stat().st_size:
        found.append(f"somebody wrote to it ({wal.name} lies beside it)")
    return found
