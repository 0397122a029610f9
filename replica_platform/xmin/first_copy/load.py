"""The loading of first copies, in slices: no snapshot of the source is held beyond a limit.

A slice is the ranges that are loaded at one snapshot. The ledger joins the slices. The table is
given its key and indexes before the last snapshot, at which the rest is merged over it.
"""

import logging
import time
from dataclasses import dataclass, replace

import psycopg

from replica_platform.xmin.copy.buckets import BucketCounts, bucket_blocks
from replica_platform.xmin.copy.ranges import BLOCK_BYTES, Range, rows_in
from replica_platform.xmin.copy.workers import Pair
from replica_platform.xmin.errors import CannotSync, SourceInterrupted, translate_errors
from replica_platform.xmin.first_copy import ledger
from replica_platform.xmin.first_copy.ledger import InterruptedCopy
from replica_platform.xmin.plan import PlannedTable
from replica_platform.xmin.reports import WriteMethod
from replica_platform.xmin.stage import ALL_ROWS, Stage, StagedTable
from replica_platform.xmin.target.tables import (
    add_keys,
    count_by_bucket,
    create_staging,
    load_name,
)

log = logging.getLogger(__name__)

# A range has to be read within the limit even over a line this slow, by each worker.
SLOWEST_BYTES_PER_S = 1024 * 1024
# The last snapshot is held for the commit, too: a load that took a larger part of the limit is
# completed at another one.
LAST_FRACTION = 0.5
MOST_STARTS = 3


def fitting_batch_bytes(batch_bytes: int, max_snapshot_s: float) -> int:
    """Return the size of a range that is read well within the limit."""
    return max(BLOCK_BYTES, min(batch_bytes, int(max_snapshot_s * SLOWEST_BYTES_PER_S)))


@dataclass
class _Load:
    """One table as far as it is loaded.

    Attributes:
        planned: The table, as planned at the newest snapshot.
        starts: How often the copy was started in this sync.
        continued: Where ranges of several snapshots are joined: what has to be merged over them.
        complete: Whether all ranges have arrived.
        keyed: Whether the table has its key and indexes.
        bytes: Bytes of COPY.
        rows: Rows that have arrived; None where they have to be counted.
        loaded: Where its rows lay, by bucket, once it is keyed.
        notes: What the report says of the load.
    """

    planned: PlannedTable
    starts: int = 0
    continued: InterruptedCopy | None = None
    complete: bool = False
    keyed: bool = False
    bytes: int = 0
    rows: int | None = 0
    loaded: BucketCounts | None = None
    notes: tuple[str, ...] = ()


