"""Small tables that are replaced as a whole, and only when a row of theirs differs."""

import time
from collections.abc import Callable, Mapping

import pandas as pd

from replica_platform.market.tables.batches import log_batch
from replica_platform.market.tables.master import (
    Connection,
    MarketMaster,
    Written,
    columns_of,
    row_count,
    value,
)

Query = Callable[[Connection], str]


def replace_table(
    master: MarketMaster,
    table: str,
    query: Query,
    frames: Mapping[str, pd.DataFrame],
    *,
    total: str = "true",
    key: str = "symbol",
) -> Written:
    """Replace a table by the rows of a query, unless it has exactly these rows.

    The rows are compared under a reader's lock first: an unchanged table needs no writer's lock.

    Args:
        master: The master; made if absent.
        table: The table's name; made if absent.
        query: Returns the query for the rows, in the order that the table gets.
        frames: The data frames that the query names.
        total: A condition for the rows that the log counts as the table's.
        key: The column that identifies a row.
    """
    if master.path.exists():
        with master.read() as connection:
            _register(connection, frames)
            if _same(connection, table, query(connection)):
                return Written(
                    table, row_count(connection, table), False, columns_of(connection, table)
                )
    with master.write() as connection:
        began = time.monotonic()
        _register(connection, frames)
        connection.execute(f"create or replace temp table incoming as {query(connection)}")
        inserted, updated = _differences(connection, table, key)
        connection.execute(f'create or replace table "{table}" as from incoming')
        connection.execute("drop table incoming")
        counted = value(connection, f'select count(*) from "{table}" where {total}')
        log_batch(
            connection, table, first_day=None, inserted=inserted, updated=updated, total=counted
        )
        return Written(
            table,
            row_count(connection, table),
            True,
            columns_of(connection, table),
            inserted=inserted,
            updated=updated,
            held_s=time.monotonic() - began,
        )


def _register(connection: Connection, frames: Mapping[str, pd.DataFrame]) -> None:
    for name, frame in frames.items():
        connection.register(name, frame)


def _same(connection: Connection, table: str, query: str) -> bool:
    """Return whether the table exists with exactly the columns and rows of the query."""
    wanted = tuple((row[0], row[1]) for row in connection.execute(f"describe {query}").fetchall())
    if columns_of(connection, table) != wanted:
        return False
    return not value(
        connection,
        f'select exists (({query}) except all from "{table}")'
        f' or exists (from "{table}" except all ({query}))',
    )


def _differences(connection: Connection, table: str, key: str) -> tuple[int, int]:
    """Return how many rows of `incoming` are new to the table and how many differ from theirs."""
    rows = int(value(connection, "select count(*) from incoming"))
    known = {name for name, _ in columns_of(connection, table)}
    if key not in known:
        return rows, 0
    new = int(
        value(connection, f'select count(*) from incoming anti join "{table}" using ("{key}")')
    )
    if columns_of(connection, table) != columns_of(connection, "incoming"):
        return new, rows - new
    differing = value(connection, f'select count(*) from (from incoming except all from "{table}")')
    return new, int(differing) - new
