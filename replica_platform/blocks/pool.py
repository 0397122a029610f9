"""Blocks in an object store: each once, compressed with zstd, under its digest.

    blocks/3f/3fa9c1d2….zst              one block
    unused/20260102T030405Z/3fa9….zst    one that no manifest names since then; see `mark_unused`

Which digests are needed is the caller's knowledge: it keeps the manifests, and sends one only after
its blocks.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath

from replica_platform.blocks.cipher import Cipher, WrongKey
from replica_platform.blocks.errors import BlockMissing, BlockStoreDamaged
from replica_platform.blocks.objects import Objects
from replica_platform.core.reports import Progress

COMPRESSION_LEVEL = 3
# Each waits for the network most of the time.
CONNECTIONS = 8
# A block that no manifest names may belong to a push that is still running.
PRUNE_AGE = timedelta(days=1)
UNUSED_SINCE = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True)
class Sent:
    """What was sent.

    Attributes:
        blocks: How many blocks.
        bytes: Their size, compressed.
    """

    blocks: int
    bytes: int


@dataclass(frozen=True)
class Unusable:
    """How many blocks cannot be read.

    Attributes:
        missing: Blocks that are not there.
        damaged: Blocks whose content differs from their digest.
    """

    missing: int
    damaged: int


@dataclass(frozen=True)
class Swept:
    """What became of the blocks that were marked as unused.

    Attributes:
        marked: How many stay marked.
        restored: How many are needed again.
        removed: How many were removed.
    """

    marked: int
    restored: int
    removed: int


class BlockPool:
    """The blocks below a name of an object store.

    Args:
        objects: The object store.
        digest: Returns the digest of a block's content, in hexadecimal.
        advice: What to do where a block is missing or damaged, the end of a sentence.
        prefix: What the objects' names begin with, empty or with a slash at its end.
        cipher: Encrypts the blocks; they are kept in clear if None.
    """

    def __init__(
        self,
        objects: Objects,
        digest: Callable[[bytes], str],
        advice: str,
        prefix: str = "",
        cipher: Cipher | None = None,
    ) -> None:
        self.objects = objects
        self._cipher = cipher
        self._digest = digest
        self._advice = advice
        self._prefix = prefix

    def read(self, block_digest: str, size: int) -> bytes:
        """Return one block, compared with its digest.

        Args:
            block_digest: The digest.
            size: The block's size in bytes.

        Raises:
            BlockMissing: It is not there.
            BlockStoreDamaged: It is damaged.
            BlockStoreUnavailable: The request failed.
        """
        import zstandard

        packed = self.objects.read(self._name(block_digest)) or self._read_unused(block_digest)
        if packed is None:
            raise BlockMissing(
                f"The block {block_digest} is missing from {self.objects.where}; {self._advice}."
            )
        try:
            if self._cipher:
                packed = self._cipher.unseal(packed, block_digest)
            content = zstandard.ZstdDecompressor().decompress(packed, max_output_size=size)
        except (zstandard.ZstdError, WrongKey):
            content = b""
        if self._digest(content) != block_digest:
            raise BlockStoreDamaged(
                f"The block {block_digest} in {self.objects.where} is damaged; {self._advice}."
            )
        return content

    def send(
        self,
        digests: Collection[str],
        content_of: Callable[[str], bytes],
        *,
        resend: bool = False,
        progress: Progress | None = None,
    ) -> Sent:
        """Send blocks; one that an interrupted call has sent is not sent again.

        Args:
            digests: The blocks, each once.
            content_of: Returns a block's content; called by several threads.
            resend: Replace blocks that exist, to repair damaged ones.
            progress: Told the blocks that are done.

        Raises:
            BlockStoreUnavailable: A request failed.
        """
        import zstandard

        put = self.objects.replace if resend else self.objects.create

        def send(block_digest: str) -> int:
            name = self._name(block_digest)
            if not resend and self.objects.exists(name):
                return 0
            content = content_of(block_digest)
            packed = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL).compress(content)
            if self._cipher:
                packed = self._cipher.seal(packed, block_digest)
            put(name, packed)
            return len(packed)

        blocks_sent = bytes_sent = 0
        with ThreadPoolExecutor(CONNECTIONS, "push") as pool:
            for done, size in enumerate(pool.map(send, digests), start=1):
                bytes_sent += size
                blocks_sent += size > 0
                if progress:
                    progress(done, len(digests), "blocks")
        return Sent(blocks_sent, bytes_sent)

    def present(self) -> set[str]:
        """Return the digests of all blocks, also of those that are marked as unused.

        Raises:
            BlockStoreUnavailable: A request failed.
        """
        return {
            _digest_in(name)
            for folder in ("blocks", "unused")
            for name in self.objects.names(self._prefix + folder)
        }

    def verify(self, sizes: Mapping[str, int]) -> Unusable:
        """Read blocks and compare them with their digests.

        Args:
            sizes: The size of each block in bytes, by its digest.

        Raises:
            BlockStoreUnavailable: A request failed.
        """

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
        return Unusable(found.count("missing"), found.count("damaged"))

    def mark_unused(self, needed: Collection[str], now: datetime) -> None:
        """Rename the blocks that no manifest names, so that a push from now on sends them again.

        A block younger than `PRUNE_AGE` stays, because it may belong to a push that is still
        running.

        Args:
            needed: The digests of all blocks that a manifest names.
            now: The moment, in UTC.

        Raises:
            BlockStoreUnavailable: A request failed.
        """
        unused = [
            name
            for name, created in self.objects.names(f"{self._prefix}blocks").items()
            if _digest_in(name) not in needed and created < now - PRUNE_AGE
        ]
        for name in unused:
            file = PurePosixPath(name).name
            self.objects.rename(name, f"{self._prefix}unused/{now:{UNUSED_SINCE}}/{file}")

    def sweep(self, needed: Collection[str], now: datetime) -> Swept:
        """Remove the blocks that have been marked for `PRUNE_AGE`; restore those that are needed.

        Args:
            needed: The digests of all blocks that a manifest names, read after the marking.
            now: The moment, in UTC.

        Raises:
            BlockStoreUnavailable: A request failed.
        """
        unused = list(self.objects.names(f"{self._prefix}unused"))
        restored = [name for name in unused if _digest_in(name) in needed]
        for name in restored:
            self.objects.rename(name, self._name(_digest_in(name)))
        removed = [
            name
            for name in unused
            if _digest_in(name) not in needed and _unused_since(name) <= now - PRUNE_AGE
        ]
        self.objects.remove(removed)
        return Swept(len(unused) - len(restored) - len(removed), len(restored), len(removed))

    def _read_unused(self, block_digest: str) -> bytes | None:
        """Return a block that a prune marked while a push counted on it."""
        for name in self.objects.names(f"{self._prefix}unused"):
            if _digest_in(name) == block_digest:
                # It may have been restored since it was listed.
                return self.objects.read(name) or self.objects.read(self._name(block_digest))
        return None

    def _name(self, block_digest: str) -> str:
        return f"{self._prefix}blocks/{block_digest[:2]}/{block_digest}.zst"


def all_digests(manifests: Iterable[Iterable[str]]) -> set[str]:
    """Return the digests that at least one of the manifests names."""
    return {block_digest for digests in manifests for block_digest in digests}


def _digest_in(name: str) -> str:
    return PurePosixPath(name).stem


def _unused_since(name: str) -> datetime:
    moment = PurePosixPath(name).parent.name
    return datetime.strptime(moment, UNUSED_SINCE).replace(tzinfo=UTC)
