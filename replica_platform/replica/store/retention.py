"""Which generations stay: the current one, the newest, those too young or held by a reader.

Those of an earlier definition of the purpose do not stay: it may have shown more.

A retired file is first renamed, so that it can no longer be opened; it becomes the `spare`.
"""

import os
from dataclasses import dataclass
from datetime import datetime

from replica_platform.core import locks
from replica_platform.core.files import fsync_dir
from replica_platform.replica.store.integrity import is_sealed
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Manifest
from replica_platform.replica.store.spare import keep_newest_spare, make_spare, remove_spares


@dataclass(frozen=True)
class Retention:
    """How many generations stay, and for how long.

    Attributes:
        keep: How many stay.
        min_age_s: How long, in seconds, each stays at least.
    """

    keep: int = 3
    min_age_s: float = 60.0


def reader_pids(layout: Layout, manifest: Manifest) -> list[int]:
    """Return the processes that hold a generation, by its lease or as other DuckDB clients do."""
    found = locks.holders(layout.lease(manifest)) + locks.holders(layout.data(manifest))
    return sorted({holder.pid for holder in found})


def retire(layout: Layout, retention: Retention, now: datetime) -> list[int]:
    """Retire the generations that need not stay or lost their file, and return their numbers.

    Args:
        layout: The store; hold its lock.
        retention: Which need to stay.
        now: The current time.
    """
    current = layout.latest()
    others = [kept for kept in layout.kept() if current is None or kept.file != current.file]
    # Nobody can go back to a generation whose file was deleted.
    gone = [manifest for manifest in others if not layout.data(manifest).exists()]
    earlier = [one for one in others if current is not None and one.recipe != current.recipe]
    there = [one for one in others if one not in gone and one not in earlier]
    surplus = [
        manifest
        for manifest in reversed(there[max(0, retention.keep - 1) :])
        # A publication in the future comes from a clock that jumped back: its age is unknown.
        if not 0 <= (now - manifest.published_at).total_seconds() < retention.min_age_s
    ]
    retired = [_withdraw(layout, manifest) for manifest in earlier]
    for manifest in [*gone, *surplus]:
        if _retire(layout, manifest):
            retired.append(manifest.generation)
    if retired:
        fsync_dir(layout.generations)
    return retired


def _withdraw(layout: Layout, manifest: Manifest) -> int:
    """Remove a generation at once, also one that is read: its readers keep only the open file."""
    data = layout.data(manifest)
    for path in (layout.manifest_path(manifest), data, layout.lease(manifest)):
        path.unlink(missing_ok=True)
    _remove_marks(layout, manifest)
    remove_spares(layout)
    return manifest.generation


def _retire(layout: Layout, manifest: Manifest) -> bool:
    lease = layout.lease(manifest)
    fd = os.open(lease, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not locks.try_lock(fd, shared=False) or locks.holders(layout.data(manifest)):
            return False
        # The lock on the lease keeps our readers out from here on, and the rename keeps out
        # other clients.
        intact = not layout.is_marked_damaged(manifest) and is_sealed(
            layout.data(manifest), manifest
        )
        make_spare(layout, manifest, intact=intact)
        lease.unlink()
    except FileNotFoundError:
        layout.manifest_path(manifest).unlink(missing_ok=True)
        lease.unlink(missing_ok=True)
    finally:
        os.close(fd)
    _remove_marks(layout, manifest)
    keep_newest_spare(layout)
    return True


def _remove_marks(layout: Layout, manifest: Manifest) -> None:
    for mark in (layout.withheld_mark(manifest), layout.damage_mark(manifest)):
        mark.unlink(missing_ok=True)
