"""The folder of backups: who may work in it now, what lies in it, how it stands.

Backups are found by their manifests alone. What a killed run left half-done is finished or
cleared away here, by the next one that takes the lock.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from replica_platform.backup.errors import Busy
from replica_platform.backup.manifest import SUFFIX, Backup, in_utc, parse_manifest, read_manifest
from replica_platform.core.files import fsync_dir
from replica_platform.core.locks import LockHeld, file_lock
from replica_platform.core.reports import format_age

LOCK_WAIT_S = 60.0


@dataclass(frozen=True)
class Stats:
    """How a folder of backups stands; every count is of the name asked for, or of all."""

    count: int
    bytes: int
    newest_at: datetime | None
    newest_age_s: float | None
    oldest_at: datetime | None
    verified: int
    """Backups of the right size against which no verification found anything."""
    unlisted: int
    """Database files without a readable manifest: nobody vouches for them."""
    ok: bool
    sentence: str

    def as_dict(self) -> dict[str, Any]:
        """The same in plain JSON types."""
        times = {
            key: value.isoformat() if value else None
            for key, value in (("newest_at", self.newest_at), ("oldest_at", self.oldest_at))
        }
        return {**asdict(self), **times}


def backups(to: Path, name: str | None = None) -> list[Backup]:
    """The backups in a folder by their manifests, newest first; of one name, or all.

    A backup whose file is gone is still listed, as not `sound`.
    """
    to = to.absolute()
    found = (read_manifest(path) for path in to.glob(f"*.db{SUFFIX}"))
    wanted = [backup for backup in found if backup and name in (None, backup.name)]
    return sorted(wanted, key=lambda backup: (backup.taken_at, backup.file.name), reverse=True)


def stats(to: Path, name: str | None = None, *, now: datetime | None = None) -> Stats:
    """Count what a folder holds and say in one sentence whether it would help today."""
    to = to.absolute()
    listed = backups(to, name)
    vouched = {backup.file.name for backup in backups(to)}
    unlisted = [
        file
        for file in sorted(to.glob("*_backup_*.db"))
        if file.name not in vouched and (name is None or file.name.startswith(f"{name}_backup_"))
    ]
    sound = [backup for backup in listed if backup.sound]
    newest, oldest = (sound[0].taken_at, sound[-1].taken_at) if sound else (None, None)
    age = (in_utc(now or datetime.now(UTC)) - newest).total_seconds() if newest else None
    ok = bool(listed) and len(sound) == len(listed)
    what = f"of {name} " if name else ""
    if not listed:
        sentence = f"No backup {what}in {to}; run `replica backup` to take one."
    elif not ok:
        bad = next(backup for backup in listed if not backup.sound)
        why = bad.damage or ("its file is gone" if not bad.file.exists() else "its size is wrong")
        sentence = (
            f"{len(listed) - len(sound)} of {len(listed)} backups {what}in {to} would not help: "
            f"{bad.file.name}: {why}. Take a new one, then delete it."
        )
    else:
        sentence = f"{len(listed)} backups {what}in {to}, the newest {format_age(age or 0)} old."
    if unlisted:
        sentence += f" {len(unlisted)} files have no manifest ({unlisted[0].name})."
    total = sum(backup.bytes for backup in sound)
    return Stats(len(listed), total, newest, age, oldest, len(sound), len(unlisted), ok, sentence)


@contextmanager
def at_work(to: Path, name: str, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Be the only one who adds or deletes backups of `name` in the folder.

    Waits for another up to `wait_s`, then `Busy`. What a killed run left is cleared first.
    """
    to.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(file_lock(to / f".{name}.lock", wait_s=wait_s))
        except LockHeld:
            raise Busy(
                f"Another process has been working on the backups of {name} in {to} for "
                f"{wait_s:g} s; wait until it is done, then try again."
            ) from None
        clear_leftovers(to, name)
        yield


def clear_leftovers(to: Path, name: str) -> None:
    """Finish or remove what a killed run left. Only under the lock: nobody else is at work.

    A copy whose file got its name but whose manifest did not is a whole, checked backup: it
    gets its manifest. Anything else half-done is removed.
    """
    of_ours = re.compile(rf"\.tmp-{re.escape(name)}_backup_\d{{8}}_\d{{6}}\.db(\.json)?-.*")
    leftovers = sorted(path for path in to.iterdir() if of_ours.fullmatch(path.name))
    for leftover in leftovers:
        told = parse_manifest(leftover)
        if told and told.sound and not told.manifest.exists():
            leftover.replace(told.manifest)
        else:
            leftover.unlink(missing_ok=True)
    if leftovers:
        fsync_dir(to)
