"""The choice of reading by blocks: what it needs, what it costs, and what would cure an obstacle.

One reading of the summaries serves all tables of a sync. Pure but for that reading; what else can
keep a table from being read by its watermark is `decide`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import psycopg

from replica_platform.core.postgres import one_row
from replica_platform.core.reports import format_age
from replica_platform.xmin.blocks.history import History
from replica_platform.xmin.blocks.summaries import ChangedBlocks, LeafBlocks
from replica_platform.xmin.source.catalog import SourceTable
from replica_platform.xmin.source.start_point import StartPoint
from replica_platform.xmin.target.tables import LOCATION_COLUMNS
from replica_platform.xmin.target.watermark import Watermark

# Where `auto` begins to think of it: 128 MiB are scanned in the time that a summary takes.
LEAST_BLOCKS = 16_384
# Seconds a block, in a scan (2,000,000 rows in 18,692 blocks: 0.25 s) and one by one (30 µs each).
SCANNED_BLOCK_S, LISTED_BLOCK_S = 14e-6, 40e-6
# More are not listed in memory.
MOST_LISTED = 1_000_000
# Seconds until a summary is there after a checkpoint was asked for.
SUMMARY_S = 0.1

_CAPABILITY = """
select current_setting('server_version_num')::int / 10000,
       coalesce(current_setting('summarize_wal', true), 'off') = 'on',
       current_setting('wal_level'),
       pg_is_in_recovery(), pg_has_role(current_user, 'pg_checkpoint', 'usage'),
       quote_ident(current_user)
"""


@dataclass(frozen=True)
class Capability:
    """What the source can do for a sync by blocks.

    Attributes:
        obstacle: Why it has no WAL summaries, and what would cure that; empty where it has.
        checkpoint: Whether the role may ask for a checkpoint that ends a summary.
        role: The role, quoted.
    """

    obstacle: str
    checkpoint: bool = False
    role: str = ""


@dataclass(frozen=True)
class TableBlocks:
    """The blocks of a table that changed since its watermark.

    Attributes:
        leaves: The changed blocks by leaf, where there are any.
        whole: The oids of the leaves that are new or have another file; all their rows are read.
        gone: The oids of the leaves that the table no longer has.
        count: How many blocks are to be read, those of new leaves included.
        total: How many blocks the table has.
        reading: What it took to learn it: a sentence on waiting and checkpoints, or empty.
    """

    leaves: Mapping[int, LeafBlocks] = field(default_factory=dict)
    whole: frozenset[int] = frozenset()
    gone: frozenset[int] = frozenset()
    count: int = 0
    total: int = 0
    reading: str = ""

    @property
    def unchanged(self) -> bool:
        """Whether nothing of the table was written since."""
        return not (self.leaves or self.whole or self.gone)

    @property
    def words(self) -> str:
        """How many blocks of how many."""
        return f"{self.count:,} of {self.total:,} blocks"


def capability(source: psycopg.Connection) -> Capability:
    """Ask the source what it can do."""
    version, on, wal_level, standby, checkpoint, role = one_row(source.execute(_CAPABILITY))
    if version < 17:
        return Capability(
            f"The source is Postgres {version}, and WAL summaries came with 17: upgrade it."
        )
    if not on:
        first = "" if wal_level != "minimal" else "wal_level = replica (with a restart) and then "
        return Capability(
            f"The source keeps no WAL summaries; run there: {first}ALTER SYSTEM SET summarize_wal "
            "= on; SELECT pg_reload_conf(); (no restart is needed for it)."
        )
    # A checkpoint on a standby writes no WAL, and so ends no summary.
    return Capability("", bool(checkpoint and not standby), role)


def table_obstacle(table: SourceTable) -> str:
    """Return why a table's changes are not in the WAL, and what would cure that."""
    if not table.has_xmin:
        return f"{table.name} is not stored as a heap."
    taken = sorted(set(LOCATION_COLUMNS) & set(table.names))
    if taken:
        return (
            f"{table.name} has a column {taken[0]}, a name that the target needs for the rows' "
            "locations; rename it in the source."
        )
    unlogged = [str(leaf.name) for leaf in table.leaves if leaf.persistence != "p"]
    if unlogged:
        return (
            f"{', '.join(unlogged)} is unlogged, so that the WAL has no changes of it; run on the "
            f"source: ALTER TABLE {unlogged[0]} SET LOGGED;"
        )
    return ""


