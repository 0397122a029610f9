"""Atomic, durable writes of files: a reader, and a power cut, see the old file or the new one.

A temporary name in the same folder, fsync, rename, fsync of the folder. What engines share about
the file system belongs here; the content of a file does not.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def fsync_file(path: Path) -> None:
    """Write a file's content through to the disk, so that it survives a power cut."""
    _fsync(path, os.O_RDONLY)


def fsync_dir(folder: Path) -> None:
    """Write a folder's entries (a rename in it, a new file) through to the disk."""
    _fsync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _fsync(path: Path, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def replacing(
    target: Path, mode: int = 0o644, step: Callable[[str], None] = lambda _: None
) -> Iterator[Path]:
    """Yield a temporary path beside `target`; after the block it becomes `target`, durably.

    On any error the temporary file is removed and `target` is as it was.

    Args:
        target: The file to make or replace.
        mode: The mode of the new file.
        step: Called with the name of each step before it, so that a test can stop there.
    """
    temporary = target.parent / f".tmp-{target.name}-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        yield temporary
        temporary.chmod(mode)
        step("fsync")
        fsync_file(temporary)
        step("rename")
        temporary.replace(target)
        step("fsync folder")
        fsync_dir(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(target: Path, content: bytes, mode: int = 0o644) -> None:
    """Replace the content of `target`: a reader sees the old file or the new one."""
    with replacing(target, mode) as temporary:
        temporary.write_bytes(content)
