"""A local generation assembled from a manifest: blocks from here where we have them, else fetched.

Used for a region's replica, for going back to what is kept elsewhere, and for repair. What fetches
is given; the result is a candidate like any other, digested, probed and not yet visible.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from replica_platform.core.files import fsync_dir
from replica_platform.core.reports import Progress
from replica_platform.replica.copy import blocks
from replica_platform.replica.copy.priority import half_the_cores
from replica_platform.replica.errors import explaining
from replica_platform.replica.serving.generation import Unusable, check
from replica_platform.replica.store.candidate import (
    Candidate,
    building_path,
    clear_orphans,
    publishing,
)
from replica_platform.replica.store.disk_space import find_room, make_folders
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Manifest, Seal
from replica_platform.replica.store.ownership import assert_own_store
from replica_platform.replica.store.probe_process import Probe
from replica_platform.replica.store.verify_copy import verify_copy

CONNECTIONS = 8

Fetch = Callable[[str, int], bytes]


def pulled(
    layout: Layout,
    manifest: Manifest,
    fetch: Fetch,
    *,
    keep: int,
    min_age_s: float,
    progress: Progress | None = None,
) -> Candidate:
    """A candidate for `manifest`; `fetch` gives a block by its digest and size."""
    make_folders(layout)
    with publishing(layout), explaining(layout.root):
        assert_own_store(layout, manifest.purpose)
        clear_orphans(layout)
        current = layout.latest()
        if current and current.file == manifest.file and _is_intact(layout, current):
            # The same bytes; only what was confirmed elsewhere since is news.
            manifest, how, written = replace(manifest, seal=current.seal), "unchanged", 0
        else:
            temporary = building_path(layout)
            with Probe() as probe, half_the_cores(probe.pid):
                known = find_room(layout, temporary, manifest.bytes, keep=keep, min_age_s=min_age_s)
                written = _assemble(layout, manifest, temporary, known or [], fetch, progress)
                verify_copy(temporary, blocks.Survey(manifest.blocks, []), probe)
            path = layout.candidates / manifest.file
            temporary.replace(path)
            fsync_dir(layout.candidates)
            manifest, how = replace(manifest, seal=Seal.of(path)), "pull"
        candidate = Candidate(
            layout.root,
            manifest,
            how,
            written,
            {},
            keep=keep,
            min_age_s=min_age_s,
            built_on=current.generation if current else None,
        )
        candidate.save()
    return candidate


def _assemble(
    layout: Layout,
    manifest: Manifest,
    target: Path,
    known: list[str],
    fetch: Fetch,
    progress: Progress | None,
) -> int:
    """Write the file, of which the blocks `known` are there; returns how many were fetched."""
    wanted = manifest.blocks
    with _opened(target, manifest.bytes) as made, _here(layout) as here:
        missing = []
        for block, digest in enumerate(wanted):
            start, size = blocks.span(block, manifest.bytes)
            if block < len(known) and known[block] == digest:
                continue
            content = _read(here.get(digest), size)
            if content is not None and blocks.digest(content) == digest:
                os.pwrite(made, content, start)
            else:
                missing.append(block)

        def fetch_one(block: int) -> None:
            start, size = blocks.span(block, manifest.bytes)
            os.pwrite(made, fetch(wanted[block], size), start)

        with ThreadPoolExecutor(CONNECTIONS, "pull") as pool:
            for done, _ in enumerate(pool.map(fetch_one, missing)):
                if progress:
                    progress(done + 1, len(missing), "blocks")
    return len(missing)


@contextmanager
def _opened(target: Path, size: int) -> Iterator[int]:
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
def _here(layout: Layout) -> Iterator[dict[str, tuple[int, int]]]:
    """Where each block lies in the generations kept here: an open file and an offset."""
    found: dict[str, tuple[int, int]] = {}
    files = []
    try:
        for manifest in layout.kept():
            try:
                fd = os.open(layout.data(manifest), os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            files.append(fd)
            for block, digest in enumerate(manifest.blocks):
                found.setdefault(digest, (fd, blocks.span(block, manifest.bytes)[0]))
        yield found
    finally:
        for fd in files:
            os.close(fd)


def _read(place: tuple[int, int] | None, size: int) -> bytes | None:
    return None if place is None else os.pread(place[0], size, place[1])


def _is_intact(layout: Layout, manifest: Manifest) -> bool:
    try:
        check(layout.data(manifest), manifest)
    except (Unusable, OSError):
        return False
    return True
