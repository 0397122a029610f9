"""Delete backups that retention no longer asks for, never the last sound one.

A backup is deleted only when it is older than the days to keep AND enough newer sound ones are
kept AND a newer one has just been read from the disk and found sound.

The clock may be wrong. A backup that is dated in the future is neither deleted nor counted. A clock
that jumps ahead makes one long interval without a backup: the age of a backup is the sum of the
intervals since, each at most twice as long as the second longest.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

from replica_platform.backup.blocks.contents import blocks_of
from replica_platform.backup.blocks.keys import cipher_of
from replica_platform.backup.blocks.store import BackupBlocks, stores_of
from replica_platform.backup.folder import backups, folder_lock
from replica_platform.backup.manifest import Backup, in_utc
from replica_platform.backup.verify import compare_with_manifest, record_outcome
from replica_platform.core.errors import TerminalError
from replica_platform.core.files import fsync_dir


def cleanup(
    to: Path, name: str, *, keep_days: float, keep_count: int, now: datetime | None = None
) -> list[Path]:
    """Delete the backups of `name` that retention lets go.

    Each source is counted separately, should two databases of one name share the folder. A run
    that was killed half-way is finished by the next. In a block store, blocks that no backup names
    any more are marked, and removed by a run a day later.

    Args:
        to: The folder of backups.
        name: The stem of the source's file name.
        keep_days: Backups younger than so many days are kept.
        keep_count: At least so many sound backups are kept.
        now: The moment from which ages are counted; the clock's if left out.

    Returns:
        The deleted files, oldest first.

    Raises:
        TerminalError: The rule would keep nothing.
        Busy: Another process works on these backups.
        KeyMissing: Some are encrypted with a key that the environment does not have.
        BlockStoreUnavailable: A block store refused a request.
        BlockStoreDamaged: A manifest in a block store is damaged, so that no block was removed.
    """
    if keep_days < 0 or keep_count < 1:
        raise TerminalError(
            f"Keeping {keep_count} backups for {keep_days} days would leave none; "
            "give --keep-count 1 or more and --keep-days 0 or more."
        )
    folder = to.absolute()
    moment = in_utc(now or datetime.now(UTC))
    deleted: list[Path] = []
    with folder_lock(folder, name):
        listed = [backup for backup in backups(folder, name) if not backup.is_in_future(moment)]
        for source in sorted({backup.source for backup in listed}):
            of_source = [backup for backup in listed if backup.source == source]
            expired = _expired(of_source, moment, timedelta(days=keep_days), keep_count)
            newest_sound = _newest_sound(of_source) if expired else None
            # Oldest first, so that a kill half-way leaves no gap.
            for backup in reversed(expired):
                if newest_sound and backup.taken_at < newest_sound.taken_at:
                    _delete(backup)
                    deleted.append(backup.file)
        for where, key_id in stores_of(listed):
            BackupBlocks(where, cipher_of(key_id)).prune()
    return deleted


def keep_one_of_equal(made: Backup, name: str, *, within_s: float) -> Backup:
    """Delete a backup that repeats a recent one which is read from the disk now and found sound.

    Args:
        made: The new backup.
        name: The stem of the source's file name.
        within_s: How much older the other one may be, in seconds.

    Returns:
        The backup that is kept: the earlier one, or `made` where no other is equal and sound.

    Raises:
        Busy: Another process works on these backups.
    """
    folder = made.file.parent
    with folder_lock(folder, name):
        for earlier in backups(folder, name):
            older_s = (made.taken_at - earlier.taken_at).total_seconds()
            if (
                earlier.file == made.file
                or (earlier.source, earlier.sha256) != (made.source, made.sha256)
                or not 0 <= older_s <= within_s
            ):
                continue
            outcome = compare_with_manifest(earlier)
            record_outcome(earlier, outcome)
            if outcome.ok:
                _delete(made)
                return earlier
    return made


def _expired(
    newest_first: list[Backup], now: datetime, keep: timedelta, keep_count: int
) -> list[Backup]:
    """Return the backups older than `keep` that have `keep_count` newer sound ones."""
    expired, newer_sound = [], 0
    for backup, age in zip(newest_first, _ages(newest_first, now), strict=True):
        if age > keep and newer_sound >= keep_count:
            expired.append(backup)
        newer_sound += backup.ok
    return expired


def _ages(newest_first: list[Backup], now: datetime) -> Iterator[timedelta]:
    """Yield each backup's age, in which a single long interval counts as twice the next longest."""
    moments = [now, *(backup.taken_at for backup in newest_first)]
    intervals = [later - earlier for later, earlier in pairwise(moments)]
    longest = 2 * sorted(intervals)[-2] if len(intervals) > 1 else intervals[0]
    age = timedelta()
    for interval in intervals:
        age += min(interval, longest)
        yield age


def _newest_sound(newest_first: list[Backup]) -> Backup | None:
    """Return the newest backup that is sound when it is read from the disk now."""
    for backup in newest_first:
        outcome = compare_with_manifest(backup)
        record_outcome(backup, outcome)
        if outcome.ok:
            return backup
    return None


def _delete(backup: Backup) -> None:
    # The manifest last: an interrupted run is finished by it.
    if backup.blocks:
        blocks_of(backup).remove(backup)
    backup.file.unlink(missing_ok=True)
    fsync_dir(backup.file.parent)
    backup.manifest.unlink(missing_ok=True)
    fsync_dir(backup.file.parent)
