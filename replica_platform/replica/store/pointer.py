"""The pointer to the current generation, and the lock under which the store changes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from replica_platform.core import locks
from replica_platform.core.files import fsync_dir, write_atomically
from replica_platform.replica.errors import NothingPublished, StoreBusy, translate_errors
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Manifest, NotAManifest

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
    """Make a generation current: move the pointer, then the links that other clients use.

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
        before = _links(layout)
        content = manifest.to_json()
        write_atomically(layout.pointer_copy, content)
        write_atomically(layout.pointer, content)
        links = layout.links(manifest)
        for link in links:
            _move_link(link, os.path.relpath(layout.data(manifest), layout.root))
        for link in set(before) - set(links):  # the master was renamed
            link.unlink(missing_ok=True)
        fsync_dir(layout.root)


def _links(layout: Layout) -> list[Path]:
    """Return the links to the current generation."""
    with suppress(NotAManifest):
        current = layout.current()
        return [link for link in layout.links(current) if link.is_symlink()] if current else []
    return []


def _move_link(link: Path, target: str) -> None:
    if link.is_symlink() and str(link.readlink()) == target:
        return
    temporary = link.with_name(f".tmp-{link.name}-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)


def pointer_is_sound(layout: Layout, current: Manifest) -> bool:
    """Return whether the pointer and its copy can be read, and the links lead to `current`."""
    try:
        return (
            layout.current() is not None
            and layout.copied_pointer() is not None
            and all(link.resolve() == layout.data(current) for link in layout.links(current))
        )
    except (ValueError, OSError):
        return False
