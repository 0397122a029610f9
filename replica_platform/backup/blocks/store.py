"""Backups in a block store: their manifests, and which blocks each one needs.

    backups/manifests/app_backup_20260101_030000.manifest      of backups in clear
    backups/blocks/3f/3fa9c1d2….zst
    backups-5c0e…/manifests/…, backups-5c0e…/blocks/…          encrypted with the key of that id

A manifest is sent after its blocks and never changed. It has the manifest that lies in the folder
of backups, and the digest of each block; compressed and, with a key, encrypted. What is recorded
later (verifications, drills) is only in the folder.
"""

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from replica_platform.backup.errors import NameTaken
from replica_platform.backup.manifest import Backup, parse_fields
from replica_platform.blocks.cipher import Cipher, WrongKey, digest
from replica_platform.blocks.errors import BlockMissing, BlockStoreDamaged
from replica_platform.blocks.objects import Objects
from replica_platform.blocks.pool import CONNECTIONS, PRUNE_AGE, BlockPool, Sent, all_digests
from replica_platform.core.reports import Progress

FORMAT = 1
# A change dirties pages of 4 KiB all over a file. Sixteen of them make a block: smaller ones would
# cost more requests than they save bytes.
BLOCK_BYTES = 1 << 16
BLOCKS_AT_ONCE = 16
SUFFIX = ".manifest"
ADVICE = "restore an older backup, and take a new one"


@dataclass(frozen=True)
class SentFile:
    """A file whose blocks were sent, and what was relied on for that.

    Attributes:
        file: The file.
        digests: The digest of each block, in the order of the file.
        bytes: The size of the file.
        bytes_sent: Bytes that were sent, compressed.
        relied_on: The manifest whose blocks were not sent again; None if there was none.
        began_s: When it began, by the monotonic clock.
    """

    file: Path
    digests: list[str]
    bytes: int
    bytes_sent: int
    relied_on: str | None
    began_s: float


