"""Verified copies of SQLite files: taken under a running writer, kept, checked, restored, pulled.

    taken = backup(Path("data/gym_system.db"), Path("data/backups"))
    restore(taken.file, Path("data/gym_system.db"))

A file gets a backup's name only after SQLite has checked it. In the order of the story:

- `take`, `verify`, `restore`, `cleanup`, `status`: what is done with backups.
- `drill`: restores kept backups in turn, to see that they can be.
- `fetch_manifests`: makes the backups of a block store known on another host.
- `remote`: brings a database of another host here, over SSH.
- `folder`: the lock of a folder of backups, the list of them, what killed runs left.
- `destination`: the file that a restore or a pull replaces.
- `manifest`: the description beside each backup.
- `blocks`: backups kept as blocks, in a folder or an object store.
- `child`: the process in which every SQLite file is opened, copied and hashed.
- `errors`: what can go wrong, and the translation of SQLite's and the system's errors.

Schedules, assets and settings do not belong here.
"""

from typing import TYPE_CHECKING

from replica_platform.backup.errors import (
    Busy,
    ChildFailed,
    Damaged,
    HostUnknown,
    KeyMissing,
    NameTaken,
    NoRoom,
    NotAllowed,
    TargetExists,
    Unreachable,
    Unreadable,
    Unsaved,
)
from replica_platform.backup.folder import backups
from replica_platform.backup.manifest import Backup
from replica_platform.backup.status import FolderStatus, status
from replica_platform.blocks.errors import BlockStoreDamaged, BlockStoreUnavailable
from replica_platform.core.faces import load_late

if TYPE_CHECKING:
    from replica_platform.backup.cleanup import cleanup, keep_one_of_equal
    from replica_platform.backup.drill import (
        DrillQuery,
        DrillReport,
        DrillStatus,
        drill,
        drill_status,
    )
    from replica_platform.backup.fetch_manifests import fetch_manifests
    from replica_platform.backup.remote.pull import Pulled, pull
    from replica_platform.backup.restore import Restored, restore
    from replica_platform.backup.take import backup
    from replica_platform.backup.verify import BackupVerification, verify
    from replica_platform.backup.verify import BackupVerification as Verification

# Loaded on first use: a status needs none of it, and asyncio comes with `pull`. Every backup starts
# a child process that imports this package.
load_late(
    __name__,
    {
        "BackupVerification": "verify",
        "DrillQuery": "drill",
        "DrillReport": "drill",
        "DrillStatus": "drill",
        "Pulled": "remote.pull",
        "Restored": "restore",
        "Verification": "verify:BackupVerification",
        "backup": "take",
        "cleanup": "cleanup",
        "drill": "drill",
        "drill_status": "drill",
        "fetch_manifests": "fetch_manifests",
        "keep_one_of_equal": "cleanup",
        "pull": "remote.pull",
        "restore": "restore",
        "verify": "verify",
    },
)

# Earlier names.
Stats = FolderStatus
stats = status

__all__ = [
    "Backup",
    "BackupVerification",
    "BlockStoreDamaged",
    "BlockStoreUnavailable",
    "Busy",
    "ChildFailed",
    "Damaged",
    "DrillQuery",
    "DrillReport",
    "DrillStatus",
    "FolderStatus",
    "HostUnknown",
    "KeyMissing",
    "NameTaken",
    "NoRoom",
    "NotAllowed",
    "Pulled",
    "Restored",
    "Stats",
    "TargetExists",
    "Unreachable",
    "Unreadable",
    "Unsaved",
    "Verification",
    "backup",
    "backups",
    "cleanup",
    "drill",
    "drill_status",
    "fetch_manifests",
    "keep_one_of_equal",
    "pull",
    "restore",
    "stats",
    "status",
    "verify",
]
