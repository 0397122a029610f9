"""The content of a backup as a plain file: its own, or one assembled from blocks for the moment."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from replica_platform.backup.blocks.keys import cipher_of
from replica_platform.backup.blocks.store import BackupBlocks
from replica_platform.backup.errors import NoRoom
from replica_platform.backup.manifest import Backup
from replica_platform.core.disk_space import shortage
from replica_platform.core.reports import Progress

ASSEMBLED = re.compile(r"\.assembled-(\d+)-.*")


def blocks_of(backup: Backup) -> BackupBlocks:
    """Return the block store of a backup that is kept as blocks.

    Raises:
        KeyMissing: It is encrypted with a key that the environment does not have.
        BlockStoreUnavailable: The store cannot be used.
    """
    assert backup.blocks
    return BackupBlocks(backup.blocks, cipher_of(backup.key_id))


@contextmanager
def content_of(backup: Backup, scratch: Path, progress: Progress | None = None) -> Iterator[Path]:
    """Yield a file with the content of a backup.

    Args:
        backup: The backup.
        scratch: The folder in which one that is kept as blocks is assembled; the file is removed
            after the block.
        progress: Told the blocks that were received.

    Raises:
        KeyMissing: It is encrypted with a key that the environment does not have.
        NoRoom: The folder's disk has no space for it.
        BlockStoreUnavailable: A request failed.
        BlockStoreDamaged: A block or the manifest is missing or damaged.
    """
    if not backup.blocks:
        yield backup.file
        return
    store = blocks_of(backup)
    _remove_abandoned(scratch)
    if missing := shortage(scratch, backup.bytes):
        raise NoRoom(f"{backup.file.name} was not assembled: {missing}; make room there.")
    name = f".assembled-{os.getpid()}-{os.urandom(4).hex()}-{backup.file.name}"
    assembled = scratch / name
    try:
        store.receive(backup, assembled, progress)
        yield assembled
    finally:
        assembled.unlink(missing_ok=True)


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes of this machine left."""
    for path in folder.iterdir():
        found = ASSEMBLED.fullmatch(path.name)
        if found and not Path(f"/proc/{found[1]}").exists():
            path.unlink(missing_ok=True)
