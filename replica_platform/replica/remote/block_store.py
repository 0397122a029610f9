"""Generations in an object store: each block once, compressed, under its digest.

    blocks/3f/3fa9c1d2….zst              one block, compressed with zstd
    manifests/stock_data.000012-3fa9c1d2.json
                                          one generation
    pointers/00000007.json               the manifest of the current one; the highest number counts
    unused/20260102T030405Z/3fa9….zst    a block that no manifest names since then; see `prune`

`blocks.pool` sends, reads and removes the blocks; manifests and the pointer are kept here.

The pointer moves by creating the next object only if it does not exist: a compare-and-swap that a
folder and every S3 support. Pulling, rolling back and repair are one operation: take a manifest
and fetch the blocks that are missing.
"""

import json
import os
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from replica_platform.blocks.errors import BlockStoreDamaged
from replica_platform.blocks.objects import Objects
from replica_platform.blocks.pool import PRUNE_AGE, BlockPool, Sent, all_digests
from replica_platform.core.reports import DoneReport, Progress, ReportFields, format_bytes
from replica_platform.replica.copy.blocks import block_range, digest
from replica_platform.replica.errors import NothingPublished, PointerMoved
from replica_platform.replica.remote.assemble import assemble
from replica_platform.replica.serving.lease import Lease
from replica_platform.replica.store.candidate import Publication
from replica_platform.replica.store.integrity import Unusable, find_damage
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Manifest, NotAManifest, generation_in, now
from replica_platform.replica.store.ownership import assert_same_purpose
from replica_platform.replica.store.retention import Retention

ADVICE = "push the generation again with resend, or pull another one"


@dataclass(frozen=True)
class Pushed(DoneReport):
    """What a push sent.

    Attributes:
        generation: The generation.
        block_count: How many blocks it has.
        blocks_sent: How many of them were sent.
        bytes: The size of its file.
        bytes_sent: How many bytes were sent, compressed.
        seconds: How long it took.
    """

    generation: int
    block_count: int
    blocks_sent: int
    bytes: int
    bytes_sent: int
    seconds: float

    @property
    def sentence(self) -> str:
        """What was sent."""
        return (
            f"Generation {self.generation} is in the block store: {self.blocks_sent:,} of "
            f"{self.block_count:,} blocks sent, {format_bytes(self.bytes_sent)}."
        )


@dataclass(frozen=True)
class BlockStoreVerification(ReportFields):
    """Whether every block of a generation can be fetched undamaged.

    Attributes:
        generation: The generation.
        block_count: How many different blocks it has.
        ok: Whether all of them are right.
        missing: How many are missing.
        damaged: How many are damaged.
    """

    generation: int
    block_count: int
    ok: bool
    missing: int
    damaged: int

    @property
    def sentence(self) -> str:
        """What is wrong and what to do next, or that all is well."""
        if self.ok:
            return f"Every block of generation {self.generation} in the block store is intact."
        return (
            f"{self.missing} blocks of generation {self.generation} are missing from the block "
            f"store and {self.damaged} are damaged; push it again with resend."
        )


@dataclass(frozen=True)
class Pruned(ReportFields):
    """What a prune did.

    Attributes:
        generations: The generations that were removed.
        marked: How many blocks no manifest names any more; a later prune removes them.
        restored: How many marked blocks were needed again.
        removed: How many blocks were removed.
    """

    generations: list[int]
    marked: int
    restored: int
    removed: int

    @property
    def ok(self) -> bool:
        """True: a prune that fails raises an error."""
        return True

    @property
    def sentence(self) -> str:
        """What was removed, and what a later prune removes."""
        restored = f", {self.restored:,} restored" if self.restored else ""
        return (
            f"{len(self.generations)} generations and {self.removed:,} blocks were removed"
            f"{restored}; {self.marked:,} more are unused and are removed by a prune in "
            f"{PRUNE_AGE.total_seconds() / 3600:g} hours or later."
        )


