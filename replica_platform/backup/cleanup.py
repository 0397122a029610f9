"""Delete backups that nobody needs, and never one that somebody might.

A backup goes only when it is older than the days to keep AND enough newer sound ones are kept
AND a newer one has just been read from the disk and found sound.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from replica_platform.backup.folder import at_work, backups
from replica_platform.backup.manifest import Backup, in_utc
from replica_platform.backup.verify import note, reread
from replica_platform.core.errors import TerminalError
from replica_platform.core.files import fsync_dir


def cleanup(
    to: Path, name: str, *, keep_days: float, keep_count: int, now: datetime | None = None
) -> list[Path]:
    """Delete the backups of `name` that retention allows to; return the deleted files.

    Times come from the manifests. Each source's backups are counted by themselves, should two
    databases of the same name share the folder. Killed half-way, the next call finishes it.
    """
    if keep_days < 0 or keep_count < 1:
        raise TerminalError(
            f"Keeping {keep_count} backups for {keep_days} days would leave none; "
            "give --keep-count 1 or more and --keep-days 0 or more."
        )
    to = to.absolute()
    before = in_utc(now or datetime.now(UTC)) - timedelta(days=keep_days)
    deleted: list[Path] = []
    with at_work(to, name):
        listed = backups(to, name)
        for source in sorted({backup.source for backup in listed}):
            of_source = [backup for backup in listed if backup.source == source]
            expendable = _expendable(of_source, before, keep_count)
            vouching = _first_sound(of_source) if expendable else None
            # Oldest first, so that a kill half-way leaves a row of backups without a gap.
            for backup in reversed(expendable):
                if vouching and backup.taken_at < vouching.taken_at:
                    _delete(backup)
                    deleted.append(backup.file)
    return deleted


def _expendable(newest_first: list[Backup], before: datetime, keep_count: int) -> list[Backup]:
    """Older than the limit, with `keep_count` newer sound ones beside it."""
    expendable, sound_and_newer = [], 0
    for backup in newest_first:
        if backup.taken_at < before and sound_and_newer >= keep_count:
            expendable.append(backup)
        sound_and_newer += backup.sound
    return expendable


def _first_sound(newest_first: list[Backup]) -> Backup | None:
    """The newest backup that a reading from the disk, now, finds sound."""
    for backup in newest_first:
        outcome = reread(backup)
        note(backup, outcome)
        if outcome.ok:
            return backup
    return None


def _delete(backup: Backup) -> None:
    # The manifest last: it holds the time by which an interrupted run is finished.
    backup.file.unlink(missing_ok=True)
    fsync_dir(backup.file.parent)
    backup.manifest.unlink(missing_ok=True)
    fsync_dir(backup.file.parent)
