"""DuckDB's file header, read without DuckDB: who a file is, and how often it was checkpointed.

Three sectors of 4096 bytes: the file's identity, then two alternating database headers of which
the one with the higher iteration counts. Layout as in DuckDB's `main_header` and
`database_header` (storage versions 64 to 69). Only the standard library is used here.
"""

import struct
from array import array
from dataclasses import dataclass

SECTOR = 4096
HEADER_BYTES = 3 * SECTOR
BLOCK_BYTES = 256 * 1024
MAGIC = b"DUCK"
CHECKSUM_PRIME = 0xBF58476D1CE4E5B9
CHECKSUM_SEED = 5381
_WORD = 0xFFFFFFFFFFFFFFFF


@dataclass(frozen=True)
class Header:
    """`db_id` names the database (zeros in old storage); `iteration` counts its checkpoints.

    `blocks` is no measure of the file: DuckDB cuts free blocks off its end without counting down.
    """

    storage: int
    library: str
    db_id: str
    iteration: int
    blocks: int
    block_bytes: int

    @property
    def has_identity(self) -> bool:
        return self.db_id.strip("0") != ""


class NotDuckDB(ValueError):
    """The bytes are no DuckDB header, or one that was torn or corrupted."""


def parse_header(raw: bytes) -> Header:
    """Parse the first 12288 bytes of a file. Errors: `NotDuckDB`."""
    if len(raw) < HEADER_BYTES or raw[8:12] != MAGIC:
        raise NotDuckDB("it does not begin with DuckDB's header")
    sound = [_is_sound(raw[at : at + SECTOR]) for at in range(0, HEADER_BYTES, SECTOR)]
    if not sound[0] or not any(sound[1:]):
        raise NotDuckDB("its header does not match its own checksum")
    iteration, blocks, block_bytes = max(
        _database_header(raw, at)
        for at, good in ((SECTOR, sound[1]), (2 * SECTOR, sound[2]))
        if good
    )
    return Header(
        storage=struct.unpack_from("<Q", raw, 12)[0],
        library=raw[52:84].rstrip(b"\0").decode(errors="replace"),
        db_id=raw[124:140].hex(),
        iteration=iteration,
        blocks=blocks,
        block_bytes=block_bytes or BLOCK_BYTES,
    )


def _database_header(raw: bytes, at: int) -> tuple[int, int, int]:
    iteration, _meta, _free, blocks, block_bytes = struct.unpack_from("<QqqQQ", raw, at + 8)
    return iteration, blocks, block_bytes


def _is_sound(sector: bytes) -> bool:
    words = array("Q", sector)
    # A header never written yet is all zeros: sound only if its checksum says so.
    total = CHECKSUM_SEED
    for word in words[1:]:
        total ^= (word * CHECKSUM_PRIME) & _WORD
    return total == words[0]
