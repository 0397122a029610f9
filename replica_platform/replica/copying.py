"""One file made from another, block for block, by the cheapest way the file system has.

In order: a reflink (shares the blocks, on XFS, btrfs and the like), a retired generation of
which only the blocks that differ are written, a copy in the kernel. Each returns a survey of
what the source was, for the candidate to be compared with. `block_bytes` is DuckDB's.
"""

import errno
import fcntl
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from replica_platform.replica import blocks

FICLONE = 0x40049409
CHUNK_BYTES = 16 * 1024 * 1024
NO_REFLINK = (
    errno.EOPNOTSUPP,
    errno.ENOTTY,
    errno.EXDEV,
    errno.EINVAL,
    errno.ENOSYS,
    errno.EPERM,
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Copied:
    """How it went: `survey` is the source's, `blocks_written` what had to be written."""

    how: str
    survey: blocks.Survey
    blocks_written: int


def reflink(source: int, target: Path, block_bytes: int) -> Copied | None:
    """Share the source's blocks; None where the file system cannot."""
    made = _create(target)
    try:
        fcntl.ioctl(made, FICLONE, source)
    except OSError as error:
        target.unlink()
        if error.errno in NO_REFLINK:
            return None
        raise
    finally:
        os.close(made)
    survey = blocks.survey_of(source, os.fstat(source).st_size, block_bytes)
    return Copied("reflink", survey, 0)


def patch(
    source: int,
    target: Path,
    known: list[str],
    block_bytes: int,
    progress: Progress | None = None,
) -> Copied:
    """Write into `target` the blocks in which the source differs from `known`, its digests.

    `target` must be a file that nobody else can see or holds.
    """
    size = os.fstat(source).st_size
    survey = blocks.survey_of(source, size, block_bytes, known=known)
    wanted = survey.digests
    changed = [i for i, digest in enumerate(wanted) if i >= len(known) or known[i] != digest]
    made = os.open(target, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.ftruncate(made, size)
        for done, block in enumerate(changed):
            start, length = blocks.span(block, size)
            _copy_range(source, made, start, length)
            if progress:
                progress(done + 1, len(changed))
    finally:
        os.close(made)
    return Copied("patch", survey, len(changed))


def full(source: int, target: Path, block_bytes: int, progress: Progress | None = None) -> Copied:
    """Copy everything; the source is surveyed beside it, while its pages are at hand."""
    size = os.fstat(source).st_size
    made = _create(target)
    try:
        with ThreadPoolExecutor(1, "survey") as pool:
            surveying = pool.submit(blocks.survey_of, source, size, block_bytes)
            for start in range(0, size, CHUNK_BYTES):
                _copy_range(source, made, start, min(CHUNK_BYTES, size - start))
                if progress:
                    progress(min(start + CHUNK_BYTES, size), size)
            survey = surveying.result()
    finally:
        os.close(made)
    return Copied("copy", survey, len(survey.digests))


def _create(target: Path) -> int:
    return os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _copy_range(source: int, target: int, start: int, length: int) -> None:
    done = 0
    while done < length:
        at = start + done
        try:
            moved = os.copy_file_range(source, target, length - done, at, at)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
            moved = os.pwrite(target, os.pread(source, min(length - done, 1 << 20), at), at)
        if moved == 0:
            raise EOFError("The source became shorter while it was copied.")
        done += moved
