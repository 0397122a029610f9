"""The pointer to the current generation, and the lock under which the store changes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from replica_platform.core import locks
from replica_platform.core.files import fsync_dir, write_atomically
from replica_platform.replica.errors import NothingPublished, StoreBusy, translate_errors
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Manifest

STORE_PATIENCE_S = 30.0


@contextmanager
def store_lock(layout: Layout) -> Iterator[None]:
    """Hold the store's lock: only one process at a time may change a store.

    Raises:
        NothingPublished: The store does not exist.
        StoreBusy: Another process held the lock for longer than `STORE_PATIENCE_S`.
        StoreDenied: The lock's file may not be written.
    """
    if not layout.root.is_dir():
        raise NothingPublished(f"There is no store at {layout.root}; publish into it first.")
    with translate_errors(layout.root):
        try:
            with locks.file_lock(layout.lock, wait_s=STORE_PATIENCE_S):
                yield
        except locks.LockHeld:
            raise StoreBusy(
                f"{locks.describe(locks.holders(layout.lock))} publishes into {layout.root}; "
                "wait for it to finish, or stop it, and publish again."
            ) from None


def point_to(layout: Layout, manifest: Manifest) -> None:
    """Make a generation current: move the pointer, then the link that other clients use.

    Readers see the old generation or the new one. Newer generations are marked as withheld, so
    that no fallback leads to them. Hold the store's lock.

    Raises:
        StoreFull: The disk is full.
        StoreDenied: The pointer may not be written.
    """
    with translate_errors(layout.root):
        for kept in layout.kept():
            mark = layout.withheld_mark(kept)
            if kept.generation > manifest.generation:
                mark.touch()
            elif kept.file == manifest.file:
                mark.unlink(missing_ok=True)
        content = manifest.to_json()
        write_atomically(layout.pointer_copy, content)
        write_atomically(layout.pointer, content)
        target = os.path.relpath(layout.data(manifest), layout.root)
        if not layout.link.is_symlink() or str(layout.link.readlink()) != target:
            temporary = layout.root / f".tmp-{layout.link.name}-{os.getpid()}"
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(target)
            temporary.replace(layout.link)
            fsync_dir(layout.root)


def pointer_is_sound(layout: Layout, current: Manifest) -> bool:
    """Return whether the pointer and its copy can be read, and the link leads to `current`."""
    try:
        return (
            layout.current() is not None
            and layout.copied_pointer() is not None
            and layout.link.resolve() == layout.data(current)
        )
    except (ValueError, OSError):
        return False
