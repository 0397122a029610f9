"""Where the source's rows lay at the last scan: counts by bucket of heap blocks, in the target.

They only say where to look for deleted rows. They belong to one watermark: after a sync that has
not counted, they are not used. The SQL table is created with that of the watermarks.
"""

import psycopg
from psycopg import sql

from replica_platform.xmin.names import TableName
from replica_platform.xmin.target.schemas import SCHEMA

_TABLE = sql.Identifier(SCHEMA, "block_counts")
_READ = "select blocks, counts from {} where target_table = %s and snapshot = %s"
_WRITE = """
insert into {} (target_table, snapshot, blocks, counts) values (%s, %s, %s, %s)
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


def write_counts(
    target: psycopg.Connection, table: TableName, snapshot: str, blocks: int, counts: list[int]
) -> None:
    """Store the counts of a scan, in the transaction of its watermark."""
    target.execute(sql.SQL(_WRITE).format(_TABLE), [str(table), snapshot, blocks, counts])
