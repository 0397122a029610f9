"""Which key ranges differ, by hashes of whole rows: for a target whose mark cannot be carried on.

After a failover to a physical standby nearly every row is what it was; hashing both sides where
they are costs far less than moving them. A row's low 32 bits of xmin are hashed in with its
content: content alone would leave an xmin of the other history in the target, and should that
number come again in this one, the MERGE would take a changed row for one that it has.
"""

from concurrent.futures import ThreadPoolExecutor

import psycopg
from psycopg import sql

from replica_platform.xmin.integrity.deletes import Keys
from replica_platform.xmin.names import TableName, columns_sql
from replica_platform.xmin.session import in_words
from replica_platform.xmin.source.catalog import Table

_OURS = sql.SQL("(coalesce(source_xmin, -1) & 4294967295)")


def differing(
    source: psycopg.Connection,
    table: Table,
    home: psycopg.Connection,
    target: TableName,
    key: tuple[str, ...],
) -> sql.Composable | None:
    """A condition on the key, true in the ranges that differ; None where both sides are equal.

    The source is read at the leader's snapshot; the target stays as it is, by the sync's lock.
    """
    types = {column.name: column.type for column in table.columns}
    row = home.execute(sql.SQL("select count(*) from {}").format(target.sql)).fetchone()
    keys = Keys(key, [types[name] for name in key], row[0] if row else 0)

    def far() -> dict[int, tuple[int, int]]:
        with in_words("source", str(table.name)):
            place = table.rows(table.names, system=True)
            theirs = sql.SQL("{}::text::bigint").format(table.version)
            return keys.sums(source, place, _image(table, theirs))

    with ThreadPoolExecutor(1) as pool:  # two servers, at the same time
        waiting = pool.submit(far)
        here = keys.sums(home, target.sql, _image(table, _OURS))
        there = waiting.result()
    ranges = [part for part in {*here, *there} if here.get(part) != there.get(part)]
    return keys.within(ranges) if ranges else None


def _image(table: Table, version: sql.Composable) -> sql.Composable:
    return sql.SQL("hashtextextended(row({}, {})::text, 0)").format(
        columns_sql(table.names), version
    )
