"""Which row groups of a table are the same in two generations, told without reading their rows.

A row group is a run of rows whose columns lie in segments, each in a place in a block. Where every
segment has the same place and form in both generations, and the manifests say that those blocks
are the same bytes, the rows are the same too. Deleted rows are marked outside of the segments; they
are compared by the row ids that are left, which costs no column.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from replica_platform.replica.compare.tables import Pair, Table
from replica_platform.replica.copy.file_format import BLOCK_BYTES
from replica_platform.replica.store.manifest import Manifest

# Types whose segments might not all be listed.
UNLISTED = ("VARIANT", "GEOMETRY")
GROUPS_A_QUERY = 50
# More ranges are planned more slowly than all rows are read.
MOST_RANGES = 64
# A constant segment has no block: its statistics are its value.
_SEGMENTS = """
select row_group_id, column_id, column_path, count, block_id, additional_block_ids,
    persistent and not has_updates, segment_id, segment_type, start, compression, stats,
    block_offset
from pragma_storage_info(?)
"""
SEGMENTS_A_FETCH = 10_000

Range = tuple[int, int]


@dataclass(frozen=True)
class Unread:
    """The rows of a table that have to be read in both generations.

    Attributes:
        before: The first and last row id of each range of rows; None for all rows.
        after: The same of the other generation.
        rows: How many rows these are in both, deleted ones included.
    """

    before: Sequence[Range] | None
    after: Sequence[Range] | None
    rows: int


class _Group:
    """A row group: the place and form of its segments, and whether they are the same bytes."""

    def __init__(self, first_column: int) -> None:
        self._first = first_column
        self.start = 0
        self.rows = 0
        self.usable = True
        self._segments = hashlib.sha256()

    def add(self, segment: tuple[Any, ...], same: "SameBlocks") -> None:
        """Add a segment; they come in one order."""
        _, column, path, count, block, others, stored, *_ = segment
        if path == f"[{column}, 0]" and column == self._first:  # which of its values are NULL
            self.rows += count
        self.usable = self.usable and stored and all(map(same.holds, (block, *others)))
        self._segments.update(repr(segment[1:]).encode())

    @property
    def signature(self) -> bytes:
        """A digest of its segments."""
        return self._segments.digest()

    @property
    def range(self) -> Range:
        """Its first and last row id."""
        return self.start, self.start + self.rows - 1


class SameBlocks:
    """The blocks that are the same bytes in two generations.

    Args:
        before: The first generation.
        after: The other one.
        block_bytes: DuckDB's block size in each.
    """

    def __init__(self, before: Manifest, after: Manifest, block_bytes: tuple[int, int]) -> None:
        ours, theirs = before.block_digests, after.block_digests
        same = {at for at, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a == b}
        self._size = block_bytes[0]
        self._same = same if block_bytes[0] == block_bytes[1] else set()

    def holds(self, block: int) -> bool:
        """Return whether a block of DuckDB is one of them; -1 stands for no block."""
        # Block 0 of the manifest is the header.
        return block < 0 or 1 + block * self._size // BLOCK_BYTES in self._same


def find_unread(
    connection: duckdb.DuckDBPyConnection, pair: Pair, same: SameBlocks, rows: tuple[int, int]
) -> Unread:
    """Return the rows of a table that may differ.

    Args:
        connection: The connection to which both generations are attached.
        pair: The table.
        same: The blocks that are the same.
        rows: How many rows it has in each generation.

    Raises:
        duckdb.Error: A generation cannot be read.
    """
    everything = Unread(None, None, sum(rows))
    kinds = " ".join(pair.before.columns.values()).upper()
    if not pair.same_columns or any(one in kinds for one in UNLISTED):
        return everything
    before = _groups(connection, pair.before, same)
    after = _groups(connection, pair.after, same)
    matched = _matched(before, after)
    if not matched:
        return everything
    deleted = any(
        sum(group.rows for group in groups) != count
        for groups, count in zip((before, after), rows, strict=True)
    )
    # Such a column hides the row ids.
    hidden = any(name.lower() == "rowid" for name in pair.before.columns)
    if deleted and hidden:
        return everything
    if deleted:
        ours = _left(connection, pair.before, [one for one, _ in matched])
        theirs = _left(connection, pair.after, [other for _, other in matched])
        matched = [groups for groups, a, b in zip(matched, ours, theirs, strict=True) if a == b]
    unread = (
        _ranges(before, {one.start for one, _ in matched}),
        _ranges(after, {other.start for _, other in matched}),
    )
    if max(map(len, unread)) > MOST_RANGES or (hidden and any(unread)):
        return everything
    return Unread(*unread, sum(end - start + 1 for some in unread for start, end in some))


def _groups(connection: duckdb.DuckDBPyConnection, table: Table, same: SameBlocks) -> list[_Group]:
    groups: dict[int, _Group] = {}
    try:
        listed = connection.execute(_SEGMENTS, [table.source])
    except (duckdb.CatalogException, duckdb.BinderException, duckdb.ParserException):
        return []  # a name with a quotation mark in it, or another version of DuckDB
    while segments := listed.fetchmany(SEGMENTS_A_FETCH):
        for segment in segments:
            number, column, *_ = segment
            group = groups.get(number)
            if group is None:
                group = groups[number] = _Group(column)
            group.add(segment, same)
    found = [group for _, group in sorted(groups.items())]
    if not all(group.rows for group in found):
        return []  # the segments are listed in another way than is known here
    start = 0
    for group in found:
        group.start = start
        start += group.rows
    return found


def _matched(before: list[_Group], after: list[_Group]) -> list[tuple[_Group, _Group]]:
    """Return the row groups with the same segments in both, each at most once."""
    others: dict[bytes, list[_Group]] = {}
    for group in reversed(after):
        if group.usable:
            others.setdefault(group.signature, []).append(group)
    return [
        (group, others[group.signature].pop())
        for group in before
        if group.usable and others.get(group.signature)
    ]


def _left(
    connection: duckdb.DuckDBPyConnection, table: Table, groups: Sequence[_Group]
) -> list[tuple[int, ...]]:
    """Return of each row group what its rows that are not deleted come to."""
    found: list[tuple[int, ...]] = []
    for at in range(0, len(groups), GROUPS_A_QUERY):
        query = " union all ".join(
            f"select {number}, count(*), sum(rowid - {group.start}), "
            f"bit_xor(hash(rowid - {group.start})) from {table.source} "
            f"where rowid between {group.range[0]} and {group.range[1]}"
            for number, group in enumerate(groups[at : at + GROUPS_A_QUERY])
        )
        found += [tuple(row[1:]) for row in sorted(connection.execute(query).fetchall())]
    return found


def _ranges(groups: list[_Group], but: set[int]) -> list[Range]:
    """Return the row ids of the groups that do not begin at one of these; neighbours as one."""
    ranges: list[Range] = []
    for group in groups:
        if group.start in but:
            continue
        first, last = group.range
        if ranges and ranges[-1][1] + 1 == first:
            first = ranges.pop()[0]
        ranges.append((first, last))
    return ranges
