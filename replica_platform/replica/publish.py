"""Publication, top to bottom: from a master at rest to a generation that readers may have.

Lock, take the master's log in, compare headers, make room, copy, check that nobody wrote, fsync,
verify every byte and open it in a child process; then, in `candidate`, rename, manifest,
pointer, link. Killed anywhere, readers keep what they have and the next publication clears up.
"""

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from replica_platform.core.files import fsync_dir
from replica_platform.core.reports import Progress
from replica_platform.replica.copy import blocks
from replica_platform.replica.copy import copy_file as copying
from replica_platform.replica.copy.header import BLOCK_BYTES, Header
from replica_platform.replica.copy.priority import half_the_cores
from replica_platform.replica.errors import MasterChanging, explaining
from replica_platform.replica.lineage import assert_continued, is_known, lineage_of
from replica_platform.replica.master import PATIENCE_S, STORAGE_VERSION, Master, Settled
from replica_platform.replica.purpose.definition import Purpose, build
from replica_platform.replica.serving.generation import Unusable, check
from replica_platform.replica.store.candidate import (
    Candidate,
    Publication,
    Step,
    building_path,
    clear_orphans,
    publishing,
)
from replica_platform.replica.store.disk_space import find_room, make_folders
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Lineage, Manifest, Seal, Table, now
from replica_platform.replica.store.ownership import assert_own_store
from replica_platform.replica.store.probe_process import Probe
from replica_platform.replica.store.verify_copy import verify_copy

KEEP = 3
MIN_AGE_S = 60.0
ATTEMPTS = 3


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
        assert_own_store(layout, purpose.name if purpose else None)
        steps("clear")
        clear_orphans(layout)
        current = layout.latest()
        temporary = building_path(layout)
        source = Master(master, patience_s=patience_s)
        taken = _take(
            source, layout, current, temporary, purpose, new_lineage, steps, progress, children,
            keep, min_age_s,
        )  # fmt: skip
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
    keep: int,
    min_age_s: float,
) -> _Taken | None:
    """Copy the master at rest; None when the current generation shows it already."""
    for attempt in range(ATTEMPTS):
        steps("settle")
        with master.settled() as settled:
            lineage = lineage_of(settled.header_bytes, Seal.of(settled.fd))
            same = is_known(layout, current, lineage, settled.fd)
            if not new_lineage:
                assert_continued(current, lineage, settled, same)
            if same and _is_shown(layout, current, purpose):
                return None
            try:
                probe = children.enter_context(Probe())
                copied = (
                    None
                    if purpose
                    else _patch(settled, layout, temporary, steps, progress, keep, min_age_s)
                )
                if copied is None:
                    # A patch is over before a reader notices; a whole file is not.
                    children.enter_context(half_the_cores(probe.pid))
                    if purpose:
                        copied = _build(purpose, settled, temporary, steps)
                    else:
                        copied = _copy(settled, temporary, steps, progress)
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
    settled: Settled,
    layout: Layout,
    target: Path,
    steps: "_Steps",
    progress: Progress | None,
    keep: int,
    min_age_s: float,
) -> copying.Copied | None:
    """Make the file of what is there already; None when all of it must be written."""
    steps("room")
    block_bytes = settled.header.block_bytes
    if copied := copying.reflink(settled.fd, target, block_bytes):
        return copied
    known = find_room(layout, target, settled.bytes, keep=keep, min_age_s=min_age_s)
    if known is None:
        return None
    steps("patch")
    return copying.patch(settled.fd, target, known, block_bytes, progress)


def _copy(
    settled: Settled, target: Path, steps: "_Steps", progress: Progress | None
) -> copying.Copied:
    steps("copy")
    return copying.full(settled.fd, target, settled.header.block_bytes, progress)


def _build(purpose: Purpose, settled: Settled, target: Path, steps: "_Steps") -> copying.Copied:
    steps("build")
    build(purpose, settled.path, target, STORAGE_VERSION)
    survey = blocks.survey(target, duckdb_block_bytes=BLOCK_BYTES)
    return copying.Copied("build", survey, len(survey.digests))


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


def _is_shown(layout: Layout, current: Manifest | None, purpose: Purpose | None) -> bool:
    """Whether readers can have what is current, and it is what is asked for."""
    if current is None or current.recipe != (purpose.recipe if purpose else None):
        return False
    try:
        check(layout.data(current), current)
    except (Unusable, OSError):
        return False  # damaged or gone: publishing it anew is the repair
    return True


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
