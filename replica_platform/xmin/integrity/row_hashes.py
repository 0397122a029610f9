"""Key ranges that differ by hashes of whole rows, for a target whose W says nothing of its rows.

After a failover to a physical standby nearly every row is what it was; hashing both sides where
they are costs far less than moving them. A row's low 32 bits of xmin are hashed in with its
content: content alone would leave an xmin of the lost history in the target, and should that
number come again in this one, the MERGE would take a changed row for one that it has.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import psycopg
from psycopg import sql

from replica_platform.xmin.errors import translate_errors
from replica_platform.xmin.integrity.key_hashes import (
    TARGET_XMIN,
    KeyHashes,
    RangeSums,
    differing_ranges,
    row_hash,
)
from replica_platform.xmin.names import TableName
from replica_platform.xmin.source.catalog import SourceTable
from replica_platform.xmin.target.tables import CTID, LEAF, count_rows


def differing_keys(
    source: psycopg.Connection,
    table: SourceTable,
    target: psycopg.Connection,
    target_name: TableName,
    key: tuple[str, ...],
    columns: Sequence[str],
    casts: Mapping[str, str],
    *,
    locations: bool = False,
) -> sql.Composable | None:
    """Return the condition that a key lies in a range that differs; None where both are equal.

    The source is read at its snapshot; the lock of the sync keeps the target as it is.

    Args:
        source: A session on the source.
        table: The source table.
        target: A session on the target.
        target_name: The target table.
        key: The key columns.
        columns: The columns to compare, which both sides have.
        casts: Columns that are wider in the target, with their types there.
        locations: Whether the rows' locations in the source are compared, too.
    """
    keys = KeyHashes(table, key, count_rows(target, target_name), casts)

    def source_sums() -> RangeSums:
        xmin = sql.SQL("{}::text::bigint").format(table.xmin_column)
        located = [table.leaf_column, table.tid_column] if locations else []
        with translate_errors("source", table.name):
            rows = table.rows(table.names, system=True)
            return keys.sums(source, rows, row_hash(columns, casts, xmin, *located))

    with ThreadPoolExecutor(1) as pool:  # two servers, at the same time
        in_source = pool.submit(source_sums)
        located = [sql.Identifier(LEAF), sql.Identifier(CTID)] if locations else []
        in_target = keys.sums(
            target, target_name.sql, row_hash(columns, casts, TARGET_XMIN, *located)
        )
        ranges = differing_ranges(in_target, in_source.result())
    return keys.within(ranges) if ranges else None
