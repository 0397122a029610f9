"""The decision how a table is read, and the reason in a sentence.

Pure: it compares the watermark with the snapshot and the catalog, and touches no connection.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

from replica_platform.xmin.blocks.choice import (
    TableBlocks,
    locations_known,
    new_leaves,
)
from replica_platform.xmin.copy.changes import ChangedRows
from replica_platform.xmin.errors import CannotSync
from replica_platform.xmin.reports import TableSpec
from replica_platform.xmin.source.catalog import SourceColumn, SourceTable, same_fingerprint
from replica_platform.xmin.source.drift import drift
from replica_platform.xmin.source.snapshot import FARTHEST, LOW32, Snapshot
from replica_platform.xmin.target.watermark import Watermark

MODES = ("auto", "full", "scan", "timestamp", "blocks")


@dataclass(frozen=True)
class Situation:
    """What is known of a table when it is decided how to read it.

    Attributes:
        spec: What was asked for.
        table: The source table.
        snapshot: The snapshot that it is read at.
        key: The key that rows are matched by; empty for none.
        watermark: What the last sync remembers; None without one.
        target_columns: The columns that the target has.
        rewritten: Oids of the leaves that were rewritten since and still hold rows older than W.
        doubt: Why the target is not believed to hold what its watermark says; empty where it is.
        locations: Whether the target is to know the location of each row in the source.
        blocks: The blocks that changed since the watermark, or why they cannot or should not be
            read alone; empty where nobody asked.
    """

    spec: TableSpec
    table: SourceTable
    snapshot: Snapshot
    key: tuple[str, ...]
    watermark: Watermark | None
    target_columns: Collection[str] = ()
    rewritten: frozenset[int] = frozenset()
    doubt: str = ""
    locations: bool = False
    blocks: TableBlocks | str = ""


@dataclass(frozen=True)
class Plan:
    """How a table is read.

    Attributes:
        mode: `full`, `scan`, `blocks`, `timestamp` or `none`.
        why: One sentence: why.
        changed: Of a scan, or by blocks: the rows to read.
        since: By timestamp: where the read starts; None reads all rows.
        added: New columns that need no row to be read, since old rows have a constant there.
        compare_first: Of a full read: whether only key ranges whose hashes differ are read.
        blocks: By blocks: those to read.
        advance: Of `none`: whether the watermark moves to this snapshot, since none of the table's
            blocks changed.
    """

    mode: str
    why: str
    changed: ChangedRows | None = None
    since: str | None = None
    added: tuple[SourceColumn, ...] = ()
    compare_first: bool = False
    blocks: TableBlocks | None = None
    advance: bool = False


def decide(now: Situation) -> Plan:
    """Choose how to read a table.

    Raises:
        CannotSync: The mode that was asked for cannot work.
    """
    mode, table = now.spec.mode, now.table
    if mode not in MODES:
        raise CannotSync(f"There is no mode {mode!r}; choose one of {', '.join(MODES)}.")
    if mode == "timestamp" or (mode == "auto" and now.spec.timestamp_column and not table.has_xmin):
        return _by_timestamp(now)
    if not now.key and now.spec.deletes == "never":
        raise CannotSync(
            f"{table.name} has no key, so a changed row is replaced by deleting it, which "
            "deletes='never' forbids. Give it a primary key or a unique index of NOT NULL columns, "
            "name its key columns with key, or use deletes='auto'."
        )
    if mode == "full":
        return Plan("full", "A full copy was asked for.")
    obstacle = _obstacle(now)
    if obstacle:
        return Plan("full", obstacle)
    if now.watermark is None:
        return Plan("full", now.doubt or "There is no watermark of an earlier sync.")
    return _from_watermark(now, now.watermark)


def _obstacle(now: Situation) -> str:
    """Return why the table cannot be read by xmin; empty where it can.

    Raises:
        CannotSync: The mode asked for is `scan`.
    """
    table, scan = now.table, now.spec.mode == "scan"
    if not table.has_xmin:
        kind = {"v": "a view", "f": "a foreign table"}.get(table.kind, "not a heap table")
        if scan:
            raise CannotSync(
                f"{table.name} is {kind} and has no xmin; use mode full, "
                "or timestamp with a column."
            )
        return f"{table.name} is {kind}: it has no xmin and names no timestamp column."
    if not now.key and not _reads_blocks(now):
        why = f"{table.name} has no primary key and no unique index of NOT NULL columns."
        if now.spec.mode == "blocks":
            why += f" {_not_by_blocks(now)}"
        if scan:
            raise CannotSync(f"{why} Give it one, or use mode full.")
        return why
    return ""


def _from_watermark(now: Situation, watermark: Watermark) -> Plan:
    """Continue from the watermark where it can be trusted; otherwise repair or read everything."""
    unfit = _unfit_rows(now, watermark)
    added = drift(watermark.fingerprint, now.table).added
    doubt = now.doubt or _unfit_w(now.snapshot, watermark)
    if unfit or (doubt and added):
        return Plan("full", doubt or unfit)
    if isinstance(now.blocks, TableBlocks) and not doubt:
        return _by_blocks(now, watermark, now.blocks)
    moved = _unfit_xmins(now) or _unknown_locations(now, watermark)
    if moved and now.locations and not doubt:
        return Plan("full", f"{moved} All rows are read, with their locations.", added=added)
    doubt = doubt or _unfit_xmins(now)
    if doubt and not now.key:
        return Plan("full", doubt)
    if doubt:
        why = f"{doubt} Both sides are compared by hashes, and only what differs is read."
        return Plan("full", why, compare_first=True, added=added)
    if _unchanged(now, watermark):
        return Plan("none", "No transaction has finished on the source since the last sync.")
    return _scan(now, watermark)


def _unfit_rows(now: Situation, watermark: Watermark) -> str:
    """Return why the target's rows say nothing of the source's; empty where they do."""
    table = now.table
    if watermark.mode == "timestamp":
        return "The last sync read by timestamp, which leaves no W to continue from."
    if watermark.source_table != str(table.name):
        return f"The target was synced from {watermark.source_table} before."
    drifted = drift(watermark.fingerprint, table)
    present = [column.name for column in drifted.added if column.name in now.target_columns]
    if present:
        return (
            f"The target already has a column {present[0]}; its content is not that of the new one."
        )
    unknown = [column.name for column in drifted.added if column.missing is None]
    if unknown and _rewritten(table, watermark):
        # VACUUM FULL writes the constant into the rows, under their old xmin, and forgets it.
        return f"Column {unknown[0]} is new and the table was rewritten: old rows may hold a value."
    return drifted.whole


def _rewritten(table: SourceTable, watermark: Watermark) -> bool:
    """Return whether a leaf that the watermark knows was rewritten since."""
    return any(
        watermark.leaves.get(oid, filenode) != filenode for oid, filenode in table.filenodes.items()
    )


def _unfit_w(snapshot: Snapshot, watermark: Watermark) -> str:
    """Return why W says nothing of the source's rows as they are now; empty where it does."""
    if watermark.identity != snapshot.identity:
        return (
            "The source is another server, timeline or database than at the last sync, "
            "so its xids belong to another history."
        )
    if snapshot.next < watermark.next:
        return "The source is behind the last sync: its next xid is lower than it was."
    if snapshot.next - watermark.w >= FARTHEST:
        return (
            f"{snapshot.next - watermark.w:,} xids have passed since the watermark, too many for a "
            "32-bit xmin to tell new rows from old."
        )
    return ""


