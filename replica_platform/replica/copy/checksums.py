"""DuckDB's own checksum of a block, computed without DuckDB.

Each block begins with eight bytes: 5381 XOR every other word times a constant. It finds the bit
that a disk flipped in the master, at some 5 GB/s, where reading the tables would cost seconds a
gigabyte; it does not know the order of words or blocks, for which there are our digests. numpy
is imported when first used.
"""

from collections.abc import Callable

from replica_platform.replica.copy.header import CHECKSUM_PRIME, CHECKSUM_SEED


def checker(block_bytes: int) -> Callable[[memoryview], bool]:
    """A function that tells whether every DuckDB block in a piece of the file is sound.

    Not thread-safe: each thread makes its own, for it works in a buffer of its own.
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
