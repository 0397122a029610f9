"""Generations in an object store: each block once, compressed, under its digest.

    blocks/3f/3fa9c1d2….zst              one block, compressed with zstd
    manifests/stock_data.000012-3fa9c1d2.json
                                          one generation
    pointers/00000007.json               the manifest of the current one; the highest number counts
    unused/20260102T030405Z/3fa9….zst    a block that no manifest names since then; see `prune`

The pointer moves by creating the next object only if it does not exist: a compare-and-swap that a
folder and every S3 support. Pulling, rolling back and repair are one operation: take a manifest
and fetch the blocks that are missing.
"""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from replica_platform.blocks.errors import BlockStoreDamaged
from replica_platform.blocks.objects import Objects
from replica_platform.blocks.pool import PRUNE_AGE, BlockPool, Sent, all_digests
from replica_platform.core.reports import Progress
from replica_platform.replica.copy.blocks import block_range, digest
from replica_platform.replica.errors import NothingPublished
from replica_platform.replica.remote.assemble import assemble
from replica_platform.replica.remote.index import Index, stem
from replica_platform.replica.remote.reports import BlockStoreVerification, Pruned, Pushed
from replica_platform.replica.serving.lease import Lease
from replica_platform.replica.store.candidate import Publication
from replica_platform.replica.store.integrity import Unusable, find_damage
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Manifest, generation_in, now
from replica_platform.replica.store.moment import At
from replica_platform.replica.store.ownership import assert_same_purpose
from replica_platform.replica.store.retention import Retention

ADVICE = "push the generation again with resend, or pull another one"


