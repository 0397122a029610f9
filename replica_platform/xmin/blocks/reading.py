"""One reading of the source's WAL summaries for all tables of a sync."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import psycopg

from replica_platform.xmin.blocks.choice import (
    LEAST_BLOCKS,
    Capability,
    TableBlocks,
    capability,
    changed_leaves,
    locations_known,
    scan_s,
    starting_point,
    table_blocks,
    table_obstacle,
    too_many,
    watermark_obstacle,
)
from replica_platform.xmin.blocks.history import History
from replica_platform.xmin.blocks.summaries import ChangedBlocks, NoSummaries, read_changes
from replica_platform.xmin.blocks.waiting import Waited, checkpoint_before, wait_for_summaries
from replica_platform.xmin.source.catalog import SourceTable
from replica_platform.xmin.source.snapshot import FARTHEST, SourceSnapshot
from replica_platform.xmin.target.watermark import Watermark

MODES = ("auto", "blocks")
DAY_S = 86_400.0


@dataclass(frozen=True)
class BlockOptions:
    """What a sync by blocks may cost the source, and when it counts all rows.

    Attributes:
        checkpoint: Whether a checkpoint may be asked for, where the role is allowed to.
        most_wait_s: The longest to wait for a summary, in seconds, with the snapshot open.
        count_every_s: How often a scan counts the rows of both sides instead, in seconds.
    """

    checkpoint: bool = True
    most_wait_s: float = 10.0
    count_every_s: float = DAY_S


@dataclass(frozen=True)
class Candidate:
    """A table that may be read by blocks.

    Attributes:
        target: The target table, by which the result is found.
        mode: The mode that was asked for.
        deletes: How deletes are to be found.
        table: The source table.
        watermark: What the last sync remembers; None without one.
    """

    target: str
    mode: str
    deletes: str
    table: SourceTable
    watermark: Watermark | None


@dataclass(frozen=True)
class BlockReading:
    """What is known of the blocks of a sync's tables.

    Attributes:
        capability: What the source can do.
        tables: By target table: the changed blocks, or why they are not read alone; a table that
            nobody asked to read by blocks is absent.
        waited: What it took.
    """

    capability: Capability = field(default_factory=lambda: Capability("Nobody asked."))
    tables: Mapping[str, TableBlocks | str] = field(default_factory=dict)
    waited: Waited = field(default_factory=lambda: Waited(False))

    def keeps_locations(self, one: Candidate) -> bool:
        """Return whether a sync stores the location of each row that it writes."""
        if one.mode not in MODES or not one.table.has_xmin:
            return False
        if table_obstacle(one.table):
            return False
        if one.watermark is not None and one.watermark.locations:
            return True  # kept up, whatever the source can do today
        if self.capability.obstacle:
            return False
        first = one.watermark is None and one.table.blocks >= LEAST_BLOCKS
        return one.mode == "blocks" or first


def begin_summary(source: psycopg.Connection, dsn: str, options: BlockOptions) -> bool:
    """End the summary that tells of the past, before the first copy of a table.

    Without it the next sync by blocks would read again what was written before the copy.

    Args:
        source: A session on the source, in no transaction.
        dsn: The DSN of the source.
        options: What it may cost.

    Returns:
        Whether a checkpoint was asked for.
    """
    can = capability(source)
    if can.obstacle or not can.checkpoint or not options.checkpoint:
        return False
    checkpoint_before(dsn, options.most_wait_s)
    return True


@dataclass(frozen=True)
class _Ready:
    """A table whose blocks can be read from a position on."""

    candidate: Candidate
    watermark: Watermark
    start: int


def read_blocks(
    source: SourceSnapshot,
    history: History,
    candidates: Sequence[Candidate],
    options: BlockOptions,
) -> BlockReading:
    """Find the changed blocks of all tables that can be read by them.

    Args:
        source: The snapshot of the sync.
        history: The start points of the source.
        candidates: The tables.
        options: What it may cost.
    """
    asked = [one for one in candidates if one.mode in MODES and _worthwhile(one)]
    if not asked:
        return BlockReading()
    can = capability(source.connection)
    tables: dict[str, TableBlocks | str] = {}
    ready: list[_Ready] = []
    for one in asked:
        found = _prepare(source, history, one, can, options)
        if isinstance(found, _Ready):
            ready.append(found)
        elif found:
            tables[one.target] = found
    waited = _wait(source, ready, can, options)
    if not waited.reached:
        tables |= {one.candidate.target: _not_reached(waited, can, options) for one in ready}
        return BlockReading(can, tables, waited)
    tables |= _changes(source, ready, waited)
    return BlockReading(can, tables, waited)


def _worthwhile(one: Candidate) -> bool:
    return one.mode == "blocks" or one.table.blocks >= LEAST_BLOCKS


def _prepare(
    source: SourceSnapshot,
    history: History,
    one: Candidate,
    can: Capability,
    options: BlockOptions,
) -> _Ready | str:
    """Return where a table's blocks are read from, or why they are not; empty: nothing to say."""
    snapshot, watermark = source.snapshot, one.watermark
    if watermark is None or watermark.snapshot == snapshot.text:
        return ""
    if (
        watermark.identity != snapshot.identity
        or not 0 <= snapshot.next - watermark.w < FARTHEST
        or snapshot.next < watermark.next
    ):
        return ""  # `decide` names it
    if one.mode == "auto" and not watermark.locations:
        return "" if can.obstacle else _UNLOCATED
    obstacle = (
        can.obstacle
        or table_obstacle(one.table)
        or watermark_obstacle(watermark, one.deletes, options.count_every_s)
    )
    if obstacle:
        return obstacle
    if not locations_known(one.table, watermark):
        return "The target does not know where its rows lie in the source."
    start = starting_point(history, watermark)
    return start if isinstance(start, str) else _Ready(one, watermark, start.lsn)


