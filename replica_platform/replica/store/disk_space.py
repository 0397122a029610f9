"""Free space for a candidate, and the generations that may make room for it."""

from pathlib import Path

from replica_platform.core.disk_space import free_bytes
from replica_platform.replica.errors import StoreFull
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Manifest, now
from replica_platform.replica.store.retention import Retention, retire
from replica_platform.replica.store.spare import remove_spares, take_spare

# For manifests, and for the file system's own data.
MARGIN_BYTES = 4 * 1024 * 1024


def reserve(layout: Layout, target: Path, size: int, retention: Retention) -> Manifest | None:
    """Make sure that `target` can grow to `size` bytes; turn the spare into it if there is one.

    Generations normally retire after a release. Where the disk has no space for one more, those
    that `retention` lets go retire now, so that keeping fewer makes room.

    Returns:
        The manifest of the spare that `target` now is; None without a spare.

    Raises:
        StoreFull: Nothing was written; a spare that was taken is removed.
    """
    spare = take_spare(layout, target)
    if _free(layout) < _needed(target, size):
        retire(layout, retention, now())
        if spare is None:
            spare = take_spare(layout, target)
    if _free(layout) < _needed(target, size):
        remove_spares(layout)
    free, needed = _free(layout), _needed(target, size)
    if free < needed:
        target.unlink(missing_ok=True)
        raise StoreFull(
            f"{layout.root} has {free:,} bytes free and a generation needs {needed:,}; nothing was "
            "published and readers keep theirs. Free space there, or keep fewer generations, and "
            "publish again: those beyond that number then make room, unless they are being read "
            f"or are younger than {retention.min_age_s:g} s."
        )
    return spare


def _free(layout: Layout) -> int:
    return free_bytes(layout.root)


def _needed(target: Path, size: int) -> int:
    """Return the bytes still to be written for `target`, with the margin."""
    return size - (target.stat().st_size if target.exists() else 0) + MARGIN_BYTES
