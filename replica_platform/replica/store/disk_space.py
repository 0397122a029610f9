"""The store's folders, and whether its disk has room for a generation."""

from pathlib import Path

from replica_platform.core.disk_space import free_bytes
from replica_platform.replica.errors import StoreFull, explaining
from replica_platform.replica.store import retention
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import now

# Beside the copy itself: manifests, and what the file system keeps for itself.
MARGIN_BYTES = 4 * 1024 * 1024


def make_folders(layout: Layout) -> None:
    """Make the store's folders. Errors: `StoreDenied`."""
    with explaining(layout.root):
        for folder in (layout.root, layout.generations, layout.candidates, layout.spares):
            folder.mkdir(parents=True, exist_ok=True)


def find_room(
    layout: Layout, target: Path, size: int, *, keep: int, min_age_s: float
) -> list[str] | None:
    """See that `target` can become `size` bytes; begin it with the spare where there is one.

    Generations retire after a release. Where the disk has no room for another one beside them,
    those that `keep` and `min_age_s` would let go then go now, so that keeping fewer makes room.

    Returns:
        The digests of the spare's blocks, which `target` holds now; None without a spare.

    Raises:
        StoreFull: before anything is written; a spare that was taken is removed.
    """
    known = retention.take_spare(layout, target)
    if _free(layout) < _needed(target, size):
        retention.retire(layout, keep=keep, min_age_s=min_age_s, now=now())
        if known is None:
            known = retention.take_spare(layout, target)
    if _free(layout) < _needed(target, size):
        retention.remove_spares(layout)
    free, needed = _free(layout), _needed(target, size)
    if free < needed:
        target.unlink(missing_ok=True)
        raise StoreFull(
            f"{layout.root} has {free:,} bytes free and a generation needs {needed:,}; nothing was "
            "published and readers keep theirs. Free space there, or keep fewer generations, and "
            "publish again: those beyond that number then make room, unless somebody reads them "
            f"or they are younger than {min_age_s:g} s."
        )
    return known


def _free(layout: Layout) -> int:
    return free_bytes(layout.root)


def _needed(target: Path, size: int) -> int:
    """Return the bytes to be written for `target`, with the margin."""
    return size - (target.stat().st_size if target.exists() else 0) + MARGIN_BYTES
