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
from collections.abc import Iterable, Mapping
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
# `BlockUse` has a field named `bytes`, which hides the type inside the class.
Raw = bytes


class FreeListUnreadable(ValueError):
    """The free list is damaged, or has another layout."""


@dataclass(frozen=True)
class BlockUse:
    """The use of a file's blocks at a checkpoint; blocks are numbered as DuckDB does.

    Attributes:
        header: The file's header.
        bytes: The file's size.
        free: The blocks that were free.
        metadata: For each metadata block, which of its parts are free: the bits of a number.
    """

    header: Header
    bytes: int
    free: frozenset[int]
    metadata: Mapping[int, int]

    def may_differ(self, later: "BlockUse") -> set[int]:
        """Return the blocks of 256 KiB that may have changed by `later`, one checkpoint on.

        Block 0 is the header, as in `blocks`. Blocks that are free in `later` are included: a
        transaction that was rolled back after the checkpoint may have written them.
        """
        size = self.header.block_bytes
        ends = [HEADER_BYTES + use.header.block_count * size for use in (self, later)]
        changed = self.free | later.free | {*self.metadata, *later.metadata}
        found = {0}
        for block in changed:
            found.update(_covering(block * size, (block + 1) * size))
        # What was beyond the end of either, or of the blocks in use.
        known_end = min(self.bytes, later.bytes, *ends) - HEADER_BYTES
        found.update(_covering(max(0, known_end - 1), later.bytes - HEADER_BYTES))
        last = len(_covering(0, later.bytes - HEADER_BYTES))
        return {block for block in found if block <= last}

    def is_unused(self, block: int, one: Raw, other: Raw) -> bool:
        """Return whether two contents of a block differ only where nothing is stored.

        A write that was rolled back or killed leaves such bytes.
        """
        if block in self.free or block >= self.header.block_count:
            return True
        if block not in self.metadata or len(one) != len(other):
            return False
        size = part_bytes(self.header)
        ends = range(CHECKSUM_BYTES, CHECKSUM_BYTES + PARTS * size, size)
        return all(
            self.metadata[block] >> part & 1 or one[at : at + size] == other[at : at + size]
            for part, at in enumerate(ends)
        )


def differ_only_unused(ours: int, theirs: int, blocks: Iterable[int]) -> bool:
    """Return whether two open files of one header differ only where nothing is stored.

    Args:
        ours: A database file at rest.
        theirs: The other one.
        blocks: The blocks of 256 KiB that differ.

    Raises:
        NotDuckDB: The header is damaged.
        FreeListUnreadable: The free list is damaged, or has another layout.
    """
    use = read_block_use(ours)
    size = use.header.block_bytes
    for block in blocks:
        if block == 0:
            return False
        for inner in range((block - 1) * BLOCK_BYTES // size, block * BLOCK_BYTES // size):
            one, other = (os.pread(fd, size, HEADER_BYTES + inner * size) for fd in (ours, theirs))
            if one != other and not use.is_unused(inner, one, other):
                return False
    return True


def read_block_use(fd: int) -> BlockUse:
    """Read the free list of an open database file at rest.

    Raises:
        NotDuckDB: The header is damaged.
        FreeListUnreadable: The list is damaged, or has another layout.
    """
    header = parse_header(os.pread(fd, HEADER_BYTES, 0))
    size = os.fstat(fd).st_size
    if header.free_list == NO_LIST:
        return BlockUse(header, size, frozenset(), {})
    values = _Values(fd, header)
    free = frozenset(values.block() for _ in range(values.count()))
    for _ in range(values.count()):  # blocks with several owners: how many each has
        values.block()
        values.take("<I")
    metadata = {values.block(): values.take("<Q") for _ in range(values.count())}
    return BlockUse(header, size, free, metadata)


def part_bytes(header: Header) -> int:
    """Return the size of each part of a metadata block."""
    return (header.block_bytes - CHECKSUM_BYTES) // PARTS // 8 * 8


def _covering(start: int, end: int) -> range:
    """Return the blocks of 256 KiB that hold these bytes, counted from the end of the header."""
    return range(1 + start // BLOCK_BYTES, 1 + -(-end // BLOCK_BYTES))


class _Values:
    """The values in a chain of parts of metadata blocks, whose checksums are compared."""

    def __init__(self, fd: int, header: Header) -> None:
        self._fd = fd
        self._header = header
        self._part_bytes = part_bytes(header)
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
