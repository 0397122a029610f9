"""The status of a folder of backups: how many, how old, and whether each could be restored."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from replica_platform.backup.folder import backups
from replica_platform.backup.manifest import Backup, in_utc
from replica_platform.core import disk_space
from replica_platform.core.reports import ReportFields, format_age, format_bytes


@dataclass(frozen=True)
class FolderStatus(ReportFields):
    """The backups of one name in a folder, or of all names.

    Attributes:
        count: Backups with a readable manifest.
        bytes: Size of those without a known problem; of blocks, what was sent for them.
        newest_at: When the newest backup without a known problem was taken; one that is dated in
            the future does not count.
        newest_age_s: Its age in seconds.
        oldest_at: When the oldest backup without a known problem was taken.
        verified: Backups of the right size whose last verification found no damage.
        newest_verified: The newest backup without a known problem.
        newest_verified_at: When it was last read and found sound.
        free_bytes: Free space on the folder's disk, for this user.
        unlisted: Database files without a readable manifest; nothing is known of them.
        ok: Whether there are backups, none has a known problem, and one is not of the future.
        sentence: The same in words, and what to do next.
    """

    count: int
    bytes: int
    newest_at: datetime | None
    newest_age_s: float | None
    oldest_at: datetime | None
    verified: int
    newest_verified: Path | None
    newest_verified_at: datetime | None
    free_bytes: int
    unlisted: int
    ok: bool
    sentence: str


def status(to: Path, name: str | None = None, *, now: datetime | None = None) -> FolderStatus:
    """Count the backups in a folder and say whether they could be restored today.

    No backup is read; `verify` does that.

    Args:
        to: The folder of backups.
        name: The stem of the source's file name; all sources if left out.
        now: The moment from which ages are counted; the clock's if left out.

    Returns:
        The counts, sizes in bytes, ages in seconds, and a sentence.
    """
    folder = to.absolute()
    listed = backups(folder, name)
    sound = [backup for backup in listed if backup.ok]
    moment = in_utc(now or datetime.now(UTC))
    future = [backup for backup in sound if backup.is_in_future(moment)]
    newest = next((backup for backup in sound if backup not in future), None)
    newest_at = newest.taken_at if newest else None
    age_s = max((moment - newest_at).total_seconds(), 0.0) if newest_at else None
    unlisted = _without_manifest(folder, name)
    sentence = _about_backups(listed, f"{f'of {name} ' if name else ''}in {folder}", age_s)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free, used = disk_space.free_bytes(existing), sum(backup.used_bytes for backup in sound)
    if newest:
        verified_age_s = max((moment - newest.verified_at).total_seconds(), 0.0)
        sentence += f" {newest.file.name} is the newest verified, {format_age(verified_age_s)} ago."
    used_text = f"They use {format_bytes(used)}; " if listed else ""
    sentence += f" {used_text}{format_bytes(free)} are free."
    if newest and newest.unchecked:
        sentence += f" {newest.file.name} was copied, not fully checkable: {newest.unchecked}."
    if future:
        sentence += f" {len(future)} dated in the future ({future[0].file.name}): check the clock."
    if unlisted:
        sentence += f" {len(unlisted)} files have no manifest ({unlisted[0].name})."
    return FolderStatus(
        count=len(listed),
        bytes=used,
        newest_at=newest_at,
        newest_age_s=age_s,
        oldest_at=sound[-1].taken_at if sound else None,
        verified=len(sound),
        newest_verified=newest.file if newest else None,
        newest_verified_at=newest.verified_at if newest else None,
        free_bytes=free,
        unlisted=len(unlisted),
        ok=newest_at is not None and len(sound) == len(listed),
        sentence=sentence,
    )


def _without_manifest(folder: Path, name: str | None) -> list[Path]:
    listed = {backup.file.name for backup in backups(folder)}
    return [
        file
        for file in sorted(folder.glob("*_backup_*.db"))
        if file.name not in listed and (name is None or file.name.startswith(f"{name}_backup_"))
    ]


def _about_backups(listed: list[Backup], where: str, age_s: float | None) -> str:
    if not listed:
        return f"No backup {where}; run `replica backup` to take one."
    unsound = [backup for backup in listed if not backup.ok]
    if unsound:
        return (
            f"{len(unsound)} of {len(listed)} backups {where} cannot be relied on: "
            f"{unsound[0].file.name}: {unsound[0].problem}. Take a new one, then delete it."
        )
    newest = "" if age_s is None else f", the newest {format_age(age_s)} old"
    return f"{len(listed)} backups {where}{newest}."
