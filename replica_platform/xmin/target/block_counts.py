"""Where the source's rows lay at the last scan: counts by bucket of heap blocks, in the target.

They only say where to look for deleted rows. They belong to one watermark: after a sync that has
not counted, they are not used. The SQL table is created with that of the watermarks.
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

import psycopg
from psycopg import sql

from replica_platform.xmin.names import TableName
from replica_platform.xmin.target.schemas import SCHEMA

_TABLE = sql.Identifier(SCHEMA, "block_counts")
_READ = "select blocks, counts from {} where target_table = %s and snapshot = %s"
_WRITE = """
insert into {} (target_table, snapshot, blocks, counts)
select target_table, %s, blocks,
       array(select c::bigint from jsonb_array_elements_text(counts) with ordinality e(c, n)
             order by n)
from jsonb_to_recordset(%s::jsonb) t(target_table text, blocks int, counts jsonb)
on conflict (target_table) do update set
    (snapshot, blocks, counts) = (excluded.snapshot, excluded.blocks, excluded.counts)
"""


def read_counts(
    target: psycopg.Connection, table: TableName, snapshot: str
) -> tuple[int, list[int]] | None:
    """Return the blocks of a bucket and the counts by bucket; None where there are none.

    Args:
        target: A session on the target.
        table: The target table.
        snapshot: The snapshot of its watermark, as text.
    """
    row = target.execute(sql.SQL(_READ).format(_TABLE), [str(table), snapshot]).fetchone()
    return (row[0], row[1]) if row else None


class TableCounts(NamedTuple):
    """Where the rows of one table lay.

    Attributes:
        table: The target table.
        blocks: How many heap blocks a bucket has.
        counts: The rows in each bucket.
    """

    table: TableName
    blocks: int
    counts: list[int]


def write_counts(target: psycopg.Connection, snapshot: str, tables: Sequence[TableCounts]) -> None:
    """Store the counts of scans at one snapshot, in the transaction of their watermarks."""
    if tables:
        listed = [
            {"target_table": str(one.table), "blocks": one.blocks, "counts": one.counts}
            for one in tables
        ]
        target.execute(sql.SQL(_WRITE).format(_TABLE), [snapshot, json.dumps(listed)])
