"""One file made from another, block for block, by the cheapest way the file system has.

In order: a reflink (shares the blocks, on XFS, btrfs and the like), a retired generation of
which only the blocks that differ are written, the whole file. Each returns a survey of what the
source was, for the candidate to be compared with. `block_bytes` is DuckDB's.
"""

import errno
import fcntl
import os
from collections.abc import Sequence
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
    known: Sequence[str],
    block_bytes: int,
    progress: Progress | None = None,
) -> Copied:
    """Write into `target` the blocks in which the source differs from `known`, its digests.

    `target` must be a file that nobody else can see or holds.
    """
    made = os.open(target, os.O_RDWR | os.O_CLOEXEC)
    return _write(source, made, known, "patch", block_bytes, progress)


def full(source: int, target: Path, block_bytes: int, progress: Progress | None = None) -> Copied:
    """Copy every block into the new file `target`."""
    return _write(source, _create(target), (), "copy", block_bytes, progress)


def _create(target: Path) -> int:
    return os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _write(
    source: int,
    made: int,
    known: Sequence[str],
    how: str,
    block_bytes: int,
    progress: Progress | None,
) -> Copied:
    """Read the source once: what is digested is what is written, from the same memory."""
    try:
        size = os.fstat(source).st_size
        os.ftruncate(made, size)
        survey = blocks.survey_of(
            source,
            size,
            block_bytes,
            progress,
            known,
            lambda start, content: _write_at(made, content, start),
        )
    finally:
        os.close(made)
    return Copied(how, survey, survey.changed)


def _write_at(file: int, content: memoryview, start: int) -> None:
    done = 0
    while done < len(content):
        done += os.pwrite(file, content[done:], start + done)
