"""Generations kept elsewhere: each block once, compressed, under its digest.

    blocks/3f/3fa9c1d2….zst              one block, compressed with zstd
    manifests/000012-3fa9c1d2.json       one generation
    pointers/00000007.json               the manifest of what is current; the highest counts

A pointer moves by making the next object only if nobody made it: a compare-and-swap that a
folder and every S3 know. History, rollback, repair and a region's replica are the same act: take
a manifest, fetch the blocks that are missing. Nobody opens a remote object with DuckDB.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from replica_platform.core.reports import Progress
from replica_platform.replica.copy import blocks
from replica_platform.replica.errors import (
    BlockMissing,
    BlockStoreDamaged,
    NothingPublished,
    PointerMoved,
)
from replica_platform.replica.remote.assemble import pulled
from replica_platform.replica.remote.objects import Objects
from replica_platform.replica.serving.generation import Lease, Unusable, check
from replica_platform.replica.store.candidate import Publication
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Manifest, NotAManifest, now
from replica_platform.replica.store.ownership import assert_same_purpose

LEVEL = 3
# Each waits for the network most of the time.
CONNECTIONS = 8
# A block that no manifest names may belong to a push that is still under way.
PRUNE_AGE = timedelta(days=1)


@dataclass(frozen=True)
class Pushed:
    """What a push sent: `bytes_sent` after compression, of `bytes` that the generation has."""

    generation: int
    blocks: int
    blocks_sent: int
    bytes: int
    bytes_sent: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON-able fields."""
        return asdict(self)


