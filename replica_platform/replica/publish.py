"""Publication, top to bottom: from a master at rest to a generation that readers may have.

Lock, take the master's log in, compare headers, make room, copy, check that nobody wrote, fsync,
verify every byte and open it in a child process; then, in `candidate`, rename, manifest,
pointer, link. Killed anywhere, readers keep what they have and the next publication clears up.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from replica_platform.files import fsync_dir, fsync_file
from replica_platform.replica import blocks, copying, retention
from replica_platform.replica.candidate import (
    Candidate,
    Publication,
    Step,
    building_path,
    clear_orphans,
    publishing,
)
from replica_platform.replica.errors import (
    CandidateDamaged,
    MasterChanging,
    StoreFull,
    WrongLineage,
    explaining,
)
from replica_platform.replica.generation import Unusable, check
from replica_platform.replica.header import BLOCK_BYTES, Header
from replica_platform.replica.layout import Layout
from replica_platform.replica.lineage import is_same, lineage_of
from replica_platform.replica.manifest import Lineage, Manifest, Seal, Table, now
from replica_platform.replica.master import PATIENCE_S, STORAGE_VERSION, Master, Settled
from replica_platform.replica.probing import Probe
from replica_platform.replica.purpose import Purpose, build
from replica_platform.replica.yielding import half_the_cores

KEEP = 3
MIN_AGE_S = 60.0
ATTEMPTS = 3
# Beside the copy itself: manifests, and what the file system keeps for itself.
MARGIN_BYTES = 4 * 1024 * 1024
# Reading every row takes some 2 s a gigabyte: of a file of this size as long as opening it.
READ_TO_THE_END_BYTES = 32 * 1024 * 1024

Progress = Callable[[int, int], None]


def publish(
    master: Path | str,
    store: Path | str,
    *,
    keep: int | None = None,
    min_age_s: float | None = None,
    data_as_of: datetime | None = None,
    run_id: str | None = None,
    progress: Progress | None = None,
    patience_s: float = PATIENCE_S,
    new_lineage: bool = False,
    required: tuple[str, ...] = (),
    purpose: Purpose | None = None,
    max_age_s: float | None = None,
    step: Step | None = None,
) -> Publication:
    """Publish `master` into `store` as a new generation, made if absent; readers notice.

    keep, min_age_s: how many generations stay (3), and for how long one does at least (60 s).
    data_as_of: the moment the data speaks of; only the caller knows it.
    new_lineage: accept a master that is not the database the last generation came from.
    required: tables that must be there and are read to the end first, `*` for all of them. A file
        of at most 32 MiB is read to the end whatever is named; of larger ones, of each table its
        first rows, and every block's checksum is compared in any case.
    purpose: build this part of the master instead of copying it; its own retention counts then.
    max_age_s: when the data counts as stale for `status`.
    progress: told (blocks or bytes done, total) while copying. step: told each step's name.
    Errors: those of `errors`; after any of them readers have what they had.
    """
    candidate = prepare(
        master,
        store,
        keep=keep,
        min_age_s=min_age_s,
        data_as_of=data_as_of,
        run_id=run_id,
        progress=progress,
        patience_s=patience_s,
        new_lineage=new_lineage,
        required=required,
        purpose=purpose,
        max_age_s=max_age_s,
        step=step,
    )
    return candidate.release(step)


def prepare(
    master: Path | str,
    store: Path | str,
    *,
    keep: int | None = None,
    min_age_s: float | None = None,
    data_as_of: datetime | None = None,
    run_id: str | None = None,
    progress: Progress | None = None,
    patience_s: float = PATIENCE_S,
    new_lineage: bool = False,
    required: tuple[str, ...] = (),
    purpose: Purpose | None = None,
    max_age_s: float | None = None,
    step: Step | None = None,
) -> Candidate:
    """Build and verify the next generation without showing it; see `publish` for the arguments.

    A candidate that still waits from before is thrown away.
    """
    if keep is None:
        keep = purpose.keep if purpose else KEEP
    if min_age_s is None:
        min_age_s = purpose.min_age_s if purpose else MIN_AGE_S
    layout = Layout(store)
    steps = _Steps(step)
    steps("lock")
    make_folders(layout)
    with publishing(layout), explaining(layout.root), ExitStack() as children:
        steps("clear")
        clear_orphans(layout)
        current = layout.latest()
        temporary = building_path(layout)
        source = Master(master, patience_s=patience_s)
        taken = _take(
            source, layout, current, temporary, purpose, new_lineage, steps, progress, children
        )
        if taken is None and current is not None:
            manifest = replace(
                current,
                confirmed_at=now(),
                data_as_of=data_as_of or current.data_as_of,
                seal=Seal.of(layout.data(current)),
            )
            how, written = "unchanged", 0
        elif taken is not None:
            tables = verify_copy(temporary, taken.copied.survey, taken.probe, required, steps)
            manifest = replace(
                _describe(layout, taken, tables, current, data_as_of, run_id),
                purpose=purpose.name if purpose else None,
                recipe=purpose.recipe if purpose else None,
                max_age_s=purpose.max_age_s if purpose else max_age_s,
            )
            how, written = taken.copied.how, taken.copied.blocks_written
            steps("name")
            path = layout.candidates / manifest.file
            temporary.replace(path)
            fsync_dir(layout.candidates)
            manifest = replace(manifest, seal=Seal.of(path))
        candidate = Candidate(
            layout.root,
            manifest,
            how,
            written,
            steps.finish(),
            keep=keep,
            min_age_s=min_age_s,
            built_on=current.generation if current else None,
        )
        candidate.save()
    return candidate


@dataclass(frozen=True)
class _Taken:
    """What was copied from the master, and what the master was then."""

    header: Header
    lineage: Lineage
    bytes: int
    copied: copying.Copied
    probe: Probe


def _take(
    master: Master,
    layout: Layout,
    current: Manifest | None,
    temporary: Path,
    purpose: Purpose | None,
    new_lineage: bool,
    steps: "_Steps",
    progress: Progress | None,
    children: ExitStack,
) -> _Taken | None:
    """Copy the master at rest; None when the current generation shows it already."""
    for attempt in range(ATTEMPTS):
        steps("settle")
        with master.settled() as settled:
            lineage = lineage_of(settled.header_bytes, Seal.of(settled.fd))
            same = _is_known(layout, current, lineage, settled.fd)
            if not new_lineage:
                _assert_same_lineage(current, lineage, settled, same)
            if same and _is_shown(layout, current, purpose):
                return None
            try:
                probe = children.enter_context(Probe())
                copied = None if purpose else _patch(settled, layout, temporary, steps, progress)
                if copied is None:
                    # A patch is over before a reader notices; a whole file is not.
                    children.enter_context(half_the_cores(probe.pid))
                    if purpose:
                        copied = _build(purpose, settled, temporary, steps)
                    else:
                        copied = _copy(settled, layout, temporary, steps, progress)
                settled.assert_unchanged()
                return _Taken(settled.header, lineage, temporary.stat().st_size, copied, probe)
            except (MasterChanging, EOFError):
                temporary.unlink(missing_ok=True)
                if attempt == ATTEMPTS - 1:
                    raise
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")


def _patch(
    settled: Settled, layout: Layout, target: Path, steps: "_Steps", progress: Progress | None
) -> copying.Copied | None:
    """Make the file of what is there already; None when all of it must be written."""
    steps("room")
    block_bytes = settled.header.block_bytes
    if copied := copying.reflink(settled.fd, target, block_bytes):
        return copied
    known = retention.take_spare(layout, target)
    if known is None:
        return None
    assert_room(layout, settled.bytes - target.stat().st_size)
    steps("patch")
    return copying.patch(settled.fd, target, known, block_bytes, progress)


def _copy(
    settled: Settled, layout: Layout, target: Path, steps: "_Steps", progress: Progress | None
) -> copying.Copied:
    assert_room(layout, settled.bytes)
    steps("copy")
    return copying.full(settled.fd, target, settled.header.block_bytes, progress)


def _build(purpose: Purpose, settled: Settled, target: Path, steps: "_Steps") -> copying.Copied:
    steps("build")
    build(purpose, settled.path, target, STORAGE_VERSION)
    survey = blocks.survey(target, duckdb_block_bytes=BLOCK_BYTES)
    return copying.Copied("build", survey, len(survey.digests))


def verify_copy(
    path: Path,
    survey: blocks.Survey,
    probe: Probe,
    required: tuple[str, ...] = (),
    step: Step = lambda _: None,
) -> dict[str, Table]:
    """Compare every byte with what the master's were, and open it in a child process.

    All the while the file is on its way to the disk, which takes longest.
    """
    try:
        path.chmod(0o444)
        # A block that fails DuckDB's checksum may be a free one, torn by a crash long ago: only
        # reading everything tells.
        small = path.stat().st_size <= READ_TO_THE_END_BYTES
        scan = [*required, "*"] if survey.unsound or small else list(required)
        with ThreadPoolExecutor(3, "verify") as pool:
            step("fsync")
            synced = pool.submit(fsync_file, path)
            copied = pool.submit(blocks.digests, path)
            probed = pool.submit(probe.look, path, scan)
            synced.result()
            step("verify")
            if copied.result() != survey.digests:
                raise CandidateDamaged(
                    f"The copy at {path} differs from the master it was made from; it was thrown "
                    "away and readers keep their generation. Publish again; if this stays, check "
                    "the disk."
                )
            return probed.result()
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _describe(
    layout: Layout,
    taken: _Taken,
    tables: dict[str, Table],
    current: Manifest | None,
    data_as_of: datetime | None,
    run_id: str | None,
) -> Manifest:
    digest = blocks.root(taken.copied.survey.digests)
    generation = max([*layout.numbers(), current.generation if current else 0], default=0) + 1
    moment = now()
    return Manifest(
        generation=generation,
        file=f"{generation:06d}-{digest[:8]}.duckdb",
        bytes=taken.bytes,
        digest=digest,
        digests="".join(taken.copied.survey.digests),
        lineage=taken.lineage,
        storage=taken.header.storage,
        duckdb=taken.header.library,
        tables=tables,
        published_at=moment,
        confirmed_at=moment,
        parent=current.generation if current else None,
        data_as_of=data_as_of,
        run_id=run_id,
    )


def _is_known(layout: Layout, current: Manifest | None, found: Lineage, master: int) -> bool | None:
    """Whether the master is as readers have it, or as they were rolled back from it on purpose."""
    for known in (current.lineage, current.withheld) if current else ():
        if known == found:
            return is_same(layout, known, found, master)
    return False


def _assert_same_lineage(
    current: Manifest | None, found: Lineage, settled: Settled, same: bool | None
) -> None:
    """Errors: `WrongLineage`. Old storage has no identity, and then nothing can be told."""
    if current is None or not settled.header.has_identity:
        return
    known = current.lineage
    if known.db_id != found.db_id:
        wrong = "is another database than"
    elif found.iteration < known.iteration:
        wrong = "is older than"
    elif found.iteration == known.iteration and same is False:
        wrong = "has parted from"
    else:
        return
    raise WrongLineage(
        f"The master {settled.path} {wrong} the one generation {current.generation} came from; "
        "nothing was published. If it was restored or rebuilt on purpose, publish once with "
        "new_lineage."
    )


def _is_shown(layout: Layout, current: Manifest | None, purpose: Purpose | None) -> bool:
    """Whether readers can have what is current, and it is what is asked for."""
    if current is None or current.recipe != (purpose.recipe if purpose else None):
        return False
    try:
        check(layout.data(current), current)
    except (Unusable, OSError):
        return False  # damaged or gone: publishing it anew is the repair
    return True


def make_folders(layout: Layout) -> None:
    """Make the store's folders. Errors: `StoreDenied`."""
    with explaining(layout.root):
        for folder in (layout.root, layout.generations, layout.candidates, layout.spares):
            folder.mkdir(parents=True, exist_ok=True)


def assert_room(layout: Layout, needed: int) -> None:
    """Errors: `StoreFull`, before anything is written."""
    disk = os.statvfs(layout.root)
    free = disk.f_bavail * disk.f_frsize
    if free < needed + MARGIN_BYTES:
        raise StoreFull(
            f"{layout.root} has {free:,} bytes free and a generation needs {needed:,} more; "
            "nothing was published and readers keep theirs. Free space, or keep fewer generations."
        )


class _Steps:
    """Tells each step before it happens, and remembers how long it took."""

    def __init__(self, tell: Step | None) -> None:
        self._tell = tell
        self._name: str | None = None
        self._since = 0.0
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str) -> None:
        self.finish()
        self._name, self._since = name, time.monotonic()
        if self._tell:
            self._tell(name)

    def finish(self) -> dict[str, float]:
        if self._name is not None:
            took = time.monotonic() - self._since
            self.seconds[self._name] = self.seconds.get(self._name, 0.0) + took
            self._name = None
        return self.seconds
