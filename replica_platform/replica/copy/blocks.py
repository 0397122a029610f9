"""A DuckDB file as a list of blocks: a header of 12288 bytes, then 256 KiB each.

Digests are our own (XXH3, 128 bits): DuckDB's checksum of a block knows neither the order of its
words nor the block's place, so two swapped words pass it. `xxhash` is imported when first used.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from replica_platform.core.reports import Progress
from replica_platform.replica.copy.checksums import checker
from replica_platform.replica.copy.header import BLOCK_BYTES, HEADER_BYTES
from replica_platform.replica.copy.priority import step_back

# xxhash and numpy release the interpreter's lock over a block, so two threads work side by
# side; more gain nothing, for memory is the limit.
THREADS = 2
CHUNK_BLOCKS = 64
Take = Callable[[int, memoryview], None]


@dataclass(frozen=True)
class Survey:
    """Each block's digest, in order; `unsound` are those that fail DuckDB's own checksum, and
    `changed` counts those that are not what was known before."""

    digests: list[str]
    unsound: list[int]
    changed: int = 0


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
    return survey(path, progress=progress).digests


def survey(
    path: Path, *, duckdb_block_bytes: int | None = None, progress: Progress | None = None
) -> Survey:
    """Read every block of `path`, once; DuckDB's checksums are compared if its block size is given.

    As for `digests`, never for a file that DuckDB holds open in this process.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return survey_of(fd, os.fstat(fd).st_size, duckdb_block_bytes, progress)
    finally:
        os.close(fd)


def survey_of(
    fd: int,
    file_bytes: int,
    duckdb_block_bytes: int | None = None,
    progress: Progress | None = None,
    known: Sequence[str] = (),
    take: Take | None = None,
) -> Survey:
    """The same for an open file of that size.

    known: digests by block of a file that was verified before; where they are equal, DuckDB's
    checksum is not computed again. take: given where each other block begins, and its bytes,
    by several threads and in no order.
    """
    total = count(file_bytes)

    def some(first: int) -> Survey:
        buffer = bytearray(BLOCK_BYTES)
        is_sound = checker(duckdb_block_bytes) if duckdb_block_bytes else None
        found, unsound, changed = [], [], 0
        for block in range(first, min(first + CHUNK_BLOCKS, total)):
            start, size = span(block, file_bytes)
            view = memoryview(buffer)[:size]
            _read_exactly(fd, view, start)
            found.append(digest(view))
            if block < len(known) and known[block] == found[-1]:
                continue
            changed += 1
            if block and is_sound and not is_sound(view):
                unsound.append(block)
            if take:
                take(start, view)
        return Survey(found, unsound, changed)

    parts: list[Survey] = []
    with ThreadPoolExecutor(THREADS, "survey", initializer=step_back) as pool:
        for part in pool.map(some, range(0, total, CHUNK_BLOCKS)):
            parts.append(part)
            if progress:
                progress(min(len(parts) * CHUNK_BLOCKS, total), total, "blocks")
    return Survey(
        [digest for part in parts for digest in part.digests],
        [block for part in parts for block in part.unsound],
        sum(part.changed for part in parts),
    )


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