class BlockStore:
    """A block store in a folder, or below a URL such as s3://bucket/prefix.

    Args:
        where: The folder or the URL.
        **config: Options of obstore, see `Objects`.
    """

    def __init__(self, where: str | Path, **config: Any) -> None:
        self.objects = Objects(where, **config)
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
        number, current = self._last_pointer()
        if current is not None:
            assert_same_purpose(self.objects.where, current.purpose, manifest.purpose)
        relied_on = {} if resend else self._read_manifests()
        present = all_digests(relied_on.values())
        missing: dict[str, int] = {}
        for block, block_digest in enumerate(manifest.block_digests):
            if block_digest not in present:
                missing.setdefault(block_digest, block)
        try:
            lease = Lease.take(layout, manifest)
        except Unusable as error:
            raise NothingPublished(f"{error}; push the current generation instead.") from error
        path = layout.data(manifest)
        try:
            sent = self._send(path, manifest, missing, resend, progress)
            self.objects.create(f"manifests/{_stem(manifest)}.json", manifest.to_json())
            # A prune that begins from here on keeps the blocks of the manifest. One in between may
            # have removed blocks that were not sent because they were there.
            late = time.monotonic() - started > PRUNE_AGE.total_seconds() / 2
            if late or not set(relied_on) <= set(self._manifests()):
                there = self._blocks.present()
                lost = {
                    block_digest: block
                    for block, block_digest in enumerate(manifest.block_digests)
                    if block_digest not in there
                }
                again = self._send(path, manifest, lost, resend, progress)
                sent = Sent(sent.blocks + again.blocks, sent.bytes + again.bytes)
        finally:
            lease.release()
        if current is None or current.to_json() != manifest.to_json():
            self._move_pointer(number, manifest)
        return Pushed(
            generation=manifest.generation,
            block_count=len(manifest.block_digests),
            blocks_sent=sent.blocks,
            bytes=manifest.bytes,
            bytes_sent=sent.bytes,
            seconds=time.monotonic() - started,
        )

    def pull(
        self,
        store: Path | str,
        generation: int | None = None,
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
            generation: Its number; by default the one that the pointer names.
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
            self._manifest(generation),
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
        return self._last_pointer()[1]

    def generations(self) -> list[int]:
        """Return the generations that can be pulled, newest first.

        Returns:
            Their numbers.

        Raises:
            BlockStoreUnavailable: A request failed.
        """
        return [generation_in(name) or 0 for name in self._manifests()]

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
        number, _ = self._last_pointer()
        manifest = replace(self._manifest(generation), confirmed_at=now())
        self._move_pointer(number, manifest)
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
        manifest = self._manifest(generation)
        sizes = {
            block_digest: block_range(block, manifest.bytes)[1]
            for block, block_digest in enumerate(manifest.block_digests)
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
        number, current = self._last_pointer()
        names = self._manifests()
        old = [
            name for name in names[keep:] if current is None or Path(name).stem != _stem(current)
        ]
        pointers = sorted(self.objects.names("pointers"))
        self.objects.remove(old + pointers[:-1] if number else old)
        moment = now()
        self._blocks.mark_unused(self._needed(), moment)
        # Read again: a push may have ended since.
        swept = self._blocks.sweep(self._needed(), moment)
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

    def _needed(self) -> set[str]:
        """Return the digests of all blocks that a manifest names."""
        return all_digests(self._read_manifests().values())

    def _read_manifests(self) -> dict[str, list[str]]:
        """Return the blocks of each manifest: they exist, because a manifest is sent last."""
        found: dict[str, list[str]] = {}
        for name in self._manifests():
            raw = self.objects.read(name)
            if raw is not None:
                found[name] = self._parsed(name, raw).block_digests
        return found

    def _manifests(self) -> list[str]:
        """Return the names of the manifests, newest generation first."""
        names = [name for name in self.objects.names("manifests") if generation_in(name)]
        return sorted(names, key=lambda name: (generation_in(name), name), reverse=True)

    def _manifest(self, generation: int | None) -> Manifest:
        if generation is None:
            current = self.current()
            if current is None:
                raise NothingPublished(
                    f"Nothing was pushed to {self.objects.where} yet; push a generation first."
                )
            return current
        for name in self._manifests():
            raw = self.objects.read(name) if generation_in(name) == generation else None
            if raw is not None:
                return self._parsed(name, raw)
        raise NothingPublished(
            f"Generation {generation} is not kept in {self.objects.where}; "
            f"there are {', '.join(map(str, self.generations())) or 'none'}."
        )

    def _last_pointer(self) -> tuple[int, Manifest | None]:
        """Return the pointer's number and manifest; 0 and None before the first push."""
        names = sorted(self.objects.names("pointers"))
        if not names:
            return 0, None
        raw = self.objects.read(names[-1])
        if raw is None:  # pruned since it was listed: there is a newer one
            return self._last_pointer()
        return int(Path(names[-1]).stem), self._parsed(names[-1], _manifest_in(raw))

    def _move_pointer(self, number: int, manifest: Manifest) -> None:
        name = f"pointers/{number + 1:08d}.json"
        # Names this attempt: where its acknowledgement was lost, a retry finds the object there.
        attempt = secrets.token_hex(8)
        content = json.dumps({"attempt": attempt, "manifest": manifest.to_json().decode()})
        if not self.objects.create(name, content.encode()) and (
            self.objects.read(name) != content.encode()
        ):
            raise PointerMoved(
                f"Another process moved the pointer of {self.objects.where} at the same time; the "
                "blocks are there and nothing is lost. See what is current, and push again."
            )

    def _parsed(self, name: str, raw: bytes) -> Manifest:
        try:
            return Manifest.from_json(raw)
        except NotAManifest as error:
            raise BlockStoreDamaged(
                f"{name} in {self.objects.where} is damaged ({error}); remove it, and push again."
            ) from error


def _undamaged(layout: Layout, generation: int | None) -> Manifest:
    manifest = layout.find(generation)
    if damage := find_damage(layout.data(manifest), manifest):
        raise BlockStoreDamaged(
            f"Generation {manifest.generation} is damaged here ({damage}) and was not pushed; "
            "repair it, and push again."
        )
    return manifest


def _manifest_in(raw: bytes) -> bytes:
    """Return the manifest that a pointer contains; former versions wrote nothing else."""
    with suppress(ValueError, TypeError):
        fields = json.loads(raw)
        if "attempt" in fields:
            return str(fields["manifest"]).encode()
    return raw


def _stem(manifest: Manifest) -> str:
    return Path(manifest.file).stem
