"""The folder of backups: its lock, the backups in it, and what killed runs left behind.

Backups are found by their manifests alone. The next run that takes the lock finishes or removes
what a killed one left.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from replica_platform.backup.blocks.contents import blocks_of
from replica_platform.backup.errors import Busy
from replica_platform.backup.manifest import SUFFIX, Backup, parse_manifest, read_manifest
from replica_platform.core.files import fsync_dir
from replica_platform.core.locks import LockHeld, file_lock

LOCK_WAIT_S = 60.0


def backups(to: Path, name: str | None = None) -> list[Backup]:
    """List the backups in a folder by their manifests, newest first.

    Args:
        to: The folder of backups.
        name: The stem of the source's file name; all sources if left out.

    Returns:
        One `Backup` for each manifest; one whose file is gone has `ok` False.
    """
    folder = to.absolute()
    found = (read_manifest(path) for path in folder.glob(f"*.db{SUFFIX}"))
    wanted = [backup for backup in found if backup and name in (None, backup.name)]
    return sorted(wanted, key=lambda backup: (backup.taken_at, backup.file.name), reverse=True)


@contextmanager
def folder_lock(folder: Path, name: str, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Exclude other processes from adding or deleting backups of `name` in the folder.

    What a killed run left is cleared first.

    Raises:
        Busy: Another process held the lock for `wait_s`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(file_lock(folder / f".{name}.lock", wait_s=wait_s))
        except LockHeld:
            raise Busy(
                f"Another process has been working on the backups of {name} in {folder} for "
                f"{wait_s:g} s; wait until it is done, then try again."
            ) from None
        clear_leftovers(folder, name)
        yield


def _has_content(backup: Backup) -> bool:
    return blocks_of(backup).has(backup) if backup.blocks else backup.ok


def clear_leftovers(folder: Path, name: str) -> None:
    """Finish or remove what a killed run left; the caller holds the lock.

    A copy whose file got its name but whose manifest did not is a whole, checked backup: it gets
    its manifest. So does one whose manifest is in the block store. Anything else is removed.
    """
    temporary = re.compile(rf"\.tmp-{re.escape(name)}_backup_\d{{8}}_\d{{6}}\.db(\.json)?-.*")
    leftovers = sorted(path for path in folder.iterdir() if temporary.fullmatch(path.name))
    for leftover in leftovers:
        backup = parse_manifest(leftover)
        if backup and not backup.manifest.exists() and _has_content(backup):
            leftover.replace(backup.manifest)
        else:
            leftover.unlink(missing_ok=True)
    if leftovers:
        fsync_dir(folder)
