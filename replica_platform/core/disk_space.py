"""Free space on a disk, checked before anything large is written to it."""

import os
from pathlib import Path


def free_bytes(folder: Path) -> int:
    """Return how many bytes an unprivileged user can still write to the disk of `folder`."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def shortage(folder: Path, needed_bytes: int) -> str | None:
    """Return the beginning of an error's sentence if space is missing below `folder`.

    Each engine adds its own advice.

    Args:
        folder: A folder on the disk.
        needed_bytes: The bytes to be written.

    Returns:
        For example "/data has 1.0 MiB free of the 3.0 MiB needed"; None if there is enough space.
    """
    free = free_bytes(folder)
    if free >= needed_bytes:
        return None
    # Imported here, since a worker that appends to an outbox never needs it.
    from replica_platform.core.reports import format_bytes

    return f"{folder} has {format_bytes(free)} free of the {format_bytes(needed_bytes)} needed"