_UNLOCATED = (
    "the target does not know where its rows lie in the source; a sync with mode blocks reads that "
    "once."
)


def _wait(
    source: SourceSnapshot, ready: Sequence[_Ready], can: Capability, options: BlockOptions
) -> Waited:
    if not ready:
        return Waited(False)
    most_s = options.most_wait_s
    if all(one.candidate.mode == "auto" for one in ready):  # not much longer than a scan takes
        most_s = min(most_s, max(1.0, sum(scan_s(one.candidate.table) for one in ready)))
    snapshot = source.snapshot
    return wait_for_summaries(
        source.connection,
        source.dsn,
        snapshot.identity.timeline,
        snapshot.lsn,
        checkpoint=options.checkpoint and can.checkpoint,
        most_s=most_s,
    )


def _not_reached(waited: Waited, can: Capability, options: BlockOptions) -> str:
    cure = "let a sync wait longer for one, or lower the source's checkpoint_timeout"
    if not can.checkpoint:
        cure = (
            f"GRANT pg_checkpoint TO {can.role}; on the source lets a sync ask for one; or {cure}"
        )
    elif not options.checkpoint:
        cure = f"allow checkpoints to be asked for, or {cure}"
    return f"No WAL summary reached the snapshot within {waited.seconds:.1f} s; {cure}."


def _changes(
    source: SourceSnapshot, ready: Sequence[_Ready], waited: Waited
) -> dict[str, TableBlocks | str]:
    """Read the changed blocks, from the oldest start on; where that is lost, from the next one."""
    tables: dict[str, TableBlocks | str] = {}
    waiting = sorted(ready, key=lambda one: one.start)
    while waiting:
        start = waiting[0].start
        leaves = {leaf.oid for one in waiting for leaf in one.candidate.table.leaves}
        snapshot = source.snapshot
        try:
            found = read_changes(
                source.connection, snapshot.identity.timeline, start, snapshot.lsn, leaves
            )
        except NoSummaries as lost:
            tables |= {one.candidate.target: str(lost) for one in waiting if one.start == start}
            waiting = [one for one in waiting if one.start > start]
        else:
            tables |= {one.candidate.target: _table(one, found, waited) for one in waiting}
            break
    return tables


def _table(one: _Ready, found: ChangedBlocks, waited: Waited) -> TableBlocks | str:
    table, watermark = one.candidate.table, one.watermark
    changed = changed_leaves(table, watermark, found, one.start)
    blocks = table_blocks(table, watermark, changed, waited.words)
    too_costly = too_many(table, blocks, forced=one.candidate.mode == "blocks")
    return too_costly or blocks
