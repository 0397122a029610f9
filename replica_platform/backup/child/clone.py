"""Copy the file that a pull replaces, and say what is in each of its blocks."""

import os
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

from replica_platform.backup.child.contents import digest_blocks
from replica_platform.backup.child.file_copy import copy_bytes
from replica_platform.backup.child.messages import BlockDigests
from replica_platform.core.reports import Progress

BLOCKS_AT_ONCE = 64


def clone(previous: Path, copy: Path, size: int, progress: Progress) -> BlockDigests:
    """Copy a file that no program writes to; return the digest of each block of the copy.

    Args:
        previous: The file, without changes in a WAL.
        copy: The file to make.
        size: The bytes of a block.
        progress: Not called; the pull reports what is moved.
    """
    total, step = previous.stat().st_size, BLOCKS_AT_ONCE * size
    with previous.open("rb", 0) as source, copy.open("w+b", 0) as target:

        def clone_part(start: int) -> list[str]:
            count = min(step, total - start)
            copy_bytes(source.fileno(), target.fileno(), start, count)
            return digest_blocks(BytesIO(os.pread(target.fileno(), count, start)), size)

        # Copying and hashing release the interpreter's lock.
        with ThreadPoolExecutor(os.cpu_count(), "clone") as threads:
            parts = threads.map(clone_part, range(0, total, step))
            return BlockDigests([digest for part in parts for digest in part])
