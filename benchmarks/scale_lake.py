"""Commits a second to a lake: one writer, eight of them, and eight of plain DuckLake beside.

    python benchmarks/scale_lake.py [--writers N] [--commits N] [--rows N]

Each commit appends rows. What is counted afterwards is printed: rows that are lost, and commits
that are torn. It needs the extra `lake`; Postgres is the embedded one.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import psycopg

from replica_platform.app.embedded import running
from replica_platform.lake import Lake, LakeWriter, read_lake


def write(lake: Lake, name: int, commits: int, rows: int, plain: bool, done: "object") -> None:
    """Append, through `LakeWriter` or as a caller of DuckLake alone, who counts the failures."""
    failed = 0
    with LakeWriter(lake) as writer:
        done.wait()  # type: ignore[attr-defined]
        for number in range(commits):
            statement = f"insert into t select {name}, {number}, range from range({rows})"
            if not plain:
                writer.write(run(statement))
                continue
            try:
                writer._connection.execute(statement)
            except duckdb.Error:
                failed += 1
        done.wait()  # type: ignore[attr-defined]
    if failed:
        print(f"  writer {name}: {failed} commits failed")


def run(statement: str) -> Callable[[duckdb.DuckDBPyConnection], object]:
    return lambda connection: connection.execute(statement)


def measure(lake: Lake, writers: int, commits: int, rows: int, *, plain: bool) -> None:
    with LakeWriter(lake) as writer:
        writer.write(run("create table t (w int, n int, i int)"))
    spawn = multiprocessing.get_context("spawn")
    together = spawn.Barrier(writers + 1)
    processes = [
        spawn.Process(target=write, args=(lake, name, commits, rows, plain, together))
        for name in range(writers)
    ]
    for process in processes:
        process.start()
    together.wait()
    began = time.perf_counter()
    together.wait()
    took_s = time.perf_counter() - began
    for process in processes:
        process.join()
    with read_lake(lake) as connection:
        found = connection.execute("select count(*) from t group by w, n").fetchall()
    asked = writers * commits
    print(
        f"{writers} writers, {'DuckLake alone' if plain else 'LakeWriter':14}: "
        f"{asked / took_s:6.1f} commits/s; {asked - len(found)} of {asked} lost, "
        f"{sum(count != rows for (count,) in found)} torn",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--commits", type=int, default=20)
    parser.add_argument("--rows", type=int, default=1000)
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="rp-") as folder,
        running(Path(folder) / "pg") as server,
    ):
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute("create database lakes")
        runs = [(1, False), (given.writers, False), (given.writers, True)]
        for number, (writers, plain) in enumerate(runs):
            name = f"lake_{number}"
            lake = Lake(server.dsn("lakes"), name, f"{folder}/data/{name}")
            measure(lake, writers, given.commits, given.rows, plain=plain)


if __name__ == "__main__":
    main()
