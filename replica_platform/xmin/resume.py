"""A first copy that was killed goes on where it was, under a new snapshot.

The ranges that had arrived are kept; the others are read as they are now, but only rows older
than the first snapshot's W, and then every row at or above that W in the whole table is merged
over them. Each key is loaded once: a version older than W was visible to both snapshots, in one
range. The ledger is UNLOGGED like the rows that it speaks of, so that a crash of the target
empties both.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import psycopg
from psycopg import sql

from replica_platform.xmin.copy.ranges import Range
from replica_platform.xmin.names import TableName
from replica_platform.xmin.plan import FARTHEST
from replica_platform.xmin.source.catalog import Table, same
from replica_platform.xmin.source.snapshot import Identity, Snapshot
from replica_platform.xmin.target.watermark import SCHEMA

_LEDGER = sql.Identifier(SCHEMA, "first_copy")
_HEAD = "head"


@dataclass(frozen=True)
class Half:
    """What a first copy began with."""

    w: int
    next: int
    identity: Mapping[str, Any]
    fingerprint: Mapping[str, Any]
    leaves: Mapping[str, int]
    """oid → filenode: a rewritten leaf has moved its rows across the ranges."""
    heap_blocks: Mapping[str, int]
    """oid → blocks, to cut the same ranges again."""
    range_blocks: int
    streams: int


def begun(table: Table, snapshot: Snapshot, range_blocks: int, streams: int) -> Half:
    """The head of a copy that begins now."""
    return Half(
        snapshot.w,
        snapshot.next,
        asdict(snapshot.identity),
        table.fingerprint,
        {str(leaf.oid): leaf.filenode for leaf in table.leaves},
        {str(leaf.oid): leaf.blocks for leaf in table.leaves},
        range_blocks,
        streams,
    )


def write_head(target: psycopg.Connection, name: TableName, half: Half) -> None:
    """Begin the ledger of a copy anew."""
    clear(target, name)
    _write(target, name, _HEAD, json.dumps(asdict(half)))


def write_range(target: psycopg.Connection, name: TableName, part: Range) -> None:
    """Note a range as arrived, in the transaction of its rows."""
    _write(target, name, key_of(part), "{}")


def clear(target: psycopg.Connection, name: TableName) -> None:
    """Forget a copy."""
    query = sql.SQL("delete from {} where target_table = %s")
    target.execute(query.format(_LEDGER), [str(name)])


def find(
    target: psycopg.Connection, name: TableName, table: Table, snapshot: Snapshot
) -> tuple[Half, set[str]] | None:
    """The interrupted copy and the keys of its ranges, where it can still go on."""
    query = sql.SQL("select part, state from {} where target_table = %s")
    rows: dict[str, Any] = dict(target.execute(query.format(_LEDGER), [str(name)]).fetchall())
    head = rows.pop(_HEAD, None)
    if head is None or not rows:
        return None
    half = Half(**head)
    fits = (
        Identity(**half.identity) == snapshot.identity
        and same(dict(half.fingerprint), table.fingerprint)
        and dict(half.leaves) == {str(leaf.oid): leaf.filenode for leaf in table.leaves}
        and half.next <= snapshot.next < half.w + FARTHEST
    )
    return (half, set(rows)) if fits else None


def key_of(part: Range) -> str:
    """A range's name in the ledger."""
    return f"{part.leaf.oid}:{part.first}:{part.last}"


def _write(target: psycopg.Connection, name: TableName, part: str, state: str) -> None:
    query = sql.SQL("insert into {} (target_table, part, state) values (%s, %s, %s)")
    target.execute(query.format(_LEDGER), [str(name), part, state])
