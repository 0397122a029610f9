"""Which generations stay, and the spare: a retired one that the next generation is patched from.

A generation stays while it is current, among the newest kept, too young, or held by a reader. A
retired file is first renamed, so that it can no longer be opened, and only then tested for
processes that still hold it.
"""

import fcntl
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from replica_platform.core import locks
from replica_platform.core.files import fsync_dir
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import (
    Manifest,
    NotAManifest,
    generation_in,
    read_manifest,
)


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
    there = [manifest for manifest in others if manifest not in gone]
    surplus = [
        manifest
        for manifest in reversed(there[max(0, retention.keep - 1) :])
        # A publication in the future comes from a clock that jumped back: its age is unknown.
        if not 0 <= (now - manifest.published_at).total_seconds() < retention.min_age_s
    ]
    retired = []
    for manifest in [*gone, *surplus]:
        if _retire(layout, manifest):
            retired.append(manifest.generation)
    if retired:
        fsync_dir(layout.generations)
    return retired


def _retire(layout: Layout, manifest: Manifest) -> bool:
    lease = layout.lease(manifest)
    fd = os.open(lease, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not locks.try_lock(fd, shared=False) or locks.holders(layout.data(manifest)):
            return False
        # The lock on the lease keeps our readers out from here on, and the rename keeps out
        # other clients.
        spare = layout.spares / manifest.file
        layout.spares.mkdir(exist_ok=True)
        layout.manifest_path(manifest).replace(spare.with_suffix(".json"))
        layout.data(manifest).replace(spare)
        lease.unlink()
        if layout.is_marked_damaged(manifest):  # nothing is patched from it
            spare.unlink()
            spare.with_suffix(".json").unlink()
    except FileNotFoundError:
        layout.manifest_path(manifest).unlink(missing_ok=True)
        lease.unlink(missing_ok=True)
    finally:
        os.close(fd)
    for mark in (layout.withheld_mark(manifest), layout.damage_mark(manifest)):
        mark.unlink(missing_ok=True)
    _remove_spares(layout, keep=1)
    return True


def remove_spares(layout: Layout) -> None:
    """Remove every spare, to free its disk space."""
    _remove_spares(layout, keep=0)


def _remove_spares(layout: Layout, keep: int) -> None:
    """Remove all but the newest spares: those differ least from the next generation."""
    for path in _spares(layout)[keep:]:
        path.unlink()
        path.with_suffix(".json").unlink(missing_ok=True)


def _spares(layout: Layout) -> list[Path]:
    """Return the spares, newest first."""
    found = layout.spares.glob("*.duckdb")
    return sorted(found, key=lambda path: generation_in(path.name) or 0, reverse=True)


def take_spare(layout: Layout, target: Path) -> list[str] | None:
    """Rename the spare to `target` and return its block digests; None if there is none to patch.

    A client that opened the file before it retired still reads the same inode: then the file is
    unlinked, and stays theirs.
    """
    for path in _spares(layout):
        try:
            manifest = read_manifest(path.with_suffix(".json"))
        except (NotAManifest, OSError):
            path.unlink()
            path.with_suffix(".json").unlink(missing_ok=True)
            continue
        path.with_suffix(".json").unlink()
        path.chmod(0o600)
        # Never patch a hard link: its other name may be a generation that is read.
        if path.stat().st_nlink == 1 and not _is_held(path):
            path.replace(target)
            return manifest.block_digests
        path.unlink()
    return None


def _is_held(path: Path) -> bool:
    if locks.holders(path):
        return True
    # The kernel's list may omit processes of other namespaces; taking the lock does not.
    with path.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
