"""Scrubbing a store: a share of the bytes of all kept generations each time, and repair.

A file's seal cannot show a disk that returns other bytes than were written. `scrub` reads the disk
itself, past the page cache where the system allows it. The state is in `scrub.json` in the store.
"""

import mmap
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from replica_platform.blocks.errors import BlockMissing
from replica_platform.core import locks
from replica_platform.core.errors import PlatformError
from replica_platform.core.files import write_atomically
from replica_platform.core.reports import Progress, ReportFields, format_bytes
from replica_platform.replica.copy.blocks import block_range, count_blocks, digest
from replica_platform.replica.copy.file_format import BLOCK_BYTES
from replica_platform.replica.copy.priority import lower_priority
from replica_platform.replica.errors import NothingPublished, StoreBusy, translate_errors
from replica_platform.replica.publish import publish
from replica_platform.replica.remote.assemble import rebuild
from replica_platform.replica.remote.block_store import BlockStore
from replica_platform.replica.serving.lease import Lease
from replica_platform.replica.store.integrity import Unusable
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Manifest, now
from replica_platform.replica.store.scrub_state import (
    WITHIN_S,
    Round,
    ScrubState,
    save_scrub_state,
)
from replica_platform.replica.store.spare import find_spare

MOST_BYTES = 4 * 1024**3


@dataclass(frozen=True)
class Scrub(ReportFields):
    """What a scrub read, found and repaired.

    Attributes:
        blocks_read: How many blocks of 256 KiB were read.
        bytes_read: How many bytes that were.
        damaged: The generations that were damaged.
        repaired: Those of them that are whole again, or were published again.
        behind: The generations that were not read to the end within the set time.
        problems: Why a generation could not be repaired.
        seconds: How long it took.
    """

    blocks_read: int
    bytes_read: int
    damaged: list[int]
    repaired: list[int]
    behind: list[int]
    problems: list[str]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every generation is whole and was read in time."""
        return not self.problems and not self.behind

    @property
    def sentence(self) -> str:
        """What was found, and what to do next."""
        read = f"{format_bytes(self.bytes_read)} of the kept generations were read"
        if self.problems:
            return f"{read}. {' '.join(self.problems)}"
        if self.behind:
            return (
                f"{read}, but generations {_numbers(self.behind)} not to the end within the set "
                "time; scrub more often, or let it read more bytes each time."
            )
        if self.damaged:
            return f"{read}; generations {_numbers(self.damaged)} were damaged and are repaired."
        return f"{read}, and no damage was found."


def scrub(
    store: Path | str,
    *,
    within_s: float = WITHIN_S,
    most_bytes: int = MOST_BYTES,
    block_store: BlockStore | None = None,
    master: Path | str | None = None,
    progress: Progress | None = None,
) -> Scrub:
    """Read the share of all kept generations that is due, and repair what is damaged.

    Call it regularly: each time it reads what is due by the next call, as far ahead as the last
    call lies back. A damaged generation is marked, so that nobody takes it for whole. Its blocks
    come from other generations or from the block store; else, the current one is published again.

    Args:
        store: The store's folder.
        within_s: The time in seconds within which every byte is read.
        most_bytes: How many bytes one call reads at most.
        block_store: Where to fetch blocks from.
        master: The master to publish from.
        progress: Told the blocks that are read.

    Returns:
        What was read, found and repaired.

    Raises:
        NothingPublished: The store has no generation.
        StoreBusy: Another scrub is running.
        StoreDenied: This user may not write into the store.
    """
    started = time.monotonic()
    layout = Layout(store)
    kept = layout.kept()
    if not kept:
        raise NothingPublished(f"Nothing is published in {layout.root}; publish into it first.")
    with _only_one(layout):
        state = ScrubState.load(layout)
        rounds = {one.file: state.round_of(one, _inode(layout, one)) for one in kept}
        moment = now()
        ahead_s = min((moment - state.last).total_seconds(), within_s / 2) if state.last else 0.0
        left, blocks_read, bytes_read = most_bytes, 0, 0
        for manifest in sorted(kept, key=lambda one: rounds[one.file].since):
            round_ = rounds[manifest.file]
            blocks = count_blocks(manifest.bytes)
            due = round_.due(blocks, max(0.0, ahead_s), within_s)
            due = due[: max(0, left) // BLOCK_BYTES]
            read = _read(layout, manifest, due, progress)
            left -= read
            bytes_read += read
            blocks_read += len(due) if read else 0
            round_.next_block = due.stop if due else round_.next_block
            if round_.next_block >= blocks:
                rounds[manifest.file] = Round(0, moment)
        damaged = [one for one in layout.kept() if layout.is_marked_damaged(one)]
        behind = [
            one.generation
            for one in kept
            if (moment - rounds[one.file].since).total_seconds() > within_s
        ]
        _save(layout, state, rounds, kept)
    problems = {
        one.generation: problem
        for one in damaged
        if (problem := _repair(layout, one, block_store, master))
    }
    return Scrub(
        blocks_read=blocks_read,
        bytes_read=bytes_read,
        damaged=[one.generation for one in damaged],
        repaired=[one.generation for one in damaged if one.generation not in problems],
        behind=behind,
        problems=list(problems.values()),
        seconds=time.monotonic() - started,
    )


def _read(layout: Layout, manifest: Manifest, due: range, progress: Progress | None) -> int:
    """Read those blocks, mark the generation if one is wrong, and return how many bytes were read.

    A file that is missing or has another size is marked at once.
    """
    path = layout.data(manifest)
    try:
        lease = Lease.take(layout, manifest)
    except Unusable:
        if layout.manifest_path(manifest).exists() and not path.exists():
            _mark(layout, manifest, "its file is missing")
        return 0
    try:
        if path.stat().st_size != manifest.bytes:
            _mark(layout, manifest, f"it has {path.stat().st_size} bytes, not {manifest.bytes}")
            return 0
        with ThreadPoolExecutor(1, "scrub", initializer=lower_priority) as pool:
            wrong, read = pool.submit(_compare, path, manifest, due, progress).result()
    finally:
        lease.release()
    if wrong:
        _mark(layout, manifest, f"a scrub found blocks with other bytes: {_numbers(wrong)}")
    return read


def _compare(
    path: Path, manifest: Manifest, due: range, progress: Progress | None
) -> tuple[list[int], int]:
    """Return which of the blocks are wrong, and how many bytes were read."""
    published = manifest.block_digests
    wrong, read = [], 0
    with _opened(path) as fd, mmap.mmap(-1, BLOCK_BYTES) as buffer, memoryview(buffer) as view:
        for done, block in enumerate(due):
            start, size = block_range(block, manifest.bytes)
            try:
                got = os.preadv(fd, [view[:size]], start)
                right = got == size and digest(view[:size]) == published[block]
            except OSError:
                right = False
            if not right:
                wrong.append(block)
            read += size
            if progress:
                progress(done + 1, len(due), "blocks")
    return wrong, read


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open a file past the page cache: readers may still have the right bytes there."""
    flags = os.O_RDONLY | os.O_CLOEXEC
    direct = getattr(os, "O_DIRECT", 0) if path.stat().st_size % mmap.PAGESIZE == 0 else 0
    try:
        fd = os.open(path, flags | direct)
    except OSError:
        fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def _mark(layout: Layout, manifest: Manifest, problem: str) -> None:
    with translate_errors(layout.root):
        write_atomically(layout.damage_mark(manifest), f"{problem} ({now():%F %T} UTC)".encode())


