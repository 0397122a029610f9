"""Verify a backup: read it from the disk again and compare it with its manifest."""

from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from replica_platform.backup.blocks.contents import content_of
from replica_platform.backup.child.messages import FileCheck
from replica_platform.backup.child.process import check_file
from replica_platform.backup.errors import ChildFailed, Unreadable
from replica_platform.backup.folder import folder_lock
from replica_platform.backup.manifest import Backup, about_unchecked, manifest_of, read_manifest
from replica_platform.blocks.errors import BlockStoreDamaged
from replica_platform.core.reports import Progress, ReportFields


@dataclass(frozen=True)
class BackupVerification(ReportFields):
    """What one reading of a backup found.

    Attributes:
        file: The backup.
        ok: Whether it is what its manifest says.
        sentence: The same in words, with every problem.
        problems: What differs from the manifest, each as half a sentence.
        checked_at: When it was read, in UTC.
        bytes: Size of the file; 0 when it could not be read.
        sha256: Hexadecimal digest of its bytes; empty when it could not be read.
        integrity: What SQLite's integrity_check said; empty when it could not be read.
        unchecked: Why SQLite could not check all of it; None if it did.
        tables: Rows of each table.
        seconds: How long the reading took.
    """

    file: Path
    ok: bool
    sentence: str
    problems: list[str]
    checked_at: datetime
    bytes: int
    sha256: str
    integrity: str
    unchecked: str | None
    tables: dict[str, int | None]
    seconds: float


def verify(backup: Path, *, progress: Progress | None = None) -> BackupVerification:
    """Read a backup again: digest, integrity check, rows of each table, against its manifest.

    The outcome is recorded in the manifest if the folder can be written; retention and `status`
    go by it.

    Args:
        backup: The backup's file.
        progress: Called with the bytes that were read.

    Returns:
        The problems found; `ok` when there are none.

    Raises:
        Unreadable: There is no manifest to compare with.
        Busy: Another process works on these backups.
        NoRoom: The folder's disk has no space to assemble it from blocks.
        KeyMissing: It is encrypted with a key that the environment does not have.
        BlockStoreUnavailable: The block store refused a request.
    """
    known = require_manifest(backup.absolute())
    outcome = compare_with_manifest(known, progress)
    with suppress(OSError), folder_lock(known.file.parent, known.name):  # read-only media
        record_outcome(known, outcome)
    return outcome


def require_manifest(file: Path) -> Backup:
    """Return the backup that a file's manifest describes.

    Raises:
        Unreadable: The file has no readable manifest.
    """
    known = read_manifest(manifest_of(file))
    if known is None:
        raise Unreadable(
            f"{file} has no readable manifest ({manifest_of(file).name}), so nothing is known of "
            "what it should hold; choose a backup that `replica backup --stats-only` counts, or "
            "take a new one."
        )
    return known


def compare_with_manifest(known: Backup, progress: Progress | None = None) -> BackupVerification:
    """Read a backup and compare it with its manifest; write nothing.

    One that is kept as blocks is assembled beside its manifest for that.
    """
    try:
        with content_of(known, known.file.parent, progress) as content:
            return compare_content(known, content, progress)
    except BlockStoreDamaged as error:
        return _outcome(known, None, [str(error).rstrip(".")])


def compare_content(
    known: Backup, content: Path, progress: Progress | None = None
) -> BackupVerification:
    """Read the file with a backup's content and compare it with the manifest; write nothing."""
    check = None
    try:
        check = check_file(content, drop_cache=True, progress=progress)
    except (Unreadable, ChildFailed) as error:  # a bad sector ends the child by SIGBUS
        problems = [str(error).rstrip(".")]
    else:
        problems = _differences(known, check)
    return _outcome(known, check, problems)


def _outcome(known: Backup, check: FileCheck | None, problems: list[str]) -> BackupVerification:
    tables = check.tables if check else {}
    return BackupVerification(
        file=known.file,
        ok=not problems,
        sentence=(
            f"{known.file.name} cannot be relied on: {'; '.join(problems)}. Take a new backup."
            if problems
            else f"{known.file.name} is sound: {len(tables)} tables, {known.rows:,} rows."
            + about_unchecked(check.unchecked if check else None)
        ),
        problems=problems,
        checked_at=datetime.now(UTC),
        bytes=check.bytes if check else 0,
        sha256=check.sha256 if check else "",
        integrity=check.integrity if check else "",
        unchecked=check.unchecked if check else None,
        tables=tables,
        seconds=check.check_s if check else 0.0,
    )


def record_outcome(known: Backup, outcome: BackupVerification) -> None:
    """Write the outcome into the manifest as it is now, if the backup still has one.

    The caller holds the folder's lock. A drill may have recorded its own outcome since `known` was
    read, and that stays.
    """
    if now := read_manifest(known.manifest):
        damage = "; ".join(outcome.problems) or None
        replace(now, verified_at=outcome.checked_at, damage=damage).save()


def _differences(known: Backup, check: FileCheck) -> list[str]:
    found = []
    if check.bytes != known.bytes:
        found.append(f"it has {check.bytes:,} bytes where the manifest says {known.bytes:,}")
    elif check.sha256 != known.sha256:
        found.append("its content is not what was written (SHA-256 differs)")
    if not check.is_sound:
        found.append(f"SQLite finds it damaged ({check.integrity})")
    elif check.tables != known.tables:
        found.append("its tables or their rows are not those of the manifest")
    wal = known.file.with_name(known.file.name + "-wal")
    if wal.exists() and wal.stat().st_size:
        found.append(f"a program wrote to it ({wal.name} lies beside it)")
    return found
