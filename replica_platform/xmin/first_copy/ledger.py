"""The ledger of a first copy, by which it continues at a new snapshot.

A copy that was killed, or whose snapshot was released to bound the source's horizon, keeps the
ranges that have arrived. The others are read as they are now, but only rows older than the first
snapshot's W. At the last snapshot every row at or above that W in the whole table is merged over
them, and what was deleted meanwhile is deleted.

Each key is loaded once: a version older than W was visible to the first snapshot, so it is the only
such version of its key, and it stays in one range until it is gone. All of its successors are at
or above W. A range is recorded only once the source has flushed what its snapshot saw: a crash
there could undo a transaction that it has seen. The ledger is UNLOGGED: a crash of the target
empties it, and the copy starts over.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import psycopg
from psycopg import sql

from replica_platform.xmin.copy.changes import ChangedRows
from replica_platform.xmin.copy.ranges import Range, ranges
from replica_platform.xmin.names import TableName
from replica_platform.xmin.source.catalog import SourceTable, same_fingerprint
from replica_platform.xmin.source.snapshot import FARTHEST, Identity, Snapshot
from replica_platform.xmin.target.schemas import SCHEMA

_LEDGER = sql.Identifier(SCHEMA, "first_copy")
# The name of the ledger's line that says how the copy began.
_HEAD = "head"


@dataclass(frozen=True)
class CopyStart:
    """How a first copy began.

    Attributes:
        w: W of its snapshot.
        next: The next xid of its snapshot.
        identity: The source's identity.
        fingerprint: The table's definition.
        leaves: oid → filenode; a rewrite of a leaf moves its rows across the ranges.
        heap_blocks: oid → blocks, to cut the same ranges again.
        range_blocks: The most blocks of a range.
        streams: How many streams it had.
        logged: Whether its table is a logged one with full xids; that of an earlier version is not.
        locations: Whether it has the columns of the rows' locations.
    """

    w: int
    next: int
    identity: Mapping[str, Any]
    fingerprint: Mapping[str, Any]
    leaves: Mapping[str, int]
    heap_blocks: Mapping[str, int]
    range_blocks: int
    streams: int
    logged: bool = False
    locations: bool = False


@dataclass(frozen=True)
class InterruptedCopy:
    """A first copy that can be continued.

    Attributes:
        waiting: The ranges that have not arrived.
        arrived: How many ranges have arrived.
        newer: The rows to merge over all ranges: those not older than the first snapshot's W.
        rows: The rows that have arrived; None where an earlier version did not count them.
        locations: Whether they were loaded with their locations.
    """

    waiting: list[Range]
    arrived: int
    newer: ChangedRows
    rows: int | None
    locations: bool = False

    @property
    def older(self) -> sql.Composable:
        """The condition on the rows of the ranges that have not arrived."""
        return sql.SQL("not ({})").format(self.newer.condition)

    @property
    def note(self) -> str:
        """What the report says of it, where another sync has begun it."""
        total = self.arrived + len(self.waiting)
        return f"an interrupted copy went on: {self.arrived} of {total} ranges had arrived"


def copy_start(
    table: SourceTable,
    snapshot: Snapshot,
    range_blocks: int,
    streams: int,
    *,
    locations: bool = False,
) -> CopyStart:
    """Return the start of a copy that begins now."""
    return CopyStart(
        snapshot.w,
        snapshot.next,
        asdict(snapshot.identity),
        table.fingerprint,
        table.filenodes,
        {str(leaf.oid): leaf.blocks for leaf in table.leaves},
        range_blocks,
        streams,
        logged=True,
        locations=locations,
    )


def write_start(target: psycopg.Connection, name: TableName, start: CopyStart) -> None:
    """Begin the ledger of a copy."""
    clear(target, name)
    _write(target, name, _HEAD, json.dumps(asdict(start)))


def write_range(target: psycopg.Connection, name: TableName, arrived: Range, rows: int) -> None:
    """Record a range as arrived with its rows, in their transaction."""
    _write(target, name, _range_key(arrived), json.dumps({"rows": rows}))


def clear(target: psycopg.Connection, name: TableName) -> None:
    """Delete the ledger of a copy."""
    query = sql.SQL("delete from {} where target_table = %s")
    target.execute(query.format(_LEDGER), [str(name)])


def find_interrupted(
    target: psycopg.Connection, name: TableName, table: SourceTable, snapshot: Snapshot
) -> InterruptedCopy | None:
    """Return the interrupted copy of a table; None without one that can be continued."""
    query = sql.SQL("select part, state from {} where target_table = %s")
    lines: dict[str, Any] = dict(target.execute(query.format(_LEDGER), [str(name)]).fetchall())
    head = lines.pop(_HEAD, None)
    if head is None or not lines:
        return None
    start = CopyStart(**head)
    if not _can_continue(start, table, snapshot):
        return None
    known = [leaf for leaf in table.leaves if str(leaf.oid) in start.leaves]
    leaves = [replace(leaf, blocks=start.heap_blocks[str(leaf.oid)]) for leaf in known]
    cut = ranges(leaves, start.range_blocks, start.streams)
    # A leaf that has come since is read whole at the end, and merged as after any other sync.
    new = frozenset(leaf.oid for leaf in table.leaves if leaf not in known)
    waiting = [one for one in cut if _range_key(one) not in lines]
    counts = [state.get("rows") for state in lines.values()]
    rows = None if None in counts else sum(counts)
    changed = ChangedRows(start.w, new_leaves=new)
    return InterruptedCopy(waiting, len(lines), changed, rows, start.locations)


def _can_continue(start: CopyStart, table: SourceTable, snapshot: Snapshot) -> bool:
    return (
        start.logged
        and Identity(**start.identity) == snapshot.identity
        and same_fingerprint(dict(start.fingerprint), table)
        and start.leaves.items() <= table.filenodes.items()
        and start.next <= snapshot.next < start.w + FARTHEST
    )


def _range_key(one: Range) -> str:
    return f"{one.leaf.oid}:{one.first}:{one.last}"


def _write(target: psycopg.Connection, name: TableName, part: str, state: str) -> None:
    query = sql.SQL("insert into {} (target_table, part, state) values (%s, %s, %s)")
    target.execute(query.format(_LEDGER), [str(name), part, state])
