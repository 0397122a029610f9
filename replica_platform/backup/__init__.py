"""Verified copies of SQLite files: taken while the program writes, kept, checked, restored,
and brought home from other machines.

    taken = backup(Path("data/gym_system.db"), Path("data/backups"))
    restore(taken.file, Path("data/gym_system.db"))

What is kept can be restored: nothing gets a backup's name before SQLite has checked it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replica_platform.backup.making import backup
    from replica_platform.backup.manifest import Backup
    from replica_platform.backup.pulling import Pulled, pull
    from replica_platform.backup.restoring import Restored, restore
    from replica_platform.backup.retention import cleanup
    from replica_platform.backup.sample import sample_gym_system
    from replica_platform.backup.shelf import Stats, backups, stats
    from replica_platform.backup.verification import Verification, verify

__all__ = [
    "Backup",
    "Pulled",
    "Restored",
    "Stats",
    "Verification",
    "backup",
    "backups",
    "cleanup",
    "pull",
    "restore",
    "sample_gym_system",
    "stats",
    "verify",
]

# Each is imported when it is first asked for: every backup starts a child that imports this
# package, and needs none of them (0.06 s instead of 0.2 s, most of it asyncio).
_HOME = {
    "Backup": "manifest",
    "Pulled": "pulling",
    "Restored": "restoring",
    "Stats": "shelf",
    "Verification": "verification",
    "backup": "making",
    "backups": "shelf",
    "cleanup": "retention",
    "pull": "pulling",
    "restore": "restoring",
    "sample_gym_system": "sample",
    "stats": "shelf",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
