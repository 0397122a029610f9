"""A DuckDB file as a list of blocks and their digests: 12288 bytes of header, then 256 KiB each.

The digests are our own (XXH3, 128 bits): DuckDB's block checksum ignores the order of words and
the position of the block, so that two swapped words pass it. Imports `xxhash` on first use.
"""

import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from replica_platform.core.reports import Progress
from replica_platform.replica.copy.checksums import make_checker
from replica_platform.replica.copy.file_format import BLOCK_BYTES, HEADER_BYTES
from replica_platform.replica.copy.priority import lower_priority

# xxhash and numpy release the interpreter's lock, so two threads work at the same time; memory
# bandwidth limits the gain of more.
THREADS = 2
CHUNK_BLOCKS = 64
# Called with the offset and the content of a block, by several threads and in no order.
OnBlock = Callable[[int, memoryview], None]


@dataclass(frozen=True)
class Scan:
    """What one pass over a file found.

    Attributes:
        digests: Each block's digest, in the file's order.
        unsound: Numbers of the blocks that fail DuckDB's own checksum.
        changed: Numbers of the blocks that differ from the known digests.
        read: How many blocks were read.
    """

    digests: list[str]
    unsound: list[int]
    changed: list[int]
    read: int


def block_range(block: int, file_bytes: int) -> tuple[int, int]:
    """Return where a block begins and how many bytes it has, in a file of that size."""
    if block == 0:
        return 0, min(HEADER_BYTES, file_bytes)
    start = HEADER_BYTES + (block - 1) * BLOCK_BYTES
    return start, min(BLOCK_BYTES, file_bytes - start)


def count_blocks(file_bytes: int) -> int:
    """Return how many blocks a file of that size has."""
    return 1 + max(0, -(-(file_bytes - HEADER_BYTES) // BLOCK_BYTES))


def digest(content: bytes | bytearray | memoryview) -> str:
    """Return the digest of one block: 32 hex characters."""
    import xxhash

    return xxhash.xxh3_128_hexdigest(content)


def file_digest(block_digests: list[str]) -> str:
    """Return the digest of a whole file: the digest of its blocks' digests, in order."""
    return digest(bytes.fromhex("".join(block_digests)))


def digest_blocks(path: Path, progress: Progress | None = None) -> list[str]:
    """Return the digest of every block of `path`.

    Opens and closes the file: never use it on a file that DuckDB has open in this process.
    """
    return scan_file(path, progress=progress).digests


def scan_file(
    path: Path,
    duckdb_block_bytes: int | None = None,
    progress: Progress | None = None,
    known: Sequence[str] = (),
    only: Collection[int] | None = None,
) -> Scan:
    """Scan the file at `path`; see `scan`.

    Opens and closes the file: never use it on a file that DuckDB has open in this process.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return scan(fd, os.fstat(fd).st_size, duckdb_block_bytes, progress, known, None, only)
    finally:
        os.close(fd)


def scan(
    fd: int,
    file_bytes: int,
    duckdb_block_bytes: int | None = None,
    progress: Progress | None = None,
    known: Sequence[str] = (),
    on_changed: OnBlock | None = None,
    only: Collection[int] | None = None,
) -> Scan:
    """Read the blocks of an open file once and compute their digests.

    Args:
        fd: The open file.
        file_bytes: Its size.
        duckdb_block_bytes: DuckDB's block size; without it DuckDB's checksums are not compared.
        progress: Told the blocks that are done.
        known: Digests of a file that was verified before. A block with an equal digest is not
            compared with DuckDB's checksum again.
        on_changed: Called with each other block.
        only: Read only these blocks and those beyond `known`, whose digests the others keep; by
            default all.
    """
    total = count_blocks(file_bytes)
    digests = [*known[:total], *[""] * (total - len(known))]
    wanted: Sequence[int] = range(total)
    if only is not None:
        wanted = sorted({block for block in only if block < total} | {*range(len(known), total)})

    def scan_chunk(first: int) -> Scan:
        buffer = bytearray(BLOCK_BYTES)
        is_sound = make_checker(duckdb_block_bytes) if duckdb_block_bytes else None
        found, unsound, changed = [], [], []
        for block in wanted[first : first + CHUNK_BLOCKS]:
            start, size = block_range(block, file_bytes)
            view = memoryview(buffer)[:size]
            _read_exactly(fd, view, start)
            found.append(digest(view))
            if block < len(known) and known[block] == found[-1]:
                continue
            changed.append(block)
            if block and is_sound and not is_sound(view):
                unsound.append(block)
            if on_changed:
                on_changed(start, view)
        return Scan(found, unsound, changed, len(found))

    chunks: list[Scan] = []
    with ThreadPoolExecutor(THREADS, "scan", initializer=lower_priority) as pool:
        for chunk in pool.map(scan_chunk, range(0, len(wanted), CHUNK_BLOCKS)):
            chunks.append(chunk)
            if progress:
                done = min(len(chunks) * CHUNK_BLOCKS, len(wanted))
                progress(done, len(wanted), "blocks")
    for block, found in zip(
        wanted, (digest for chunk in chunks for digest in chunk.digests), strict=True
    ):
        digests[block] = found
    return Scan(
        digests,
        [block for chunk in chunks for block in chunk.unsound],
        [block for chunk in chunks for block in chunk.changed],
        len(wanted),
    )


def _read_exactly(fd: int, view: memoryview, start: int) -> None:
    done = 0
    while done < len(view):
        got = os.preadv(fd, [view[done:]], start + done)
        if got == 0:
            raise EOFError("The file became shorter while it was read.")
        done += got
