"""A candidate made of the blocks that a manifest names: local ones where they exist, else fetched.

Serves pulling, going back to a generation that is kept elsewhere, and repair. The function that
fetches a block is given; the candidate is verified like any other, and not yet visible.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from replica_platform.core.files import fsync_dir, fsync_file, write_atomically
from replica_platform.core.reports import Progress
from replica_platform.replica.copy.blocks import Scan, block_range, digest, digest_blocks
from replica_platform.replica.copy.priority import half_the_cores
from replica_platform.replica.errors import CandidateDamaged, translate_errors
from replica_platform.replica.probe.process import Probe
from replica_platform.replica.probe.verify_copy import verify_copy
from replica_platform.replica.store.candidate import Candidate
from replica_platform.replica.store.disk_space import reserve
from replica_platform.replica.store.folders import building_path, clear_orphans, make_folders
from replica_platform.replica.store.integrity import find_damage
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Manifest, Seal, now
from replica_platform.replica.store.ownership import assert_own_store
from replica_platform.replica.store.pointer import point_to, store_lock
from replica_platform.replica.store.retention import Retention
from replica_platform.replica.store.scrub_state import fully_read_at
from replica_platform.replica.store.spare import remove_spares

CONNECTIONS = 8

# Returns a block, by its digest and size.
Fetch = Callable[[str, int], bytes]


def assemble(
    layout: Layout,
    manifest: Manifest,
    fetch: Fetch,
    retention: Retention,
    progress: Progress | None = None,
) -> Candidate:
    """Return a candidate for `manifest`.

    Args:
        layout: The store; made if absent.
        manifest: The generation, published elsewhere.
        fetch: Called for each block that is not here, by several threads.
        retention: Which generations stay.
        progress: Told the blocks that are fetched.

    Raises:
        WrongStore: The store belongs to another purpose.
        StoreFull: The disk has no space for the generation.
        CandidateDamaged: The assembled file is not what the manifest says.
        PlatformError: Whatever `fetch` raises.
    """
    make_folders(layout)
    with store_lock(layout), translate_errors(layout.root):
        assert_own_store(layout, manifest.purpose)
        clear_orphans(layout)
        current = layout.latest()
        if (
            current
            and current.file == manifest.file
            and not find_damage(layout.data(current), current)
        ):
            # The bytes are the same; only the time of confirmation may be new, and the seal.
            seal = Seal.of(layout.data(current))
            manifest = replace(manifest, seal=seal, read_at=current.read_at)
            how, fetched = "unchanged", 0
        else:
            target = building_path(layout)
            fetched, read_at = _build(layout, manifest, target, fetch, retention, progress)
            path = layout.candidates / manifest.file
            target.replace(path)
            fsync_dir(layout.candidates)
            manifest, how = replace(manifest, seal=Seal.of(path), read_at=read_at), "pull"
        candidate = Candidate(
            store=layout.root,
            manifest=manifest,
            how=how,
            blocks_written=fetched,
            steps={},
            keep=retention.keep,
            min_age_s=retention.min_age_s,
            built_on=current.generation if current else None,
        )
        candidate.save()
    return candidate


def _build(
    layout: Layout,
    manifest: Manifest,
    target: Path,
    fetch: Fetch,
    retention: Retention,
    progress: Progress | None,
) -> tuple[int, datetime]:
    """Make and verify the file; return how many blocks were fetched, and when all were read.

    In a spare whose bytes were read within a week, only the written blocks are read again. A spare
    that is damaged nevertheless is thrown away.
    """
    expected = Scan(manifest.block_digests, [], [], 0)
    while True:
        moment = now()
        with Probe() as probe, half_the_cores(probe.pid):
            spare = reserve(layout, target, manifest.bytes, retention)
            known = spare.block_digests if spare else []
            read_at = fully_read_at(layout, spare) if spare else None
            written = [
                block
                for block, block_digest in enumerate(expected.digests)
                if block >= len(known) or known[block] != block_digest
            ]
            fetched = _write_blocks(layout, manifest, target, written, fetch, progress)
            compared = written if read_at else None
            try:
                verify_copy(target, expected, probe, manifest.catalog, written=compared)
            except CandidateDamaged:
                if spare is None:
                    raise
                remove_spares(layout)
            else:
                return fetched, read_at or moment


def rebuild(layout: Layout, manifest: Manifest, fetch: Fetch) -> int:
    """Replace a kept generation's damaged file by a whole one; return how many blocks were fetched.

    Blocks that other generations have are taken from them. Readers go on to the new file.

    Raises:
        StoreFull: The disk has no space for the generation.
        StoreBusy: Another process is changing the store.
        CandidateDamaged: The new file is not what the manifest says.
        PlatformError: Whatever `fetch` raises.
    """
    with store_lock(layout), translate_errors(layout.root):
        target = building_path(layout)
        remove_spares(layout)  # it may be as damaged as the file
        reserve(layout, target, manifest.bytes, Retention(keep=len(layout.kept()) + 1))
        try:
            every = list(range(len(manifest.block_digests)))
            fetched = _write_blocks(layout, manifest, target, every, fetch, None)
            target.chmod(0o444)
            fsync_file(target)
            if digest_blocks(target) != manifest.block_digests:
                raise CandidateDamaged(
                    f"The repaired file of generation {manifest.generation} is damaged too; "
                    "check the disk."
                )
            target.replace(layout.data(manifest))
        finally:
            target.unlink(missing_ok=True)
        fsync_dir(layout.generations)
        sealed = replace(manifest, seal=Seal.of(layout.data(manifest)), read_at=now())
        write_atomically(layout.manifest_path(manifest), sealed.to_json())
        current = layout.latest()
        if current and current.file == manifest.file:
            point_to(layout, replace(current, seal=sealed.seal, read_at=sealed.read_at))
        layout.damage_mark(manifest).unlink(missing_ok=True)
    return fetched


def _write_blocks(
    layout: Layout,
    manifest: Manifest,
    target: Path,
    blocks: list[int],
    fetch: Fetch,
    progress: Progress | None,
) -> int:
    """Write those blocks of the file; return how many of them were fetched."""
    wanted = manifest.block_digests
    with _opened(target, manifest.bytes) as fd, _local_blocks(layout) as local:
        missing = []
        for block in blocks:
            block_digest = wanted[block]
            start, size = block_range(block, manifest.bytes)
            for copy, offset in local.get(block_digest, ()):
                content = os.pread(copy, size, offset)
                if digest(content) == block_digest:
                    os.pwrite(fd, content, start)
                    break
            else:
                missing.append(block)

        def fetch_block(block: int) -> None:
            start, size = block_range(block, manifest.bytes)
            os.pwrite(fd, fetch(wanted[block], size), start)

        with ThreadPoolExecutor(CONNECTIONS, "pull") as pool:
            for done, _ in enumerate(pool.map(fetch_block, missing)):
                if progress:
                    progress(done + 1, len(missing), "blocks")
    return len(missing)


@contextmanager
def _opened(target: Path, size: int) -> Iterator[int]:
    """Yield the file, opened and extended to `size`; on an error it is removed."""
    fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, size)
        yield fd
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


@contextmanager
def _local_blocks(layout: Layout) -> Iterator[dict[str, list[tuple[int, int]]]]:
    """Yield open files and offsets for each block of the local generations, by digest."""
    found: dict[str, list[tuple[int, int]]] = {}
    files = []
    try:
        for manifest in layout.kept():
            try:
                fd = os.open(layout.data(manifest), os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            files.append(fd)
            for block, block_digest in enumerate(manifest.block_digests):
                offset = block_range(block, manifest.bytes)[0]
                found.setdefault(block_digest, []).append((fd, offset))
        yield found
    finally:
        for fd in files:
            os.close(fd)