def _unfit_xmins(now: Situation) -> str:
    """Return why rows may have come under other xmins below W; empty where they have not."""
    names = [str(leaf.name) for leaf in now.table.leaves if leaf.oid in now.rewritten]
    if names:
        # VACUUM FULL and CLUSTER keep them; pg_repack writes all rows, and swaps the files later.
        return f"{', '.join(names)} was rewritten, and its rows may have other xmins than before."
    return ""


def _unchanged(now: Situation, watermark: Watermark) -> bool:
    # Equal snapshots see equal rows. An unlogged table is emptied by a crash without any xid.
    return (
        watermark.snapshot == now.snapshot.text
        and watermark.deletes == now.spec.deletes
        and same_fingerprint(watermark.fingerprint, now.table)
        and all(leaf.persistence == "p" for leaf in now.table.leaves)
        and watermark.leaves == now.table.filenodes
    )


def _unknown_locations(now: Situation, watermark: Watermark) -> str:
    """Return why the target does not know where its rows lie; empty where it does."""
    # `auto` only keeps up what a first copy has stored: it does not read a table for it.
    if now.spec.mode != "blocks" or locations_known(now.table, watermark):
        return ""
    return f"The target does not know where the rows of {now.table.name} lie in the source."


def _reads_blocks(now: Situation) -> bool:
    """Return whether a table without a key can be read by blocks."""
    return now.watermark is not None and isinstance(now.blocks, TableBlocks)


