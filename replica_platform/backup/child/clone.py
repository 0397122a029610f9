"""Copy the file that a pull replaces, and say what is in each of its blocks."""

from pathlib import Path

from replica_platform.backup.child.contents import digest_blocks
from replica_platform.backup.child.file_copy import copy_bytes
from replica_platform.backup.child.messages import BlockDigests
from replica_platform.core.reports import Progress


def clone(previous: Path, copy: Path, size: int, progress: Progress) -> BlockDigests:
    """Copy a file that no program writes to; return the digest of each block of the copy.

    Args:
        previous: The file, without changes in a WAL.
        copy: The file to make.
        size: The bytes of a block.
        progress: Not called; the pull reports what is moved.
    """
    # Unbuffered: a read is a block.
    with previous.open("rb", 0) as source, copy.open("w+b", 0) as target:
        copy_bytes(source.fileno(), target.fileno(), 0, previous.stat().st_size)
        target.seek(0)
        return BlockDigests(digest_blocks(target, size))
