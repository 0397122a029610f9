"""Hashes of a table's keys by ranges, the same on both servers.

Ranges are cut by the key's hash, so that neither collations nor byte orders matter. Ranges of equal
count and xor hold equal keys to one in 2^64; only the others are compared key by key. Columns that
are wider in the target are hashed in their type there: the text of one value depends on its type.
"""

from collections.abc import Mapping, Sequence

import psycopg
from psycopg import sql

from replica_platform.xmin.names import cast_columns
from replica_platform.xmin.source.catalog import SourceTable

ROWS_PER_RANGE = 128
MOST_RANGES = 1 << 16
# The low 32 bits of a target row's xmin, as a row's version to hash.
TARGET_XMIN = sql.SQL("(coalesce(source_xmin, -1) & 4294967295)")

RangeSums = Mapping[int, tuple[int, int]]


class KeyHashes:
    """The hashes of one table's keys.

    Attributes:
        key: The key columns.
        columns: The key columns in the types of the target, for a SELECT.
        range_count: The number of ranges.
    """

    def __init__(
        self, table: SourceTable, key: Sequence[str], rows: int, casts: Mapping[str, str]
    ) -> None:
        """Choose the number of ranges.

        Args:
            table: The source table.
            key: The key columns.
            rows: How many rows there are, about.
            casts: Columns that are wider in the target, with their types there.
        """
        self.key = list(key)
        self.columns = cast_columns(self.key, casts)
        self._types = [casts.get(name, table.types[name]) for name in key]
        self.range_count = 1
        while self.range_count < MOST_RANGES and self.range_count * ROWS_PER_RANGE < rows:
            self.range_count *= 2

    @property
    def _hash(self) -> sql.Composable:
        """64 bits of the key, the same on every supported server."""
        if self._types in (["bigint"], ["integer"], ["smallint"]):
            return sql.SQL("hashint8extended({}::bigint, 0)").format(sql.Identifier(self.key[0]))
        return sql.SQL('hashtextextended(row({})::text collate "C", 0)').format(self.columns)

    @property
    def _range(self) -> sql.Composable:
        return sql.SQL("({} & {})::int").format(self._hash, sql.Literal(self.range_count - 1))

    def sums(
        self,
        connection: psycopg.Connection,
        from_item: sql.Composable,
        version: sql.Composable | None = None,
    ) -> RangeSums:
        """Return count and xor of the hashes by range.

        Args:
            connection: A session on either server.
            from_item: The rows there.
            version: A bigint of the row that is hashed with the key.
        """
        hashed = self._hash
        if version is not None:
            hashed = sql.SQL("hashint8extended({}, {})").format(version, hashed)
        rows = connection.execute(
            sql.SQL("select {}, count(*), bit_xor({}) from {} group by 1").format(
                self._range, hashed, from_item
            )
        )
        return {number: (count, xor) for number, count, xor in rows}

    def within(self, ranges: Sequence[int]) -> sql.Composable:
        """Return the condition that a key lies in one of the ranges."""
        return sql.SQL("{} = any({}::int[])").format(self._range, sql.Literal(list(ranges)))


def differing_ranges(one: RangeSums, other: RangeSums) -> list[int]:
    """Return the ranges whose sums differ."""
    return [number for number in {*one, *other} if one.get(number) != other.get(number)]


def row_hash(
    columns: Sequence[str],
    casts: Mapping[str, str],
    *more: sql.Composable,
    masks: Mapping[str, sql.Composable] | None = None,
) -> sql.Composable:
    """Return the expression that hashes the text of some columns and values as a bigint.

    Args:
        columns: The columns.
        casts: Columns that are wider in the target, with their types there.
        more: Further values.
        masks: What is hashed instead of masked columns, where these are read as they are.
    """
    listed = [
        masks[name] if masks and name in masks else cast_columns([name], casts) for name in columns
    ]
    return sql.SQL("hashtextextended(row({})::text, 0)").format(
        sql.SQL(", ").join([*listed, *more])
    )
