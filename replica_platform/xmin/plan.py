"""The decision: how this sync reads its table, and in words why.

Pure: it looks at the mark, the snapshot and the catalog, and touches no connection.
"""

from collections.abc import Collection
from dataclasses import dataclass

from replica_platform.xmin.errors import CannotSync
from replica_platform.xmin.source.catalog import Column, Table, same
from replica_platform.xmin.source.drift import drift
from replica_platform.xmin.source.snapshot import LOW32, Snapshot
from replica_platform.xmin.target.watermark import Mark

MODES = ("auto", "full", "scan", "timestamp")
# age() is a signed 32-bit distance; the margin is what may pass while we look.
FARTHEST = 2**31 - 10_000_000


@dataclass(frozen=True)
class Plan:
    """How to read: the mode, why, and which leaves are read whole."""

    mode: str
    why: str
    whole: frozenset[int] = frozenset()
    w: int | None = None
    """Read versions at or above this xid ..."""
    delivered: tuple[int, ...] = ()
    """... but not those of these xids (low 32 bits)."""
    since: str | None = None
    added: tuple[Column, ...] = ()
    """New columns that need no row to be read: old rows have a constant there."""
    verify: bool = False
    """Of a full read: only key ranges whose hashes differ on the two sides are read."""


def decide(
    table: Table,
    snapshot: Snapshot,
    mark: Mark | None,
    *,
    mode: str,
    timestamp_column: str | None,
    key: tuple[str, ...],
    deletes: str,
    target_columns: Collection[str] = (),
    distrust: str = "",
) -> Plan:
    """Choose how to read. Errors: `CannotSync` where the asked mode cannot work.

    `distrust` says why the target is not believed to hold what its mark says.
    """
    if mode not in MODES:
        raise CannotSync(f"There is no mode {mode!r}; choose one of {', '.join(MODES)}.")
    if mode == "timestamp" or (mode == "auto" and timestamp_column and not table.has_xmin):
        return _timestamp(table, snapshot, mark, timestamp_column, key)
    if not key and deletes == "never":
        raise CannotSync(
            f"{table.name} has no key, so a changed row is replaced by deleting it, which "
            "deletes='never' forbids. Give it a primary key or a unique index of NOT NULL columns, "
            "name its key columns with key, or use deletes='auto'."
        )
    if mode == "full":
        return Plan("full", "A full copy was asked for.")
    if not table.has_xmin:
        kind = {"v": "a view", "f": "a foreign table"}.get(table.kind, "not a heap table")
        if mode == "scan":
            raise CannotSync(
                f"{table.name} is {kind} and has no xmin; use mode full, "
                "or timestamp with a column."
            )
        return Plan(
            "full", f"{table.name} is {kind}: it has no xmin and names no timestamp column."
        )
    if not key:
        why = f"{table.name} has no primary key and no unique index of NOT NULL columns."
        if mode == "scan":
            raise CannotSync(f"{why} Give it one, or use mode full.")
        return Plan("full", why)
    if mark is None:
        return Plan("full", "There is no mark of an earlier sync.")
    unfit = _unfit(table, mark, target_columns)
    doubt = distrust or _doubt(snapshot, mark)
    if doubt and not unfit and not drift(mark.fingerprint, table).added:
        why = f"{doubt} Both sides are compared by hashes, and only what differs is read."
        return Plan("full", why, verify=True)
    if doubt or unfit:
        return Plan("full", doubt or unfit)
    if _idle(table, snapshot, mark, deletes):
        return Plan("none", "No transaction has finished on the source since the last sync.")
    return _scan(table, snapshot, mark)


def _unfit(table: Table, mark: Mark, target_columns: Collection[str]) -> str:
    """Why the target's rows tell nothing of this table's; empty where they do."""
    if mark.mode == "timestamp":
        return "The last sync read by timestamp, which leaves no W to go on from."
    if mark.source_table != str(table.name):
        return f"The target was synced from {mark.source_table} before."
    drifted = drift(mark.fingerprint, table)
    kept = [column.name for column in drifted.added if column.name in target_columns]
    if kept:
        return f"The target has had a column {kept[0]} already; what it holds is not the new one's."
    untold = [column.name for column in drifted.added if column.missing is None]
    if untold and any(mark.leaves.get(str(f.oid), f.filenode) != f.filenode for f in table.leaves):
        # VACUUM FULL writes the constant into the rows, under their old xmin, and forgets it.
        return f"Column {untold[0]} is new and the table was rewritten: no telling what rows hold."
    return drifted.whole


def _doubt(snapshot: Snapshot, mark: Mark) -> str:
    """Why W tells nothing of the source's rows as they are now; empty where it does."""
    if mark.identity != snapshot.identity:
        return (
            "The source is another server, timeline or database than at the last sync, "
            "so its xids tell another story."
        )
    if snapshot.next < mark.next:
        return "The source is behind the last sync: its next xid is lower than it was."
    if snapshot.next - mark.w >= FARTHEST:
        return (
            f"{snapshot.next - mark.w:,} xids have passed since the mark, too many for a 32-bit "
            "xmin to tell new rows from old."
        )
    return ""


def _scan(table: Table, snapshot: Snapshot, mark: Mark) -> Plan:
    known = set(mark.leaves)
    fresh = frozenset(leaf.oid for leaf in table.leaves if str(leaf.oid) not in known)
    why = f"The mark of xid {mark.w:,} is {snapshot.next - mark.w:,} xids away, safe for xmin."
    if fresh:
        why += f" {len(fresh)} leaf table(s) are new and are read whole."
    delivered = tuple(xid & LOW32 for xid in mark.delivered) if mark.complete else ()
    added = drift(mark.fingerprint, table).added
    return Plan("scan", why, fresh, mark.w, delivered, added=added)


def _idle(table: Table, snapshot: Snapshot, mark: Mark, deletes: str) -> bool:
    # Equal snapshots see equal rows. An unlogged table is emptied by a crash without any xid.
    return (
        mark.snapshot == snapshot.text
        and mark.deletes == deletes
        and same(mark.fingerprint, table.fingerprint)
        and all(leaf.persistence == "p" for leaf in table.leaves)
        and mark.leaves == {str(leaf.oid): leaf.filenode for leaf in table.leaves}
    )


def _timestamp(
    table: Table, snapshot: Snapshot, mark: Mark | None, column: str | None, key: tuple[str, ...]
) -> Plan:
    if column is None or column not in table.names:
        raise CannotSync(
            f"Mode timestamp needs a column of {table.name} that every write moves forward; "
            f"name one with timestamp_column (it has {', '.join(table.names)})."
        )
    if not key:
        raise CannotSync(
            f"{table.name} has no key to match rows by; name its key columns, or use mode full."
        )
    first = f"Rows are read by {column}."
    if mark is None or mark.mode != "timestamp" or mark.timestamp_from is None:
        return Plan("timestamp", f"{first} There is no mark of an earlier sync, so all of them.")
    if mark.identity != snapshot.identity or not same(mark.fingerprint, table.fingerprint):
        return Plan("timestamp", f"{first} The source or its definition changed, so all of them.")
    return Plan("timestamp", f"{first} From {mark.timestamp_from} on.", since=mark.timestamp_from)