def watermark_obstacle(watermark: Watermark, deletes: str, count_every_s: float) -> str:
    """Return why a table's watermark does not serve this time; a scan cures it."""
    if watermark.deletes == "never" and deletes != "never":
        return "the last sync kept rows that the source had deleted."
    counted = watermark.counted_at
    age_s = (datetime.now(UTC) - counted).total_seconds() if counted else None
    if age_s is None or age_s > count_every_s:
        when = format_age(age_s) + " ago" if age_s is not None else "never"
        return f"the rows of both sides were last counted {when}, and a scan counts them."
    return ""


def locations_known(table: SourceTable, watermark: Watermark) -> bool:
    """Return whether the target has the location of each row, as of the watermark."""
    return bool(watermark.leaves) and watermark.locations == watermark.leaves


def starting_point(history: History, watermark: Watermark) -> StartPoint | str:
    """Return where the WAL that matters begins, or why that is unknown."""
    return history.before(watermark.w) or (
        "No start point is older than the watermark's transactions: a transaction older than the "
        "first sync is still running, or the last sync was of a version that kept none. The next "
        "sync after it has ended has one."
    )


def scan_s(table: SourceTable) -> float:
    """Return about how long a scan of the table takes, in seconds."""
    return table.blocks * SCANNED_BLOCK_S


def blocks_s(count: int) -> float:
    """Return about how long a sync by blocks takes to read, in seconds."""
    return SUMMARY_S + count * LISTED_BLOCK_S


def new_leaves(table: SourceTable, watermark: Watermark) -> frozenset[int]:
    """Return the oids of the leaves that the watermark does not know in their present file."""
    known = watermark.leaves
    return frozenset(leaf.oid for leaf in table.leaves if known.get(str(leaf.oid)) != leaf.filenode)


def gone_leaves(table: SourceTable, watermark: Watermark) -> frozenset[int]:
    """Return the oids of the leaves that the table no longer has."""
    return frozenset(int(oid) for oid in watermark.leaves.keys() - table.filenodes.keys())


def changed_leaves(
    table: SourceTable, watermark: Watermark, found: ChangedBlocks, since: int
) -> dict[int, LeafBlocks]:
    """Return the changed blocks of the leaves that are not read whole."""
    whole = new_leaves(table, watermark)
    listed = {leaf.oid: found.of(leaf, since) for leaf in table.leaves if leaf.oid not in whole}
    return {oid: blocks for oid, blocks in listed.items() if blocks}


def table_blocks(
    table: SourceTable, watermark: Watermark, changed: Mapping[int, LeafBlocks], reading: str
) -> TableBlocks:
    """Count the blocks that a sync would read."""
    whole = new_leaves(table, watermark)
    count = sum(leaf.blocks for leaf in table.leaves if leaf.oid in whole)
    count += sum(
        len(changed[leaf.oid].listed(leaf.blocks)) for leaf in table.leaves if leaf.oid in changed
    )
    gone = gone_leaves(table, watermark)
    return TableBlocks(changed, whole, gone, count, table.blocks, reading)


def too_many(table: SourceTable, blocks: TableBlocks, *, forced: bool) -> str:
    """Return why a scan costs less; empty where it does not.

    Args:
        table: The table.
        blocks: Its changed blocks.
        forced: Whether the mode was asked for, so that only memory is a limit.
    """
    by_blocks, by_scan = blocks_s(blocks.count), scan_s(table)
    if by_blocks < by_scan or (forced and blocks.count <= MOST_LISTED):
        return ""
    return (
        f"{blocks.words} changed, about {by_blocks:.1f} s by blocks and {by_scan:.1f} s by a scan."
    )
