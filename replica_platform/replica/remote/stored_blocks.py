"""The blocks of a block store: each once, compressed with zstd, under its digest."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from replica_platform.core.reports import Progress
from replica_platform.replica.copy.blocks import block_range, digest
from replica_platform.replica.errors import BlockMissing, BlockStoreDamaged
from replica_platform.replica.remote.objects import Objects
from replica_platform.replica.store.manifest import Manifest

COMPRESSION_LEVEL = 3
# Each waits for the network most of the time.
CONNECTIONS = 8


class StoredBlocks:
    """The blocks in a block store."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def digests(self) -> set[str]:
        """Return the digests of all blocks, also of those that are marked as unused."""
        names = [name for folder in ("blocks", "unused") for name in self._objects.names(folder)]
        return {digest_of(name) for name in names}

    def read(self, block_digest: str, size: int) -> bytes:
        """Return a block of that size in bytes, compared with its digest.

        Raises:
            BlockMissing: It is not there.
            BlockStoreDamaged: It is damaged.
        """
        import zstandard

        packed = self._objects.read(object_name(block_digest)) or self._read_unused(block_digest)
        if packed is None:
            raise BlockMissing(
                f"The block {block_digest} is missing from {self._objects.where}; push the "
                "generation again with resend, or pull another one."
            )
        try:
            content = zstandard.ZstdDecompressor().decompress(packed, max_output_size=size)
        except zstandard.ZstdError:
            content = b""
        if digest(content) != block_digest:
            raise BlockStoreDamaged(
                f"The block {block_digest} in {self._objects.where} is damaged; push the "
                "generation again with resend, or pull another one."
            )
        return content

    def verify(self, manifest: Manifest) -> tuple[int, int, int]:
        """Read every block of a generation; return how many there are, are missing and damaged."""
        sizes = {
            block_digest: block_range(block, manifest.bytes)[1]
            for block, block_digest in enumerate(manifest.block_digests)
        }

        def inspect(item: tuple[str, int]) -> str | None:
            try:
                self.read(*item)
            except BlockMissing:
                return "missing"
            except BlockStoreDamaged:
                return "damaged"
            return None

        with ThreadPoolExecutor(CONNECTIONS, "verify") as pool:
            found = list(pool.map(inspect, sizes.items()))
        return len(sizes), found.count("missing"), found.count("damaged")

    def send(
        self,
        path: Path,
        manifest: Manifest,
        missing: dict[str, int],
        resend: bool,
        progress: Progress | None,
    ) -> tuple[int, int]:
        """Send blocks, by digest and number; return how many blocks and bytes were sent.

        A block that an interrupted push has sent is not sent again.
        """
        import zstandard

        put = self._objects.replace if resend else self._objects.create
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

        def send_block(item: tuple[str, int]) -> int:
            block_digest, block = item
            name = object_name(block_digest)
            if not resend and self._objects.exists(name):
                return 0
            start, size = block_range(block, manifest.bytes)
            content = os.pread(fd, size, start)
            if digest(content) != block_digest:
                raise BlockStoreDamaged(
                    f"Block {block} of {path.name} is not what was published, so it was not sent; "
                    "repair the generation here, and push again."
                )
            packed = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL).compress(content)
            put(name, packed)
            return len(packed)

        blocks_sent = bytes_sent = 0
        try:
            with ThreadPoolExecutor(CONNECTIONS, "push") as pool:
                for done, size in enumerate(pool.map(send_block, missing.items())):
                    bytes_sent += size
                    blocks_sent += size > 0
                    if progress:
                        progress(done + 1, len(missing), "blocks")
        finally:
            os.close(fd)
        return blocks_sent, bytes_sent

    def _read_unused(self, block_digest: str) -> bytes | None:
        """Return a block that a prune marked while a push counted on it."""
        for name in self._objects.names("unused"):
            if digest_of(name) == block_digest:
                # It may have been restored since it was listed.
                return self._objects.read(name) or self._objects.read(object_name(block_digest))
        return None


def numbered(manifest: Manifest) -> dict[str, int]:
    """Return the number of the first block with each digest."""
    numbers: dict[str, int] = {}
    for block, block_digest in enumerate(manifest.block_digests):
        numbers.setdefault(block_digest, block)
    return numbers


def digest_of(name: str) -> str:
    """Return the digest in the name of a block's object."""
    return Path(name).stem


def object_name(block_digest: str) -> str:
    """Return the name of a block's object."""
    return f"blocks/{block_digest[:2]}/{block_digest}.zst"
