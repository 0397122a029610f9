"""Make the backups of a block store known in a folder, on the host that took them or another."""

from pathlib import Path

from replica_platform.backup.blocks.keys import known_ciphers
from replica_platform.backup.blocks.store import BackupBlocks
from replica_platform.backup.folder import folder_lock
from replica_platform.backup.manifest import Backup


def fetch_manifests(blocks: Path | str, to: Path, name: str | None = None) -> list[Backup]:
    """Write the manifests of a block store's backups that a folder lacks into it.

    Afterwards `backups`, `status`, `verify` and `restore` work there, for a host that lost its
    folder or a new one. Those encrypted with a key that `REPLICA_BACKUP_KEY` lacks are not found.

    Args:
        blocks: The block store, a folder or a URL such as s3://bucket/prefix.
        to: The folder of backups; made if absent.
        name: The stem of the source's file name; all sources if left out.

    Returns:
        The backups that the folder did not know, oldest first.

    Raises:
        KeyMissing: A key is not written as it should be.
        BlockStoreUnavailable: A request failed.
        BlockStoreDamaged: A manifest is damaged.
        Busy: Another process works on these backups.
    """
    folder = to.absolute()
    found: list[Backup] = []
    for cipher in (None, *known_ciphers()):
        store = BackupBlocks(blocks, cipher)
        for manifest in store.manifests(name):
            backup = store.backup(manifest, folder)
            with folder_lock(folder, backup.name):
                if not backup.manifest.exists():
                    backup.save()
                    found.append(backup)
    return sorted(found, key=lambda backup: (backup.taken_at, backup.file.name))