def _not_by_blocks(now: Situation) -> str:
    """Return why the table is not read by blocks, where that is worth a sentence."""
    return f"Not by blocks: {now.blocks}" if now.blocks and isinstance(now.blocks, str) else ""


def _by_blocks(now: Situation, watermark: Watermark, blocks: TableBlocks) -> Plan:
    """Read the changed blocks; where there are none, only the watermark moves."""
    same = (
        same_fingerprint(watermark.fingerprint, now.table) and watermark.deletes == now.spec.deletes
    )
    if same and blocks.unchanged:
        why = f"None of its {blocks.total:,} blocks changed since the last sync."
        return Plan("none", why, advance=True)
    scan = _scan(now, watermark)
    why = f"{blocks.words} changed since the last sync and are read."
    return replace(scan, mode="blocks", why=why, blocks=blocks)


def _scan(now: Situation, watermark: Watermark) -> Plan:
    distance = now.snapshot.next - watermark.w
    new = new_leaves(now.table, watermark) if now.locations else _unknown_leaves(now, watermark)
    why = f"The watermark of xid {watermark.w:,} is {distance:,} xids away, safe for xmin."
    if new:
        why += f" {len(new)} leaf table(s) are new and are read whole."
    why = f"{why} {_not_by_blocks(now)}".rstrip()
    delivered = tuple(xid & LOW32 for xid in watermark.delivered) if watermark.complete else ()
    changed = ChangedRows(watermark.w, delivered, new)
    return Plan("scan", why, changed, added=drift(watermark.fingerprint, now.table).added)


def _unknown_leaves(now: Situation, watermark: Watermark) -> frozenset[int]:
    """Return the leaves that the watermark does not know; one with another file was emptied."""
    known = watermark.leaves
    return frozenset(leaf.oid for leaf in now.table.leaves if str(leaf.oid) not in known)


def _by_timestamp(now: Situation) -> Plan:
    table, watermark, column = now.table, now.watermark, now.spec.timestamp_column
    if column is None or column not in table.names:
        raise CannotSync(
            f"Mode timestamp needs a column of {table.name} that every write moves forward; "
            f"name one with timestamp_column (it has {', '.join(table.names)})."
        )
    if not now.key:
        raise CannotSync(
            f"{table.name} has no key to match rows by; name its key columns, or use mode full."
        )
    by = f"Rows are read by {column}."
    if watermark is None or watermark.mode != "timestamp" or watermark.timestamp_from is None:
        return Plan("timestamp", f"{by} There is no watermark of an earlier sync, so all of them.")
    if watermark.identity != now.snapshot.identity or not same_fingerprint(
        watermark.fingerprint, table
    ):
        return Plan("timestamp", f"{by} The source or its definition changed, so all of them.")
    since = watermark.timestamp_from
    return Plan("timestamp", f"{by} From {since} on.", since=since)
