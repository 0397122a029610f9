"""Random writes into a DuckDB file, and a program that is killed while it makes one.

python -m replica_platform_tests.faults.replica_writes WAY MASTER SEED CHECKPOINTS

WAY is `ours` for Master.write, or `plain` for a program of somebody else.
"""

import random
import sys
from contextlib import suppress
from pathlib import Path

import duckdb

from replica_platform.replica import Master


def make(path: Path) -> Master:
    """Make a master with a large table, and one with a key."""
    master = Master(path)
    with master.write() as connection:
        connection.execute(
            "create table a as select range i, hash(range)::varchar s, random() r "
            "from range(200000)"
        )
        connection.execute("create table k (i int primary key, s varchar)")
        connection.execute("insert into k select range, range::varchar from range(20000)")
    return master


def write(connection: duckdb.DuckDBPyConnection, rng: random.Random) -> None:
    """Make one random write; some fail, for a rolled-back transaction writes blocks too."""
    rows = rng.choice([1, 10, 1000, 100_000])
    low, nth = rng.randint(0, 150_000), rng.choice([10, 100, 1000])
    statement = rng.choice(
        [
            f"insert into a (i, s, r) select range, hash(range + {nth}), 0 from range({rows})",
            f"update a set r = random() where i between {low} and {low + rows}",
            f"update a set s = 'x' || s where i % {nth} = 3",
            f"delete from a where i % 97 = {rng.randint(0, 96)}",
            "create or replace table a as select i, s[:20] s, r from a limit 200000",
            f"create or replace table b as select range i, random() q from range({4 * rows})",
            "drop table if exists b",
            f"alter table a add column c{rng.randint(0, 10**9)} int default {rng.randint(0, 9)}",
            "create index if not exists ix on a (i)",
            "drop index if exists ix",
            f"insert or replace into k select {low} + range, random()::varchar from range({nth})",
            "create or replace view v as select 1",
            "insert into a (i, s, r) select range, 'z', 'no number' from range(300000)",
        ]
    )
    try:
        connection.execute(statement)
    except duckdb.Error:
        connection.execute("rollback")
        connection.execute("begin")


def write_ours(master: Master, rng: random.Random) -> None:
    """Make some writes in one `Master.write`."""
    with suppress(duckdb.TransactionException), master.write() as connection:
        for _ in range(rng.randint(1, 4)):
            write(connection, rng)


def write_plain(path: Path, rng: random.Random, checkpoints: int) -> None:
    """Make some writes as another program does, with so many checkpoints."""
    threshold = rng.choice(["16MB", "1MB", "1GB"])
    with duckdb.connect(str(path), config={"checkpoint_threshold": threshold}) as connection:
        for _ in range(checkpoints):
            connection.execute("begin")
            for _ in range(rng.randint(1, 4)):
                write(connection, rng)
            with suppress(duckdb.TransactionException):  # two of them changed one table's form
                connection.execute("commit")
            connection.execute("checkpoint")


if __name__ == "__main__":
    way, path, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    print("begun", flush=True)
    if way == "ours":
        write_ours(Master(path), random.Random(seed))
    else:
        write_plain(path, random.Random(seed), int(sys.argv[4]))
