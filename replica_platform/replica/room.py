"""The store's folders, and whether its disk has room for a generation."""

import os

from replica_platform.replica.errors import StoreFull, explaining
from replica_platform.replica.layout import Layout

# Beside the copy itself: manifests, and what the file system keeps for itself.
MARGIN_BYTES = 4 * 1024 * 1024


def make_folders(layout: Layout) -> None:
    """Make the store's folders. Errors: `StoreDenied`."""
    with explaining(layout.root):
        for folder in (layout.root, layout.generations, layout.candidates, layout.spares):
            folder.mkdir(parents=True, exist_ok=True)


def assert_room(layout: Layout, needed: int) -> None:
    """Errors: `StoreFull`, before anything is written."""
    disk = os.statvfs(layout.root)
    free = disk.f_bavail * disk.f_frsize
    if free < needed + MARGIN_BYTES:
        raise StoreFull(
            f"{layout.root} has {free:,} bytes free and a generation needs {needed:,} more; "
            "nothing was published and readers keep theirs. Free space, or keep fewer generations."
        )