@dataclass(frozen=True)
class BlockStoreVerification:
    """Whether every block of a generation can be fetched and is what its name says."""

    generation: int
    blocks: int
    ok: bool
    missing: int
    damaged: int

    @property
    def sentence(self) -> str:
        if self.ok:
            return f"Generation {self.generation} can be had from the block store, byte for byte."
        return (
            f"{self.missing} blocks of generation {self.generation} are missing from the block "
            f"store and {self.damaged} are damaged; push it again with anew."
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON-able fields."""
        return {**asdict(self), "sentence": self.sentence}


class BlockStore:
    """The block store at `where`, a folder or a URL such as s3://bucket/prefix; see `Objects`."""

    def __init__(self, where: str | Path, **config: Any) -> None:
        self.objects = Objects(where, **config)

    def push(
        self,
        store: Path | str,
        generation: int | None = None,
        *,
        anew: bool = False,
        progress: Progress | None = None,
    ) -> Pushed:
        """Send a generation (the current one): the blocks it lacks, its manifest, the pointer.

        anew: send every block again, to mend damaged ones.
        Errors: `NothingPublished`, `WrongStore`, `BlockStoreUnavailable`, `PointerMoved`,
        `BlockStoreDamaged`.
        """
        started = time.monotonic()
        layout = Layout(store)
        manifest = replace(_local(layout, generation), seal=None)  # of this machine's file
        number, present = self._last_pointer()
        if present is not None:
            assert_same_purpose(self.objects.where, present.purpose, manifest.purpose)
        known = set() if anew else self._known_blocks()
        missing: dict[str, int] = {}
        for block, digest in enumerate(manifest.blocks):
            if digest not in known:
                missing.setdefault(digest, block)
        try:
            lease = Lease.take(layout, manifest)
        except Unusable as error:
            raise NothingPublished(f"{error}; push the current generation instead.") from error
        try:
            sent = self._send(layout.data(manifest), manifest, missing, anew, progress)
        finally:
            lease.release()
        self.objects.make(f"manifests/{_stem(manifest)}.json", manifest.to_json())
        if present is None or present.to_json() != manifest.to_json():
            self._move_pointer(number, manifest)
        return Pushed(
            generation=manifest.generation,
            blocks=len(manifest.blocks),
            blocks_sent=len(missing),
            bytes=manifest.bytes,
            bytes_sent=sent,
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
        """Make a generation (what the pointer names) the current one of a local store.

        Blocks that the local generations have are taken from them; the rest is fetched, compared
        with its digest, opened in a child process, and swapped in like any other.
        Errors: `NothingPublished`, `BlockStoreUnavailable`, `BlockStoreDamaged`, and those of a
        publication.
        """
        candidate = pulled(
            Layout(store),
            self._manifest(generation),
            self.block,
            keep=keep,
            min_age_s=min_age_s,
            progress=progress,
        )
        return candidate.release()

    def current(self) -> Manifest | None:
        """What the pointer names; None before the first push."""
        return self._last_pointer()[1]

    def generations(self) -> list[int]:
        """The generations that can be had, newest first."""
        return sorted((int(Path(name).name[:6]) for name in self._manifests()), reverse=True)

    def point(self, generation: int) -> Manifest:
        """Make a kept generation, older or newer, what others pull. Errors: `PointerMoved`."""
        number, _ = self._last_pointer()
        manifest = replace(self._manifest(generation), confirmed_at=now())
        self._move_pointer(number, manifest)
        return manifest

    def block(self, digest: str, size: int) -> bytes:
        """One block, compared with its digest. Errors: `BlockMissing`, `BlockStoreDamaged`."""
        import zstandard

        packed = self.objects.read(_block(digest))
        if packed is None:
            raise BlockMissing(
                f"The block {digest} is missing from {self.objects.where}; push the generation "
                "again with anew, or pull another one."
            )
        try:
            content = zstandard.ZstdDecompressor().decompress(packed, max_output_size=size)
        except zstandard.ZstdError:
            content = b""
        if blocks.digest(content) != digest:
            raise BlockStoreDamaged(
                f"The block {digest} in {self.objects.where} is damaged; push the generation "
                "again with anew, or pull another one."
            )
        return content

    def verify(self, generation: int | None = None) -> BlockStoreVerification:
        """Fetch every block of a generation (what the pointer names) and compare it."""
        manifest = self._manifest(generation)
        wanted = {
            digest: blocks.span(block, manifest.bytes)[1]
            for block, digest in enumerate(manifest.blocks)
        }

        def look(item: tuple[str, int]) -> str | None:
            try:
                self.block(*item)
            except BlockMissing:
                return "missing"
            except BlockStoreDamaged:
                return "damaged"
            return None

        with ThreadPoolExecutor(CONNECTIONS, "verify") as pool:
            found = list(pool.map(look, wanted.items()))
        missing, damaged = found.count("missing"), found.count("damaged")
        return BlockStoreVerification(
            manifest.generation, len(wanted), missing + damaged == 0, missing, damaged
        )

    def prune(self, keep: int) -> int:
        """Keep the newest generations and the current one; returns how many blocks went."""
        number, current = self._last_pointer()
        names = sorted(self._manifests(), reverse=True)
        going = [
            name for name in names[keep:] if current is None or Path(name).stem != _stem(current)
        ]
        pointers = sorted(self.objects.names("pointers"))
        self.objects.remove(going + pointers[:-1] if number else going)
        needed = self._known_blocks()
        oldest = now() - PRUNE_AGE
        unused = [
            name
            for name, made in self.objects.names("blocks").items()
            if Path(name).stem not in needed and made < oldest
        ]
        self.objects.remove(unused)
        return len(unused)

    def _send(
        self,
        path: Path,
        manifest: Manifest,
        missing: dict[str, int],
        anew: bool,
        progress: Progress | None,
    ) -> int:
        import zstandard

        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

        def send(item: tuple[str, int]) -> int:
            digest, block = item
            start, size = blocks.span(block, manifest.bytes)
            content = os.pread(fd, size, start)
            if blocks.digest(content) != digest:
                raise BlockStoreDamaged(
                    f"Block {block} of {path.name} is not what was published, so it was not sent; "
                    "repair the generation here, and push again."
                )
            packed = zstandard.ZstdCompressor(level=LEVEL).compress(content)
            if anew:
                self.objects.replace(_block(digest), packed)
            else:
                self.objects.make(_block(digest), packed)
            return len(packed)

        sent = 0
        try:
            with ThreadPoolExecutor(CONNECTIONS, "push") as pool:
                for done, size in enumerate(pool.map(send, missing.items())):
                    sent += size
                    if progress:
                        progress(done + 1, len(missing), "blocks")
        finally:
            os.close(fd)
        return sent

    def _known_blocks(self) -> set[str]:
        """The blocks that a manifest names: they are there, for manifests come after blocks."""
        known: set[str] = set()
        for name in self._manifests():
            raw = self.objects.read(name)
            if raw is not None:
                known.update(self._parsed(name, raw).blocks)
        return known

    def _manifests(self) -> list[str]:
        return [name for name in self.objects.names("manifests") if name.endswith(".json")]

    def _manifest(self, generation: int | None) -> Manifest:
        if generation is None:
            current = self.current()
            if current is None:
                raise NothingPublished(
                    f"Nothing was pushed to {self.objects.where} yet; push a generation first."
                )
            return current
        for name in sorted(self._manifests(), reverse=True):
            raw = self.objects.read(name) if int(Path(name).name[:6]) == generation else None
            if raw is not None:
                return self._parsed(name, raw)
        raise NothingPublished(
            f"Generation {generation} is not kept in {self.objects.where}; "
            f"there are {', '.join(map(str, self.generations())) or 'none'}."
        )

    def _last_pointer(self) -> tuple[int, Manifest | None]:
        names = sorted(self.objects.names("pointers"))
        if not names:
            return 0, None
        raw = self.objects.read(names[-1])
        if raw is None:  # pruned between the two looks: there is a newer one
            return self._last_pointer()
        return int(Path(names[-1]).stem), self._parsed(names[-1], raw)

    def _move_pointer(self, number: int, manifest: Manifest) -> None:
        if not self.objects.make(f"pointers/{number + 1:08d}.json", manifest.to_json()):
            raise PointerMoved(
                f"Somebody else moved the pointer of {self.objects.where} meanwhile; the blocks "
                "are there and nothing is lost. See what is current, and push again."
            )

    def _parsed(self, name: str, raw: bytes) -> Manifest:
        try:
            return Manifest.from_json(raw)
        except NotAManifest as error:
            raise BlockStoreDamaged(
                f"{name} in {self.objects.where} is damaged ({error}); remove it, and push again."
            ) from error


def _local(layout: Layout, generation: int | None) -> Manifest:
    current = layout.latest()
    for manifest in ([current] if current else []) + layout.kept():
        if generation in (None, manifest.generation):
            try:
                check(layout.data(manifest), manifest)
            except (Unusable, OSError) as error:
                raise BlockStoreDamaged(
                    f"Generation {manifest.generation} is damaged here ({error}) and was not "
                    "pushed; repair it, and push again."
                ) from error
            return manifest
    raise NothingPublished(f"There is no such generation in {layout.root}; publish into it first.")


def _stem(manifest: Manifest) -> str:
    return Path(manifest.file).stem


def _block(digest: str) -> str:
    return f"blocks/{digest[:2]}/{digest}.zst"
