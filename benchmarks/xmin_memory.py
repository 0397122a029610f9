"""The memory of a first copy: the peak resident size of the syncing process.

    python -m benchmarks.xmin_memory [--rows 10000000]

The peer is the naive copy that fetches all rows before it writes them, at a tenth of the rows.
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable

import psycopg

from benchmarks.xmin_speed import a_server
from replica_platform.xmin import sync


def main() -> None:
    """Copy, and copy naively, each in its own process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    rows = parser.parse_args().rows
    with a_server() as server:
        source, target = server.dsn("src"), server.dsn("dst")
        with psycopg.connect(source, autocommit=True) as connection:
            connection.execute("create table bar (id int primary key, symbol text, price float8)")
            connection.execute(
                "insert into bar select i, 'SYM' || i % 500, i / 7.0 "
                f"from generate_series(1, {rows}) i"
            )
        base = peak(nothing)
        began = time.monotonic()
        ours = peak(copy, source, target)
        seconds = time.monotonic() - began
        naive = peak(fetch_all, source, rows // 10)
    print(
        f"{rows:,} rows copied in {seconds:.0f} s, peak {ours / 2**20:.0f} MB resident (wanted "
        f"under 300), of which {base / 2**20:.0f} MB are the program itself; fetching "
        f"{rows // 10:,} rows before writing them: {naive / 2**20:.0f} MB"
    )


def copy(source: str, target: str) -> None:
    """Copy with the engine."""
    sync(source, target, "bar")


def fetch_all(source: str, rows: int) -> None:
    """Fetch all rows at once."""
    with psycopg.connect(source) as connection:
        connection.execute("select * from bar limit %s", [rows]).fetchall()


def nothing() -> None:
    """Do nothing: only the imports take memory."""


def peak(task: Callable[..., None], *arguments: object) -> int:
    """Return the peak resident bytes of a new process that does `task`."""
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    child = context.Process(target=_measured, args=(answer, task, arguments))
    child.start()
    result = answer.get()
    child.join()
    return int(result)


def _measured(answer: object, task: Callable[..., None], arguments: tuple[object, ...]) -> None:
    task(*arguments)
    answer.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
