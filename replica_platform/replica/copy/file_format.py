"""DuckDB's files without DuckDB: header, block size, logs beside a file, and the catalog's name.

The header has three sectors of 4096 bytes: the database's identity, then two alternating database
headers, of which the one with the higher iteration counts. Layout as in DuckDB's `main_header`
and `database_header` (storage versions 64 to 69). Uses the standard library only.
"""

import struct
from array import array
from dataclasses import dataclass
from pathlib import Path

SECTOR = 4096
HEADER_BYTES = 3 * SECTOR
BLOCK_BYTES = 256 * 1024
MAGIC = b"DUCK"
FLAGS_AT = 20
ENCRYPTED = 1
CHECKSUM_PRIME = 0xBF58476D1CE4E5B9
CHECKSUM_SEED = 5381
LOG_SUFFIXES = (".wal", ".wal.checkpoint", ".wal.recovery")
_WORD = 0xFFFFFFFFFFFFFFFF


@dataclass(frozen=True)
class Header:
    """A database's identity, checkpoint count, free list and block size.

    Attributes:
        storage: The storage version's number.
        library: The DuckDB version that wrote the header.
        db_id: The database's identity, in hex; zeros in storage older than v1.5.0.
        iteration: The number of checkpoints so far.
        block_count: Blocks in use. Not a measure of the file's size: DuckDB cuts free blocks off
            the end of the file without lowering this count.
        block_bytes: The size of a block.
        free_list: Where the list of free blocks begins, see `free_list`; all bits set for none.
    """

    storage: int
    library: str
    db_id: str
    iteration: int
    block_count: int
    block_bytes: int
    free_list: int

    @property
    def has_identity(self) -> bool:
        """Whether the header names its database."""
        return self.db_id.strip("0") != ""


class NotDuckDB(ValueError):
    """The bytes are not a DuckDB header, or a torn or damaged one."""


class Encrypted(NotDuckDB):
    """The header of an encrypted database, of which only the first sector can be read."""


def parse_header(raw: bytes) -> Header:
    """Parse the first 12288 bytes of a file.

    Raises:
        Encrypted: The database is encrypted.
        NotDuckDB: No DuckDB header, or its checksums do not match.
    """
    if len(raw) < HEADER_BYTES or raw[8:12] != MAGIC:
        raise NotDuckDB("it does not begin with DuckDB's header")
    if raw[FLAGS_AT] & ENCRYPTED:
        raise Encrypted("it is encrypted")
    sound = [has_checksum(raw[at : at + SECTOR]) for at in range(0, HEADER_BYTES, SECTOR)]
    if not sound[0] or not any(sound[1:]):
        raise NotDuckDB("its header does not match its own checksum")
    iteration, free_list, block_count, block_bytes = max(
        _database_header(raw, at)
        for at, is_sound in ((SECTOR, sound[1]), (2 * SECTOR, sound[2]))
        if is_sound
    )
    return Header(
        storage=struct.unpack_from("<Q", raw, 12)[0],
        library=raw[52:84].rstrip(b"\0").decode(errors="replace"),
        db_id=raw[124:140].hex(),
        iteration=iteration,
        block_count=block_count,
        block_bytes=block_bytes or BLOCK_BYTES,
        free_list=free_list,
    )


def logs_beside(path: Path) -> list[Path]:
    """Return the log files of the database at `path`; a cleanly closed one has none."""
    logs = [path.with_name(path.name + suffix) for suffix in LOG_SUFFIXES]
    return [log for log in logs if log.exists()]


def catalog_name(file: str) -> str:
    """Return the name that DuckDB gives the catalog of a file with that name."""
    name = base_name(file)
    return f"{name}_db" if name in ("main", "temp", "system") else name


def base_name(file: str) -> str:
    """Return the part of a file's name that DuckDB names its catalog after."""
    return next((part for part in file.split(".") if part), file)


def attach_sql(path: Path, catalog: str) -> str:
    """Return the statement that attaches a file for reading, in place of one of the same name."""
    text = str(path).replace("'", "''")
    return f"attach or replace '{text}' as {quoted(catalog)} (read_only)"


def use_sql(catalog: str) -> str:
    """Return the statement after which names of tables are looked up in that catalog."""
    return f"use {quoted(catalog)}.main"


def quoted(name: str) -> str:
    """Return a name as an identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'


def has_checksum(block: bytes) -> bool:
    """Return whether a header's sector, or a block, matches the checksum that it begins with."""
    # A database header that was never written is all zeros, and fails its checksum.
    words = array("Q", block)
    total = CHECKSUM_SEED
    for word in words[1:]:
        total ^= (word * CHECKSUM_PRIME) & _WORD
    return total == words[0]


def _database_header(raw: bytes, at: int) -> tuple[int, int, int, int]:
    iteration, _meta, free_list, block_count, block_bytes = struct.unpack_from(
        "<QQQQQ", raw, at + 8
    )
    return iteration, free_list, block_count, block_bytes