class BlockStore:
    """A block store in a folder, or below a URL such as s3://bucket/prefix.

    Args:
        where: The folder or the URL.
        **config: Options of obstore, see `Objects`.
    """

    def __init__(self, where: str | Path, **config: Any) -> None:
        self.objects = Objects(where, **config)
        self.index = Index(self.objects)
        self._blocks = BlockPool(self.objects, digest, ADVICE)

    def push(
        self,
        store: Path | str,
        generation: int | None = None,
        *,
        resend: bool = False,
        progress: Progress | None = None,
    ) -> Pushed:
        """Send a generation: the blocks that are missing, its manifest, then the pointer.

        Generations of an earlier definition of the purpose are withdrawn; `prune` removes their
        blocks.

        Args:
            store: The local store.
            generation: Its number; by default the current one.
            resend: Send every block, to repair damaged ones.
            progress: Told the blocks that are sent.

        Returns:
            What was sent.

        Raises:
            NothingPublished: The local store does not have it.
            WrongStore: The block store belongs to another purpose.
            BlockStoreUnavailable: A request failed.
            BlockStoreDamaged: The local file or a manifest is damaged.
            PointerMoved: Another push moved the pointer at the same time.
        """
        started = time.monotonic()
        layout = Layout(store)
        # The seal is that of this machine's file.
        manifest = replace(_undamaged(layout, generation), seal=None)
        number, current = self.index.last_pointer()
        if current is not None:
            assert_same_purpose(self.objects.where, current.purpose, manifest.purpose)
        relied_on = {} if resend else self.index.read_all()
        present = all_digests(one.block_digests for one in relied_on.values())
        numbers = _numbers(manifest)
        missing = {one: block for one, block in numbers.items() if one not in present}
        try:
            lease = Lease.take(layout, manifest)
        except Unusable as error:
            raise NothingPublished(f"{error}; push the current generation instead.") from error
        path = layout.data(manifest)
        try:
            sent = self._send(path, manifest, missing, resend, progress)
            self.index.add(manifest)
            # A prune that begins from here on keeps the blocks of the manifest. One in between may
            # have removed blocks that were not sent because they were there.
            late = time.monotonic() - started > PRUNE_AGE.total_seconds() / 2
            if late or not set(relied_on) <= set(self.index.names()):
                there = self._blocks.present()
                lost = {one: block for one, block in numbers.items() if one not in there}
                again = self._send(path, manifest, lost, resend, progress)
                sent = Sent(sent.blocks + again.blocks, sent.bytes + again.bytes)
        finally:
            lease.release()
        if current is None or current.to_json() != manifest.to_json():
            self.index.move_pointer(number, manifest)
        withdrawn = self.index.withdraw_earlier_definitions(manifest)
        return Pushed(
            generation=manifest.generation,
            block_count=len(manifest.block_digests),
            blocks_sent=sent.blocks,
            bytes=manifest.bytes,
            bytes_sent=sent.bytes,
            seconds=time.monotonic() - started,
            withdrawn=withdrawn,
        )

    def pull(
        self,
        store: Path | str,
        generation: At | None = None,
        *,
        keep: int = 3,
        min_age_s: float = 60.0,
        progress: Progress | None = None,
    ) -> Publication:
        """Make a generation the current one of a local store.

        Blocks that local generations have are taken from them; the others are fetched. The file
        is verified and released like any other.

        Args:
            store: The local store's folder; made if absent.
            generation: Its number, or a day or a time, for the last one published by then, as
                `ReplicaReader` takes them; by default the one that the pointer names.
            keep: How many generations stay.
            min_age_s: How long, in seconds, each stays at least.
            progress: Told the blocks that are fetched.

        Returns:
            What was published.

        Raises:
            NothingPublished: The block store does not have it.
            BlockStoreUnavailable: A request failed.
            BlockStoreDamaged: A block or a manifest is missing or damaged.
            ValueError: It is a time without a zone, or a text that is no number, day or time.
            PlatformError: The local store refused it, as in `publish`.
        """
        candidate = assemble(
            Layout(store),
            self.index.find(generation),
            self.block,
            Retention(keep, min_age_s),
            progress,
        )
        return candidate.release()

    def current(self) -> Manifest | None:
        """Return the generation that the pointer names; None before the first push.

        Returns:
            Its manifest.

        Raises:
            BlockStoreUnavailable: A request failed.
            BlockStoreDamaged: The pointer is damaged.
        """
        return self.index.last_pointer()[1]

    def generations(self) -> list[int]:
        """Return the generations that can be pulled, newest first.

        Returns:
            Their numbers.

        Raises:
            BlockStoreUnavailable: A request failed.
        """
        return [generation_in(name) or 0 for name in self.index.names()]

    def point(self, generation: int) -> Manifest:
        """Make a generation, older or newer, the one that others pull.

        Args:
            generation: Its number.

        Returns:
            Its manifest.

        Raises:
            NothingPublished: The block store does not have it.
            PointerMoved: Another process moved the pointer at the same time.
            BlockStoreUnavailable: A request failed.
            BlockStoreDamaged: Its manifest is damaged.
        """
        number, _ = self.index.last_pointer()
        manifest = replace(self.index.find(generation), confirmed_at=now())
        self.index.move_pointer(number, manifest)
        return manifest

    def block(self, block_digest: str, size: int) -> bytes:
        """Return one block, compared with its digest.

        Args:
            block_digest: The digest.
            size: The block's size in bytes.

        Returns:
            Its content.

        Raises:
            BlockMissing: It is not there.
            BlockStoreDamaged: It is damaged.
            BlockStoreUnavailable: The request failed.
        """
        return self._blocks.read(block_digest, size)

    def verify(self, generation: int | None = None) -> BlockStoreVerification:
        """Fetch every block of a generation and compare it with its digest.

        Args:
            generation: Its number; by default the one that the pointer names.

        Returns:
            How many blocks are missing or damaged.

        Raises:
            NothingPublished: The block store does not have it.
            BlockStoreUnavailable: A request failed.
            BlockStoreDamaged: Its manifest is damaged.
        """
        manifest = self.index.find(generation)
        sizes = {
            block_digest: block_range(block, manifest.bytes)[1]
            for block_digest, block in _numbers(manifest).items()
        }
        found = self._blocks.verify(sizes)
        ok = found.missing + found.damaged == 0
        return BlockStoreVerification(
            manifest.generation, len(sizes), ok, found.missing, found.damaged
        )

    def prune(self, keep: int) -> Pruned:
        """Remove all generations but the newest and the current one, and their blocks.

        A block that no manifest names is marked: renamed, so that a push from then on sends it
        again. A prune that runs a day later removes it, or restores it if a push in between
        counted on it. A block younger than a day is not marked, because it may belong to a push
        that is still running.

        Args:
            keep: How many generations stay.

        Returns:
            What was marked, restored and removed.

        Raises:
            BlockStoreUnavailable: A request failed.
            BlockStoreDamaged: A manifest is damaged.
        """
        number, current = self.index.last_pointer()
        old = [
            name
            for name in self.index.names()[keep:]
            if current is None or Path(name).stem != stem(current)
        ]
        pointers = sorted(self.objects.names("pointers"))
        self.objects.remove(old + pointers[:-1] if number else old)
        moment = now()
        self._blocks.mark_unused(self.index.needed(), moment)
        # Read again: a push may have ended since.
        swept = self._blocks.sweep(self.index.needed(), moment)
        return Pruned(
            generations=sorted(generation_in(name) or 0 for name in old),
            marked=swept.marked,
            restored=swept.restored,
            removed=swept.removed,
        )

    def _send(
        self,
        path: Path,
        manifest: Manifest,
        missing: dict[str, int],
        resend: bool,
        progress: Progress | None,
    ) -> Sent:
        """Send blocks of a generation's file, by digest and number."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

        def content_of(block_digest: str) -> bytes:
            block = missing[block_digest]
            start, size = block_range(block, manifest.bytes)
            content = os.pread(fd, size, start)
            if digest(content) != block_digest:
                raise BlockStoreDamaged(
                    f"Block {block} of {path.name} is not what was published, so it was not sent; "
                    "repair the generation here, and push again."
                )
            return content

        try:
            return self._blocks.send(missing, content_of, resend=resend, progress=progress)
        finally:
            os.close(fd)


def _numbers(manifest: Manifest) -> dict[str, int]:
    """Return the number of the first block with each digest."""
    numbers: dict[str, int] = {}
    for block, block_digest in enumerate(manifest.block_digests):
        numbers.setdefault(block_digest, block)
    return numbers


def _undamaged(layout: Layout, generation: int | None) -> Manifest:
    manifest = layout.find(generation)
    if damage := find_damage(layout.data(manifest), manifest):
        raise BlockStoreDamaged(
            f"Generation {manifest.generation} is damaged here ({damage}) and was not pushed; "
            "repair it, and push again."
        )
    return manifest