class BackupBlocks:
    """The backups of one key, or those in clear, in a block store.

    Args:
        where: A folder, or a URL such as s3://bucket/prefix.
        cipher: The key's cipher; None for backups in clear.
    """

    def __init__(self, where: str | Path, cipher: Cipher | None) -> None:
        self._cipher = cipher
        self._prefix = f"backups-{cipher.key_id}/" if cipher else "backups/"
        self._objects = Objects(where if "://" in str(where) else Path(where).absolute())
        self._digest = cipher.digest if cipher else digest
        self._pool = BlockPool(self._objects, self._digest, ADVICE, self._prefix, cipher)

    @property
    def where(self) -> str:
        """The address, as a manifest has it."""
        return self._objects.where

    @property
    def key_id(self) -> str | None:
        """The id of the key; None for backups in clear."""
        return self._cipher.key_id if self._cipher else None

    def digests(self, file: Path) -> list[str]:
        """Return the digest of each block of a quiet file, for `send`.

        Several threads compute them; hashing releases the interpreter's lock.
        """
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        step = BLOCKS_AT_ONCE * BLOCK_BYTES

        def hashed(start: int) -> list[str]:
            chunk = memoryview(os.pread(fd, step, start))
            return [
                self._digest(chunk[at : at + BLOCK_BYTES])
                for at in range(0, len(chunk), BLOCK_BYTES)
            ]

        try:
            with ThreadPoolExecutor(os.cpu_count(), "digest") as threads:
                chunks = threads.map(hashed, range(0, os.fstat(fd).st_size, step))
                return [block_digest for chunk in chunks for block_digest in chunk]
        finally:
            os.close(fd)

    def send(
        self,
        file: Path,
        digests: list[str],
        name: str,
        *,
        resend: bool = False,
        progress: Progress | None = None,
    ) -> SentFile:
        """Send the blocks of a file that the newest backup of `name` does not have.

        What an interrupted call has sent is not sent again.

        Args:
            file: A quiet file.
            digests: What `digests` returned for it.
            name: The stem of the source's file name.
            resend: Send every block, because those in the store are damaged or missing.
            progress: Told the blocks that are sent.

        Raises:
            BlockStoreUnavailable: A request failed.
            BlockStoreDamaged: The manifest of the newest backup is damaged.
        """
        began = time.monotonic()
        relied_on = None if resend else max(self.manifests(name), default=None)
        present = set(self._contents(relied_on)[1]) if relied_on else set()
        sent = self._send(file, digests, present, resend, progress)
        return SentFile(file, digests, file.stat().st_size, sent.bytes, relied_on, began)

    def record(self, sent: SentFile, backup: Backup) -> None:
        """Create the manifest of a file whose blocks were sent.

        Raises:
            NameTaken: The store has another backup of this name and second.
            BlockStoreUnavailable: A request failed.
        """
        name = self._name(backup)
        # In a folder, the blocks are durable before the manifest that names them is.
        self._objects.make_durable()
        content = self._packed(name, sent, backup)
        if not self._objects.create(name, content) and self._objects.read(name) != content:
            raise NameTaken(
                f"{self.where} has another backup {PurePosixPath(name).stem}, so this one was not "
                "kept; give one of the two files another name, or try again in a second."
            )
        # A prune that begins from here on keeps the blocks of the manifest. One in between may
        # have removed blocks that were not sent because they were there.
        is_late = time.monotonic() - sent.began_s > PRUNE_AGE.total_seconds() / 2
        if is_late or (sent.relied_on and not self._objects.exists(sent.relied_on)):
            self._send(sent.file, sent.digests, self._pool.present(), False, None)
        self._objects.make_durable()

    def manifests(self, name: str | None = None) -> list[str]:
        """Return the names of the manifests of one file, or of all, in no order."""
        found = (one for one in self._objects.names(f"{self._prefix}manifests"))
        return [one for one in found if name in (None, _file_name(one).rsplit("_backup_", 1)[0])]

    def backup(self, manifest: str, folder: Path) -> Backup:
        """Return the backup that a manifest describes, as one of the folder.

        Raises:
            BlockStoreUnavailable: The request failed.
            BlockStoreDamaged: It is damaged, or gone.
        """
        fields, _ = self._contents(manifest)
        found = parse_fields({**fields, "blocks": self.where}, folder)
        if found is None or f"{found.file.stem}{SUFFIX}" != PurePosixPath(manifest).name:
            raise self._damaged(manifest)
        return found

    def has(self, backup: Backup) -> bool:
        """Return whether the store has the manifest of a backup."""
        return self._objects.exists(self._name(backup))

    def receive(self, backup: Backup, file: Path, progress: Progress | None = None) -> None:
        """Write the content of a backup to a file; each block is compared with its digest.

        Raises:
            BlockStoreUnavailable: A request failed.
            BlockStoreDamaged: A block or the manifest is missing or damaged.
        """
        _, digests = self._contents(self._name(backup))
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

        def fetch(number: int) -> None:
            start = number * BLOCK_BYTES
            size = min(BLOCK_BYTES, backup.bytes - start)
            os.pwrite(fd, self._pool.read(digests[number], size), start)

        try:
            os.ftruncate(fd, backup.bytes)
            with ThreadPoolExecutor(CONNECTIONS, "receive") as threads:
                for done, _none in enumerate(threads.map(fetch, range(len(digests))), start=1):
                    if progress:
                        progress(done, len(digests), "blocks")
        finally:
            os.close(fd)

    def remove(self, backup: Backup) -> None:
        """Remove the manifest of a backup; `prune` removes the blocks."""
        self._objects.remove([self._name(backup)])

    def prune(self, now: datetime | None = None) -> None:
        """Mark the blocks that no manifest names; remove those that are marked for a day.

        Raises:
            BlockStoreUnavailable: A request failed.
            BlockStoreDamaged: A manifest is damaged; nothing was removed.
        """
        moment = now or datetime.now(UTC)
        self._pool.mark_unused(self._needed(), moment)
        # Read again: a backup may have ended since.
        self._pool.sweep(self._needed(), moment)

    def _needed(self) -> set[str]:
        return all_digests(self._contents(name)[1] for name in self.manifests())

    def _send(
        self,
        file: Path,
        digests: list[str],
        present: set[str],
        resend: bool,
        progress: Progress | None,
    ) -> Sent:
        missing = {
            block_digest: number
            for number, block_digest in enumerate(digests)
            if block_digest not in present
        }
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return self._pool.send(
                missing,
                lambda block_digest: os.pread(fd, BLOCK_BYTES, missing[block_digest] * BLOCK_BYTES),
                resend=resend,
                progress=progress,
            )
        finally:
            os.close(fd)

    def _name(self, backup: Backup) -> str:
        return f"{self._prefix}manifests/{backup.file.stem}{SUFFIX}"

    def _packed(self, name: str, sent: SentFile, backup: Backup) -> bytes:
        import zstandard

        content = {
            "format": FORMAT,
            "backup": json.loads(backup.manifest_text()),
            "block_bytes": BLOCK_BYTES,
            "digests": sent.digests,
        }
        packed = zstandard.ZstdCompressor().compress(json.dumps(content).encode())
        return self._cipher.seal(packed, name) if self._cipher else packed

    def _contents(self, name: str) -> tuple[dict[str, object], list[str]]:
        """Return a manifest's fields and digests."""
        import zstandard

        packed = self._objects.read(name)
        if packed is None:
            raise BlockMissing(f"The manifest {name} is missing from {self.where}; {ADVICE}.")
        try:
            raw = self._cipher.unseal(packed, name) if self._cipher else packed
            content = json.loads(zstandard.ZstdDecompressor().decompress(raw))
            fields, digests = content["backup"], content["digests"]
            known = content["format"] == FORMAT and content["block_bytes"] == BLOCK_BYTES
        except (WrongKey, zstandard.ZstdError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(name) from error
        if not known:
            raise BlockStoreDamaged(
                f"The manifest {name} in {self.where} was written by a newer version; use that."
            )
        return fields, digests

    def _damaged(self, name: str) -> BlockStoreDamaged:
        return BlockStoreDamaged(
            f"The manifest {name} in {self.where} is damaged, so nothing was removed there; "
            "remove it if you can do without that backup, and take a new one."
        )


def _file_name(manifest: str) -> str:
    return PurePosixPath(manifest).name


def stores_of(backups: list[Backup]) -> Iterator[tuple[str, str | None]]:
    """Yield the address and the key id of each block store that backups are in, once."""
    yield from dict.fromkeys((one.blocks, one.key_id) for one in backups if one.blocks)
