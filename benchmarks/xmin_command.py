"""The time of a command, from the start of its process to its exit, beside what cannot be saved.

    python -m benchmarks.xmin_command [--repeat 15]

`replica --help`, `replica status` in a folder without a platform, and `replica sync` of a table in
which nothing changed. Beside them: Python alone, the import of psycopg, and `psql` with one query.
The seconds of processor are those of the command only: a loaded machine changes them less.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psycopg

from benchmarks.xmin_speed import a_server
from replica_platform.app.embedded import Server

PROJECT = Path(__file__).parents[1]
MAIN = "from replica_platform.cli.main import main; main()"


def main() -> None:
    """Run each command in turn, and print the best and the median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=15)
    arguments = parser.parse_args()
    with a_server() as server, tempfile.TemporaryDirectory() as folder:
        commands = listed(server)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(arguments.repeat + 1):
            for name, command in commands.items():
                times[name].append(run(command, folder))
    print(f"{os.cpu_count()} cores, {arguments.repeat} runs")
    for name, measured in times.items():
        wall, processor = (sorted(one[i] for one in measured[1:]) for i in (0, 1))
        print(
            f"{name:<30} {wall[0]:.3f} s (median {wall[len(wall) // 2]:.3f}), "
            f"of the processor {processor[0]:.3f} s (median {processor[len(wall) // 2]:.3f})"
        )


def listed(server: Server) -> dict[str, list[str]]:
    """Return the commands; the table is synced once before."""
    source, target = server.dsn("src"), server.dsn("dst")
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute("create table bar (id bigint primary key, note text)")
        connection.execute("insert into bar select i, 'x' from generate_series(1, 1000) i")
    replica = [sys.executable, "-c", MAIN]
    sync = [*replica, "sync", "bar", "--source", source, "--target", target]
    return {
        "python": [sys.executable, "-c", "pass"],
        "import psycopg": [sys.executable, "-c", "import psycopg"],
        "psql, one query": [str(server.binaries / "psql"), source, "-Xqc", "select 1"],
        "replica --help": [*replica, "--help"],
        "replica status": [*replica, "status"],
        "replica sync, nothing changed": sync,
    }


def run(command: Sequence[str], folder: str) -> tuple[float, float]:
    """Return the seconds from start to exit, and those of the processor."""
    silent = os.open(os.devnull, os.O_WRONLY)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    began = time.perf_counter()
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        os.execve(command[0], list(command), environment)
    usage = os.wait4(child, 0)[2]
    seconds = time.perf_counter() - began
    os.close(silent)
    return seconds, usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
