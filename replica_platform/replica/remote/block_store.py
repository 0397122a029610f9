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

import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from replica_platform.core.reports import Progress
from replica_platform.replica.errors import BlockStoreDamaged, NothingPublished
from replica_platform.replica.remote.assemble import assemble
from replica_platform.replica.remote.index import Index
from replica_platform.replica.remote.objects import Objects
from replica_platform.replica.remote.prune import prune
from replica_platform.replica.remote.reports import (
    PRUNE_AGE,
    BlockStoreVerification,
    Pruned,
    Pushed,
)
from replica_platform.replica.remote.stored_blocks import StoredBlocks, numbered
from replica_platform.replica.serving.lease import Lease
from replica_platform.replica.store.candidate import Publication
from replica_platform.replica.store.integrity import Unusable, find_damage
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Manifest, generation_in, now
from replica_platform.replica.store.ownership import assert_same_purpose
from replica_platform.replica.store.retention import Retention


class BlockStore:
    """A block store in a folder, or below a URL such as s3://bucket/prefix.

    Args:
        where: The folder or the URL.
        **config: Options of obstore, see `Objects`.
    """

    def __init__(self, where: str | Path, **config: Any) -> None:
        self.objects = Objects(where, **config)
        self.index = Index(self.objects)
        self.blocks = StoredBlocks(self.objects)

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
        present = {one for other in relied_on.values() for one in other.block_digests}
        wanted = numbered(manifest)
        missing = {one: block for one, block in wanted.items() if one not in present}
        try:
            lease = Lease.take(layout, manifest)
        except Unusable as error:
            raise NothingPublished(f"{error}; push the current generation instead.") from error
        path = layout.data(manifest)
        try:
            blocks_sent, bytes_sent = self.blocks.send(path, manifest, missing, resend, progress)
            self.index.add(manifest)
            # A prune that begins from here on keeps the blocks of the manifest. One in between may
            # have removed blocks that were not sent because they were there.
            late = time.monotonic() - started > PRUNE_AGE.total_seconds() / 2
            if late or not set(relied_on) <= set(self.index.names()):
                there = self.blocks.digests()
                lost = {one: block for one, block in wanted.items() if one not in there}
                again, bytes_again = self.blocks.send(path, manifest, lost, resend, progress)
                blocks_sent, bytes_sent = blocks_sent + again, bytes_sent + bytes_again
        finally:
            lease.release()
        if current is None or current.to_json() != manifest.to_json():
            self.index.move_pointer(number, manifest)
        withdrawn = self.index.withdraw_earlier_definitions(manifest)
        return Pushed(
            generation=manifest.generation,
            block_count=len(manifest.block_digests),
            blocks_sent=blocks_sent,
            bytes=manifest.bytes,
            bytes_sent=bytes_sent,
            seconds=time.monotonic() - started,
            withdrawn=withdrawn,
        )

    def pull(
        self,
        store: Path | str,
        generation: int | datetime | None = None,
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
            generation: Its number, or a time, for the last one published by then; by default the
                one that the pointer names.
            keep: How many generations stay.
            min_age_s: How long, in seconds, each stays at least.
            progress: Told the blocks that are fetched.

        Returns:
            What was published.

        Raises:
            NothingPublished: The block store does not have it.
            BlockStoreUnavailable: A request failed.
            BlockStoreDamaged: A block or a manifest is missing or damaged.
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
        return self.blocks.read(block_digest, size)

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
        count, missing, damaged = self.blocks.verify(manifest)
        return BlockStoreVerification(
            manifest.generation, count, missing + damaged == 0, missing, damaged
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
        return prune(self.objects, self.index, keep)


def _undamaged(layout: Layout, generation: int | None) -> Manifest:
    manifest = layout.find(generation)
    if damage := find_damage(layout.data(manifest), manifest):
        raise BlockStoreDamaged(
            f"Generation {manifest.generation} is damaged here ({damage}) and was not pushed; "
            "repair it, and push again."
        )
    return manifest
