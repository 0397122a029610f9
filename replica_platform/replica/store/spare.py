"""The spare: a retired generation's file, which the next generation is patched from.

It is patched only if nothing wrote into it since it was verified, and only blocks that differ are
written; so a process that still holds it, or another name of the file, must not exist.
"""

import fcntl
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from replica_platform.core import locks
from replica_platform.replica.store.integrity import is_sealed
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import (
    Manifest,
    NotAManifest,
    Seal,
    generation_in,
    read_manifest,
)


def make_spare(layout: Layout, manifest: Manifest, *, intact: bool) -> None:
    """Rename a generation's file, so that it can no longer be opened, to the spare.

    Args:
        layout: The store; hold its lock, and that of the lease.
        manifest: The generation.
        intact: Whether its seal is unbroken; otherwise nothing may be patched from it.

    Raises:
        FileNotFoundError: The file is missing.
    """
    layout.spares.mkdir(exist_ok=True)
    spare = layout.spares / manifest.file
    description = spare.with_suffix(".json")
    layout.manifest_path(manifest).replace(description)
    layout.data(manifest).replace(spare)
    if intact:
        # The rename changed the inode's time. A torn description is found by its checksum.
        description.write_bytes(replace(manifest, seal=Seal.of(spare)).to_json())
    else:
        _remove(spare)


def find_spare(layout: Layout) -> Manifest | None:
    """Return the newest spare that nothing wrote into; None if there is none."""
    for path in _spares(layout):
        with suppress(NotAManifest, OSError):
            manifest = read_manifest(path.with_suffix(".json"))
            if is_sealed(path, manifest):
                return manifest
    return None


def take_spare(layout: Layout, target: Path) -> Manifest | None:
    """Rename the spare to `target` and return its manifest; None if there is none to patch.

    A client that opened the file before it retired still reads the same inode: then the file is
    unlinked, and stays theirs.
    """
    while manifest := find_spare(layout):
        path = layout.spares / manifest.file
        # Never patch a hard link: its other name may be a generation that is read.
        path.chmod(0o600)
        if path.stat().st_nlink == 1 and not _is_held(path):
            path.replace(target)
            path.with_suffix(".json").unlink()
            return manifest
        _remove(path)
    remove_spares(layout)
    return None


def keep_newest_spare(layout: Layout) -> None:
    """Remove all spares but the newest: it differs least from the next generation."""
    for path in _spares(layout)[1:]:
        _remove(path)


def remove_spares(layout: Layout) -> None:
    """Remove every spare, to free its disk space."""
    for path in _spares(layout):
        _remove(path)


def _remove(spare: Path) -> None:
    spare.unlink(missing_ok=True)
    spare.with_suffix(".json").unlink(missing_ok=True)


def _spares(layout: Layout) -> list[Path]:
    """Return the spares, newest first."""
    found = layout.spares.glob("*.duckdb")
    return sorted(found, key=lambda path: generation_in(path.name) or 0, reverse=True)


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
