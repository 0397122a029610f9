"""How much room a disk has: asked before anything large is written to it."""

import os
from pathlib import Path


def free_bytes(folder: Path) -> int:
    """Return how many bytes a user without privileges can still write to the disk of `folder`."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def shortage(folder: Path, needed_bytes: int) -> str | None:
    """Say in half a sentence how much room is missing below `folder`; None where there is enough.

    Each engine raises its own error from it, with the advice that fits: "… has 1.0 MiB free of
    the 3.0 MiB that are needed".
    """
    free = free_bytes(folder)
    if free >= needed_bytes:
        return None
    # Imported here: a worker that appends to an outbox never needs it.
    from replica_platform.core.reports import format_bytes

    return f"{folder} has {format_bytes(free)} free of the {format_bytes(needed_bytes)} needed"
