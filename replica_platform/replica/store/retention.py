"""Which generations stay, which retire, and what becomes of a retired one.

A generation stays while it is current, among the newest kept, too young, or held by a reader.
One retired file is kept as the spare that the next generation is patched from: it is renamed
away first, so that nobody new can open it, and only then asked whether anybody still holds it.
"""

import fcntl
import os
from datetime import datetime
from pathlib import Path

from replica_platform.core import locks
from replica_platform.core.files import fsync_dir
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Manifest, NotAManifest, read_manifest


def readers(layout: Layout, manifest: Manifest) -> list[int]:
    """The processes that hold the generation: by its lease, or as any DuckDB client does."""
    found = locks.holders(layout.lease(manifest)) + locks.holders(layout.data(manifest))
    return sorted({holder.pid for holder in found})


def retire(layout: Layout, *, keep: int, min_age_s: float, now: datetime) -> list[int]:
    """Retire what need not stay; returns the generations that went."""
    current = layout.latest()
    others = [kept for kept in layout.kept() if current is None or kept.file != current.file]
    gone = []
    for manifest in reversed(others[max(0, keep - 1) :]):
        age_s = (now - manifest.published_at).total_seconds()
        # A publication in the future is a clock that jumped back: its age says nothing.
        if 0 <= age_s < min_age_s:
            continue
        if _retire(layout, manifest):
            gone.append(manifest.generation)
    if gone:
        fsync_dir(layout.generations)
    return gone


def _retire(layout: Layout, manifest: Manifest) -> bool:
    lease = layout.lease(manifest)
    fd = os.open(lease, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not locks.try_lock(fd, shared=False) or locks.holders(layout.data(manifest)):
            return False
        # From here on no reader of ours can take it (the lease is ours), and after the rename
        # no other client can open it.
        spare = layout.spares / manifest.file
        layout.spares.mkdir(exist_ok=True)
        layout.manifest_path(manifest).replace(spare.with_suffix(".json"))
        layout.data(manifest).replace(spare)
        lease.unlink()
    except FileNotFoundError:
        layout.manifest_path(manifest).unlink(missing_ok=True)
        lease.unlink(missing_ok=True)
    finally:
        os.close(fd)
    keep_one_spare(layout)
    return True


def keep_one_spare(layout: Layout) -> None:
    """Keep the newest spare, for it differs least from the next generation."""
    spares = sorted(layout.spares.glob("*.duckdb"), reverse=True)
    for path in spares[1:]:
        path.unlink()
        path.with_suffix(".json").unlink(missing_ok=True)


def remove_spares(layout: Layout) -> None:
    """Remove every spare, where its room is needed."""
    for path in layout.spares.glob("*.duckdb"):
        path.unlink()
        path.with_suffix(".json").unlink(missing_ok=True)


def take_spare(layout: Layout, target: Path) -> list[str] | None:
    """Rename the spare to `target` and return its blocks' digests; None if nobody may touch it.

    A client that opened it before it retired still has the inode: then it is left to them.
    """
    for path in sorted(layout.spares.glob("*.duckdb"), reverse=True):
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
            return manifest.blocks
        path.unlink()
    return None


def _is_held(path: Path) -> bool:
    if locks.holders(path):
        return True
    # The list of locks may hide processes of other namespaces; the lock itself does not.
    with path.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
