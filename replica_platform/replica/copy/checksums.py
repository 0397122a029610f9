"""DuckDB's own checksum of a block, computed without DuckDB.

Each block begins with eight bytes: 5381 XOR every other word times a constant. This finds a bit
that a disk flipped in the master, at some 5 GB/s; reading the tables would take seconds a gigabyte.
It ignores the order of words and blocks, which our own digests cover. Imports numpy on first use.
"""

from collections.abc import Callable

from replica_platform.replica.copy.file_format import CHECKSUM_PRIME, CHECKSUM_SEED


def make_checker(block_bytes: int) -> Callable[[memoryview], bool]:
    """Return a function that tells whether every DuckDB block in a piece of a file is sound.

    The function reuses one buffer and is not thread-safe: make one for each thread.
    """
    import numpy as np

    prime, seed = np.uint64(CHECKSUM_PRIME), np.uint64(CHECKSUM_SEED)
    words = block_bytes // 8
    scratch = np.empty(words - 1, dtype=np.uint64)

    def is_sound(piece: memoryview) -> bool:
        if len(piece) % block_bytes:
            return False
        for block in np.frombuffer(piece, dtype="<u8").reshape(-1, words):
            np.multiply(block[1:], prime, out=scratch)
            if np.bitwise_xor.reduce(scratch) ^ seed != block[0]:
                return False
        return True

    return is_sound