def _repair(
    layout: Layout, manifest: Manifest, block_store: BlockStore | None, master: Path | str | None
) -> str | None:
    """Repair a generation; return why that is not possible."""
    fetch = block_store.block if block_store else _no_block_store
    try:
        rebuild(layout, manifest, fetch)
        return None
    except PlatformError as error:
        reason = str(error)
    current = layout.latest()
    is_current = current is not None and current.file == manifest.file
    # The state of the master that readers were rolled back from is not published.
    if current is not None and is_current and master is not None and current.withheld is None:
        try:
            publish(
                master,
                layout.root,
                keep=len(layout.kept()) + 1,
                data_as_of=current.data_as_of,
                max_age_s=current.max_age_s,
            )
            return None
        except PlatformError as error:
            reason = str(error)
    readers = "readers use another one" if is_current else "readers do not use it"
    return f"Generation {manifest.generation} is damaged and stays so; {readers}. {reason}"


def _no_block_store(block_digest: str, size: int) -> bytes:
    raise BlockMissing(
        "No other generation has the damaged blocks; give a block store or the master."
    )


@contextmanager
def _only_one(layout: Layout) -> Iterator[None]:
    with translate_errors(layout.root):
        try:
            with locks.file_lock(layout.root / ".scrub.lock"):
                yield
        except locks.LockHeld:
            raise StoreBusy(
                f"Another scrub of {layout.root} is running; wait for it to finish."
            ) from None


def _save(
    layout: Layout, state: ScrubState, rounds: dict[str, Round], kept: list[Manifest]
) -> None:
    """Save how far each file was read, also the spare's, which was not read now."""
    files = {}
    spare = find_spare(layout)
    if spare and spare.seal and (round_ := state.rounds.get(str(spare.seal.inode))):
        files[str(spare.seal.inode)] = round_
    for manifest in kept:
        if (inode := _inode(layout, manifest)) is not None:
            files[str(inode)] = rounds[manifest.file]
    save_scrub_state(layout, files)


def _inode(layout: Layout, manifest: Manifest) -> int | None:
    with suppress(OSError):
        return layout.data(manifest).stat().st_ino
    return None


def _numbers(values: list[int]) -> str:
    shown = ", ".join(map(str, values[:10]))
    return f"{shown} and {len(values) - 10} more" if len(values) > 10 else shown