class FirstCopies:
    """The first copies of one sync, over all of its snapshots.

    Attributes:
        max_snapshot_s: How long a snapshot may be held, in seconds.
    """

    def __init__(self, target: psycopg.Connection, max_snapshot_s: float) -> None:
        self._target = target
        self.max_snapshot_s = max_snapshot_s
        self._loads: dict[str, _Load] = {}
        self._slice = _Slice(max_snapshot_s)

    def begin_slice(self) -> None:
        """Begin with a new snapshot."""
        self._slice = _Slice(self.max_snapshot_s)

    def load(self, stage: Stage, planned: PlannedTable) -> bool:
        """Load what arrives in time; return whether the table is complete.

        Raises:
            SourceInterrupted: The table was redefined again and again.
        """
        if planned.key and self._slice.is_over(stage.source.age_s):
            return False
        name = str(planned.target)
        load = self._loads.pop(name, _Load(planned))
        load.planned = planned
        with translate_errors("target", planned.target):
            stage.create_types(planned)
            stage.create_schema(planned)
            # After a crash of the source, a row whose delete was seen here may live again, below W.
            with translate_errors("source", planned.request.source):
                stage.source.wait_until_flushed()
            waiting = self._begin_or_continue(stage, load)
            load.complete = self._load_ranges(stage, load, waiting) == len(waiting)
        self._loads[name] = load  # not where it failed
        return load.complete

    def _begin_or_continue(self, stage: Stage, load: _Load) -> list[Range]:
        """Return the ranges that have not arrived."""
        found = self._interrupted(stage, load)
        if found is None:
            self._start(stage, load)
            waiting = stage.ranges(load.planned)
        else:
            if not load.starts and load.continued is None:
                load.notes += (found.note,)
            load.rows, waiting = found.rows, found.waiting
            # As it began: whether locations are kept may have changed since.
            load.planned = replace(load.planned, locations=found.locations)
        load.continued = found
        return waiting

    def may_end(self, stage: Stage) -> bool:
        """Return whether the rest of the sync can be done at this snapshot.

        Not while a table that is to be merged into lacks its key: to build it takes long.
        """
        if any(load.continued and not load.keyed for load in self._loads.values()):
            return False
        young = stage.source.age_s <= LAST_FRACTION * self.max_snapshot_s
        return young or not self._slice.begun

    def add_keys(self) -> None:
        """Give the loaded tables their keys and indexes, while no snapshot is held."""
        for load in self._loads.values():
            if not load.complete or load.keyed:
                continue
            planned = load.planned
            try:
                with (
                    planned.request.times.step("adopt"),
                    translate_errors("target", planned.target),
                    self._target.transaction(),
                ):
                    loaded, blocks = load_name(planned.target), bucket_blocks(planned.table)
                    add_keys(self._target, loaded, planned.key, locations=planned.locations)
                    if load.continued:
                        load.loaded = BucketCounts(
                            blocks, count_by_bucket(self._target, loaded, blocks)
                        )
            except CannotSync as error:  # a key that is held twice; the commit finds it again
                log.info("%s", error)
            load.keyed = True

    def staged(self, stage: Stage, planned: PlannedTable) -> StagedTable:
        """Return a table that is loaded, with what is newer than its first W staged.

        One without a key is loaded only now: there is nothing to join slices by.
        """
        if not planned.key:
            self.load(stage, planned)
        load = self._loads[str(planned.target)]
        planned = replace(planned, locations=load.planned.locations)
        with translate_errors("target", planned.target):
            if load.continued is None:
                return StagedTable(
                    planned, WriteMethod.FIRST_COPY, bytes=load.bytes, rows_loaded=load.rows
                )
            newer = load.continued.newer
            scan = stage.scan(planned, newer)
            size = load.bytes + stage.copy_changed(planned, scan.selections)
        return StagedTable(
            planned,
            WriteMethod.FIRST_COPY,
            has_rows=bool(scan.selections),
            scanned=newer,
            source_rows=scan.rows,
            scan=scan,
            loaded=load.loaded,
            bytes=size,
            rows_loaded=load.rows,
            notes=load.notes,
        )

    def _interrupted(self, stage: Stage, load: _Load) -> InterruptedCopy | None:
        planned = load.planned
        # A doubt is about what an earlier sync has loaded.
        if not planned.key or (planned.request.doubt and not load.starts):
            return None
        return ledger.find_interrupted(
            self._target, planned.target, planned.table, stage.source.snapshot
        )

    def _start(self, stage: Stage, load: _Load) -> None:
        """Create the table to load, and begin its ledger."""
        planned = load.planned
        if load.starts == MOST_STARTS:
            raise SourceInterrupted(
                f"{planned.request.source} was rewritten or redefined {MOST_STARTS} times while it "
                "was copied, and its copy started over each time; sync again when that is over."
            )
        if load.starts:
            load.notes += ("the table was rewritten or redefined: its copy started over",)
        load.starts += 1
        load.rows, load.keyed = 0, False
        start = ledger.copy_start(
            planned.table,
            stage.source.snapshot,
            stage.batch_blocks,
            stage.workers.count,
            locations=planned.locations,
        )
        with self._target.transaction():
            create_staging(
                self._target,
                load_name(planned.target),
                planned.table,
                locations=planned.locations,
                logged=True,
            )
            ledger.write_start(self._target, planned.target, start)

    def _load_ranges(self, stage: Stage, load: _Load, waiting: list[Range]) -> int:
        """Load ranges, each with its line in the ledger; return how many arrived in time."""
        planned = load.planned
        copy = stage.copier(planned, load_name(planned.target))
        where = load.continued.older if load.continued else ALL_ROWS

        def load_range(pair: Pair, one: Range) -> tuple[int, int] | None:
            if planned.key and not self._slice.begin_range(stage.source.age_s):
                return None
            began = time.monotonic()
            with translate_errors("target", planned.target), pair.target.transaction():
                copied = copy(pair, rows_in(one, where))
                ledger.write_range(pair.target, planned.target, one, copied.rows)
            self._slice.loaded(time.monotonic() - began)
            return copied

        with planned.request.times.step("copy"):
            arrived = [one for one in stage.workers.copy(load_range, waiting) if one is not None]
        load.bytes += sum(size for size, _ in arrived)
        if load.rows is not None:
            load.rows += sum(rows for _, rows in arrived)
        return len(arrived)


class _Slice:
    """The time that is left of one snapshot.

    Attributes:
        begun: How many ranges were begun at it.
    """

    def __init__(self, max_snapshot_s: float) -> None:
        self._max_s = max_snapshot_s
        self.begun = 0
        self._longest_s = 0.0

    def is_over(self, age_s: float) -> bool:
        """Return whether no other range can be loaded; the first one can always, for progress."""
        return bool(self.begun) and age_s + self._longest_s > self._max_s

    def begin_range(self, age_s: float) -> bool:
        """Begin a range; return False where there is no time left for it."""
        if self.is_over(age_s):
            return False
        self.begun += 1
        return True

    def loaded(self, seconds: float) -> None:
        """Take note of how long a range took."""
        self._longest_s = max(self._longest_s, seconds)
