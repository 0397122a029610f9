"""A DuckDB file as a list of blocks: a header of 12288 bytes, then 256 KiB each.

Digests are our own (XXH3, 128 bits): DuckDB's checksum of a block knows neither the order of its
words nor the block's place, so two swapped words pass it. `xxhash` is imported when first used.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from replica_platform.replica.header import BLOCK_BYTES, HEADER_BYTES

# xxhash releases the interpreter's lock while it hashes a block, so two threads read side by
# side; more gain nothing, for memory is the limit.
THREADS = 2
CHUNK_BLOCKS = 64

Progress = Callable[[int, int], None]


def span(block: int, file_bytes: int) -> tuple[int, int]:
    """Where a block begins and how many bytes it has in a file of that size."""
    if block == 0:
        return 0, min(HEADER_BYTES, file_bytes)
    start = HEADER_BYTES + (block - 1) * BLOCK_BYTES
    return start, min(BLOCK_BYTES, file_bytes - start)


def count(file_bytes: int) -> int:
    """How many blocks a file of that size has."""
    return 1 + max(0, -(-(file_bytes - HEADER_BYTES) // BLOCK_BYTES))


def digest(content: bytes | bytearray | memoryview) -> str:
    """The digest of one block: 32 hex characters."""
    import xxhash

    return xxhash.xxh3_128_hexdigest(content)


def digests(path: Path, progress: Progress | None = None) -> list[str]:
    """The digest of every block of `path`.

    The file is opened and closed: never for one that DuckDB holds open in this process.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return digests_of(fd, os.fstat(fd).st_size, progress)
    finally:
        os.close(fd)


def digests_of(fd: int, file_bytes: int, progress: Progress | None = None) -> list[str]:
    """The same for an open file of that size."""
    total = count(file_bytes)

    def some(first: int) -> list[str]:
        buffer = bytearray(BLOCK_BYTES)
        found = []
        for block in range(first, min(first + CHUNK_BLOCKS, total)):
            start, size = span(block, file_bytes)
            view = memoryview(buffer)[:size]
            _read_exactly(fd, view, start)
            found.append(digest(view))
        return found

    result: list[str] = []
    with ThreadPoolExecutor(THREADS, "digest") as pool:
        for found in pool.map(some, range(0, total, CHUNK_BLOCKS)):
            result += found
            if progress:
                progress(len(result), total)
    return result


def root(blocks: list[str]) -> str:
    """The digest of a whole file: that of its blocks' digests, in order."""
    return digest(bytes.fromhex("".join(blocks)))


def _read_exactly(fd: int, view: memoryview, start: int) -> None:
    done = 0
    while done < len(view):
        got = os.preadv(fd, [view[done:]], start + done)
        if got == 0:
            raise EOFError("The file became shorter while it was read.")
        done += got
