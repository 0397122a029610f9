"""Deleted rows, found by comparing keys, since a delete leaves no xmin.

The target's keys are fixed first (the sync holds the lock on the table), then the source's snapshot
is taken; a key that is absent there is deleted. In the other order, a row that arrives between the
two reads would be deleted and never come back, since its xmin lies below W.
"""

import psycopg
from psycopg import sql

from replica_platform.xmin.copy.stream import copy_stream
from replica_platform.xmin.errors import translate_errors
from replica_platform.xmin.integrity.key_hashes import KeyHashes, differing_ranges
from replica_platform.xmin.names import TableName, columns_sql, equal_columns
from replica_platform.xmin.source.catalog import SourceTable

_SOURCE_KEYS = sql.SQL("pg_temp.replica_source_keys")


def delete_absent_keys(
    source: psycopg.Connection,
    table: SourceTable,
    target: psycopg.Connection,
    target_name: TableName,
    keys: KeyHashes,
) -> int:
    """Delete from the target the rows whose keys the source's snapshot lacks; return how many."""
    from_item = table.rows(keys.key)
    in_target = keys.sums(target, target_name.sql)
    with translate_errors("source", table.name):
        in_source = keys.sums(source, from_item)
    ranges = differing_ranges(in_target, in_source)
    if not ranges:
        return 0
    within = keys.within(ranges)
    columns = columns_sql(keys.key)
    target.execute(
        sql.SQL("create temp table {} on commit drop as select {} from {} with no data").format(
            _SOURCE_KEYS, columns, target_name.sql
        )
    )
    copy_stream(
        source,
        sql.SQL("copy (select {} from {} where {}) to stdout").format(
            keys.columns, from_item, within
        ),
        target,
        sql.SQL("copy {} from stdin").format(_SOURCE_KEYS),
        target_name,
    )
    target.execute(sql.SQL("analyze {}").format(_SOURCE_KEYS))
    deleted = target.execute(
        sql.SQL("delete from {} t where {} and not exists (select from {} k where {})").format(
            target_name.sql, within, _SOURCE_KEYS, equal_columns(keys.key, "t", "k")
        )
    ).rowcount
    target.execute(sql.SQL("drop table {}").format(_SOURCE_KEYS))
    return deleted
