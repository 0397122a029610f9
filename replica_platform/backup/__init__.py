"""Verified copies of SQLite files: taken while the program writes, kept, checked, restored.

    taken = backup(Path("data/gym_system.db"), Path("data/backups"))
    restore(taken.file, Path("data/gym_system.db"))

What is kept can be restored: nothing gets a backup's name before SQLite has checked it.
"""

from replica_platform.backup.making import backup
from replica_platform.backup.manifest import Backup
from replica_platform.backup.restoring import Restored, restore
from replica_platform.backup.retention import cleanup
from replica_platform.backup.sample import sample_gym_system
from replica_platform.backup.shelf import Stats, backups, stats
from replica_platform.backup.verification import Verification, verify

__all__ = [
    "Backup",
    "Restored",
    "Stats",
    "Verification",
    "backup",
    "backups",
    "cleanup",
    "restore",
    "sample_gym_system",
    "stats",
    "verify",
]
