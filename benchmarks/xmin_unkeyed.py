"""The cost of a sync of a table without a key, beside that of writing all rows again.

    python -m benchmarks.xmin_unkeyed [--rows 500000]

Seconds, the size of the target's table and the WAL written there.
"""

import argparse
import time
from collections.abc import Callable

import psycopg

from benchmarks.xmin_speed import TABLE, a_server, fill
from replica_platform.xmin import sync


def main() -> None:
    """Sync unchanged and 0.1 % changed rows; delete and insert all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    rows = parser.parse_args().rows
    with a_server() as server:
        source, target = server.dsn("src"), server.dsn("dst")
        fill(source, rows)
        with (
            psycopg.connect(source, autocommit=True) as there,
            psycopg.connect(target, autocommit=True) as here,
        ):
            there.execute("alter table bar drop constraint bar_pkey")
            print(f"{rows:,} rows without a key {TABLE}")
            measured(here, "first copy", lambda: sync(source, target, "bar"))
            measured(here, "nothing changed", lambda: sync(source, target, "bar"))
            there.execute("update bar set qty = qty + 1 where id % 1000 = 0")
            measured(here, "0.1 % changed", lambda: sync(source, target, "bar"))
            here.execute("create unlogged table again as select * from bar")
            measured(here, "the writing alone, all deleted and inserted", lambda: write_all(here))


def write_all(target: psycopg.Connection) -> None:
    """Delete and insert every row."""
    with target.transaction():
        target.execute("delete from bar")
        target.execute("insert into bar select * from again")


def measured(target: psycopg.Connection, what: str, task: Callable[[], object]) -> None:
    """Print the seconds of a task, the table's size after it, and the WAL that it wrote."""
    before, began = _position(target), time.perf_counter()
    task()
    seconds = time.perf_counter() - began
    row = target.execute("select pg_table_size('bar')").fetchone()
    assert row is not None
    wal = _position(target) - before
    print(f"{what}: {seconds:.2f} s, table {row[0] / 1e6:.0f} MB, WAL {wal / 1e6:.0f} MB")


def _position(target: psycopg.Connection) -> int:
    row = target.execute("select (pg_current_wal_insert_lsn() - '0/0')::bigint").fetchone()
    assert row is not None
    return int(row[0])


if __name__ == "__main__":
    main()
