"""Copies of one file, block for block, by the cheapest method that the file system offers.

In order: a reflink (shares the blocks, on XFS, btrfs and others), a retired generation in which
only the changed blocks are written, a whole copy. Each returns a scan of the source, which the
candidate is compared with. `block_bytes` is DuckDB's block size.
"""

import errno
import fcntl
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from replica_platform.core.reports import Progress
from replica_platform.replica.copy import blocks

FICLONE = 0x40049409
NO_REFLINK = (
    errno.EOPNOTSUPP,
    errno.ENOTTY,
    errno.EXDEV,
    errno.EINVAL,
    errno.ENOSYS,
    errno.EPERM,
)


@dataclass(frozen=True)
class FileCopy:
    """A finished copy.

    Attributes:
        how: The method: reflink, patch, copy, or build for a purpose replica.
        scan: The scan of the source.
        blocks_written: How many blocks were written.
    """

    how: str
    scan: blocks.Scan
    blocks_written: int


def reflink(source: int, target: Path, block_bytes: int) -> FileCopy | None:
    """Share the source's blocks; return None where the file system cannot."""
    copy = _create(target)
    try:
        fcntl.ioctl(copy, FICLONE, source)
    except OSError as error:
        target.unlink()
        if error.errno in NO_REFLINK:
            return None
        raise
    finally:
        os.close(copy)
    return FileCopy("reflink", blocks.scan(source, os.fstat(source).st_size, block_bytes), 0)


def patch(
    source: int,
    target: Path,
    known: Sequence[str],
    block_bytes: int,
    progress: Progress | None = None,
    only: Collection[int] | None = None,
) -> FileCopy:
    """Write into `target`, whose digests are `known`, the blocks in which the source differs.

    No other process may see or hold `target`. With `only`, the others are known to be equal.
    """
    copy = os.open(target, os.O_RDWR | os.O_CLOEXEC)
    return _write(source, copy, known, "patch", block_bytes, progress, only)


def copy_whole(
    source: int, target: Path, block_bytes: int, progress: Progress | None = None
) -> FileCopy:
    """Copy every block into the new file `target`."""
    return _write(source, _create(target), (), "copy", block_bytes, progress)


def _create(target: Path) -> int:
    return os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _write(
    source: int,
    target: int,
    known: Sequence[str],
    how: str,
    block_bytes: int,
    progress: Progress | None,
    only: Collection[int] | None = None,
) -> FileCopy:
    """Read the source once: the bytes that are digested are the bytes that are written."""
    try:
        size = os.fstat(source).st_size
        os.ftruncate(target, size)
        scan = blocks.scan(
            source,
            size,
            block_bytes,
            progress,
            known,
            lambda start, content: _write_at(target, content, start),
            only,
        )
    finally:
        os.close(target)
    return FileCopy(how, scan, len(scan.changed))


def _write_at(fd: int, content: memoryview, start: int) -> None:
    done = 0
    while done < len(content):
        done += os.pwrite(fd, content[done:], start + done)
