"""Which blocks a DuckDB file may change by its next checkpoint, read without DuckDB.

Until a checkpoint is complete, DuckDB must be able to go back to the one before it. So it writes
only blocks that were free then, blocks that did not exist then, and metadata blocks, of which it
fills the unused parts. The header leads to a list of the free blocks and of the metadata blocks.
Layout as in DuckDB's `SingleFileBlockManager` and `MetadataManager`, 1.5 and 2.0.

`test_free_list` compares this rule with random writes; a DuckDB version is in `TESTED` once it
passed. Uses the standard library only.
"""

import os
import struct
from dataclasses import dataclass

from replica_platform.replica.copy.file_format import (
    BLOCK_BYTES,
    HEADER_BYTES,
    Header,
    has_checksum,
    parse_header,
)

TESTED = ("1.5.", "2.0.")
NO_LIST = 0xFFFFFFFFFFFFFFFF
CHECKSUM_BYTES = 8
# A metadata block is divided into so many parts, which are linked to lists.
PARTS = 64
_ID_BITS = 56


class FreeListUnreadable(ValueError):
    """The free list is damaged, or has another layout."""


@dataclass(frozen=True)
class BlockUse:
    """The use of a file's blocks at a checkpoint; blocks are numbered as DuckDB does.

    Attributes:
        header: The file's header.
        bytes: The file's size.
        free: The blocks that were free.
        metadata: The metadata blocks.
    """

    header: Header
    bytes: int
    free: frozenset[int]
    metadata: frozenset[int]

    def may_differ(self, later: "BlockUse") -> set[int]:
        """Return the blocks of 256 KiB that may have changed by `later`, one checkpoint on.

        Block 0 is the header, as in `blocks`. Blocks that are free in `later` are included: a
        transaction that was rolled back after the checkpoint may have written them.
        """
        size = self.header.block_bytes
        ends = [HEADER_BYTES + use.header.block_count * size for use in (self, later)]
        changed = self.free | self.metadata | later.free | later.metadata
        found = {0}
        for block in changed:
            found.update(_covering(block * size, (block + 1) * size))
        # What was beyond the end of either, or of the blocks in use.
        known_end = min(self.bytes, later.bytes, *ends) - HEADER_BYTES
        found.update(_covering(max(0, known_end - 1), later.bytes - HEADER_BYTES))
        last = len(_covering(0, later.bytes - HEADER_BYTES))
        return {block for block in found if block <= last}


def read_block_use(fd: int) -> BlockUse:
    """Read the free list of an open database file at rest.

    Raises:
        NotDuckDB: The header is damaged.
        FreeListUnreadable: The list is damaged, or has another layout.
    """
    header = parse_header(os.pread(fd, HEADER_BYTES, 0))
    size = os.fstat(fd).st_size
    if header.free_list == NO_LIST:
        return BlockUse(header, size, frozenset(), frozenset())
    values = _Values(fd, header)
    free = frozenset(values.block() for _ in range(values.count()))
    for _ in range(values.count()):  # blocks with several owners: how many each has
        values.block()
        values.take("<I")
    metadata = set()
    for _ in range(values.count()):  # metadata blocks: which parts of each are free
        metadata.add(values.block())
        values.take("<Q")
    return BlockUse(header, size, free, frozenset(metadata))


def _covering(start: int, end: int) -> range:
    """Return the blocks of 256 KiB that hold these bytes, counted from the end of the header."""
    return range(1 + start // BLOCK_BYTES, 1 + -(-end // BLOCK_BYTES))


class _Values:
    """The values in a chain of parts of metadata blocks, whose checksums are compared."""

    def __init__(self, fd: int, header: Header) -> None:
        self._fd = fd
        self._header = header
        self._part_bytes = (header.block_bytes - CHECKSUM_BYTES) // PARTS // 8 * 8
        self._blocks: dict[int, bytes] = {}
        self._seen: set[int] = set()
        self._go_to(header.free_list)

    def count(self) -> int:
        """Return the next value, the length of a list."""
        number = self.take("<Q")
        if number > self._header.block_count:
            raise FreeListUnreadable(f"a list of {number} blocks, of {self._header.block_count}")
        return number

    def block(self) -> int:
        """Return the next value, the number of a block."""
        return self.take("<Q")

    def take(self, layout: str) -> int:
        """Return the next value of that layout; it may be divided between two parts."""
        wanted = struct.calcsize(layout)
        found = b""
        while len(found) < wanted:
            if self._at == self._part_bytes:
                self._go_to(self._next)
            piece = self._part[self._at : self._at + wanted - len(found)]
            found += piece
            self._at += len(piece)
        number: int = struct.unpack(layout, found)[0]
        return number

    def _go_to(self, pointer: int) -> None:
        block, part = pointer & ((1 << _ID_BITS) - 1), pointer >> _ID_BITS
        if pointer in self._seen or pointer == NO_LIST or part >= PARTS:
            raise FreeListUnreadable(f"a pointer leads to part {part} of block {block}")
        self._seen.add(pointer)
        start = CHECKSUM_BYTES + part * self._part_bytes
        self._part = self._read(block)[start : start + self._part_bytes]
        self._next = struct.unpack_from("<Q", self._part)[0]
        self._at = 8

    def _read(self, block: int) -> bytes:
        if block not in self._blocks:
            size = self._header.block_bytes
            content = os.pread(self._fd, size, HEADER_BYTES + block * size)
            if len(content) != size or not has_checksum(content):
                raise FreeListUnreadable(f"block {block} does not match its checksum")
            self._blocks[block] = content
        return self._blocks[block]
