"""A sync by blocks beside dlt: by an indexed timestamp, and by xmin, after the same change.

    python -m venv /tmp/dlt && /tmp/dlt/bin/pip install 'dlt[postgres]' psycopg2-binary
    python -m benchmarks.xmin_dlt --dlt /tmp/dlt/bin/python [--mb 32] [--rows 2000]

dlt has an environment of its own, and an interpreter that has loaded it before the clock starts.
Both write into one target by MERGE on the primary key. By a timestamp a deleted row stays and a
change without a new timestamp is missed; by xmin the source reads the whole table.
"""

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from replica_platform.app.embedded import running
from replica_platform.xmin import sync

ROWS_PER_MB = 5_000
NAMES = ("source", "target")
# Reads a line for each load, and answers with the rows that it read and the seconds that it took.
PEER = """
import json, os, sys, time
os.environ["RUNTIME__LOG_LEVEL"] = "CRITICAL"
os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"
import dlt, psycopg2
source, target, folder = sys.argv[1:]

def rows(query, *parameters):
    with psycopg2.connect(source) as connection, connection.cursor("load") as cursor:
        cursor.itersize = 50_000
        cursor.execute(query, parameters)
        while chunk := cursor.fetchmany(50_000):
            names = [column.name for column in cursor.description]
            yield [dict(zip(names, row)) for row in chunk]

@dlt.resource(name="by_timestamp", primary_key="id", write_disposition="merge")
def by_timestamp(since=dlt.sources.incremental("changed_at")):
    if since.start_value is None:
        yield from rows("select * from bar")
    else:
        yield from rows("select * from bar where changed_at >= %s", since.start_value)

@dlt.resource(name="by_xmin", primary_key="id", write_disposition="merge")
def by_xmin(since=dlt.sources.incremental("row_xmin")):
    query = "select *, xmin::text::bigint as row_xmin from bar"
    if since.start_value is None:
        yield from rows(query)
    else:
        yield from rows(query + " where xmin::text::bigint >= %s", since.start_value)

made = {
    name: dlt.pipeline(name, pipelines_dir=folder, dataset_name=name,
                       destination=dlt.destinations.postgres(target))
    for name in ("by_timestamp", "by_xmin")
}
for line in sys.stdin:
    name = line.strip()
    began = time.perf_counter()
    made[name].run({"by_timestamp": by_timestamp, "by_xmin": by_xmin}[name]())
    print(json.dumps(time.perf_counter() - began), flush=True)
"""
TABLE = (
    "create table bar (id bigint primary key, n int, note text, "
    "changed_at timestamptz not null default now()) with (fillfactor = 90)"
)


def main() -> None:
    """Load the table once by each way, then time the same changes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dlt", type=Path, help="a Python that has dlt")
    parser.add_argument("--mb", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--repeat", type=int, default=3)
    asked = parser.parse_args()
    if asked.dlt is None:
        print("Left out: --dlt names no Python that has dlt.")
        return
    for mb in asked.mb:
        with tcp_server() as port:
            compare(port, mb, asked)


def compare(port: int, mb: int, asked: argparse.Namespace) -> None:
    """Compare the three at one size."""
    source, target = (f"postgresql://postgres@127.0.0.1:{port}/{name}" for name in NAMES)
    rows = mb * ROWS_PER_MB
    execute(
        source,
        TABLE,
        "insert into bar select i, 0, md5(i::text) || md5((-i)::text) || repeat('x', 60) "
        f"from generate_series(1, {rows}) i",
        "create index on bar (changed_at)",
        "vacuum (freeze, analyze) bar",
        "checkpoint",
    )
    with dlt_at(asked.dlt, port) as load:
        ways = {
            "ours, by blocks": lambda: sync(source, target, "bar", mode="blocks").seconds,
            "dlt, by timestamp": lambda: load("by_timestamp"),
            "dlt, by xmin": lambda: load("by_xmin"),
        }
        first = {name: way() for name, way in ways.items()}
        sync(source, target, "bar", mode="blocks")
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(asked.repeat):
            execute(
                source,
                "update bar set n = n + 1, changed_at = clock_timestamp() "
                f"where id % {max(1, rows // asked.rows)} = {number}",
                "checkpoint",
            )
            for name, way in ways.items():
                seconds[name].append(way())
    print(f"{mb} MB, {rows:,} rows; {asked.rows:,} scattered rows changed")
    own = statistics.median(seconds["ours, by blocks"])
    for name, taken in seconds.items():
        median = statistics.median(taken)
        print(
            f"  {name}: first load {first[name]:.2f} s, then {median:.3f} s, "
            f"{median / own:.1f} times ours"
        )


@contextmanager
def dlt_at(python: Path, port: int) -> Iterator["Load"]:
    """Start dlt with its two pipelines."""
    with tempfile.TemporaryDirectory(prefix="rp-dlt-") as folder:
        dsns = [f"postgresql://postgres:any@127.0.0.1:{port}/{name}" for name in NAMES]
        process = subprocess.Popen(
            [str(python), "-c", PEER, *dsns, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield Load(process)
        finally:
            process.kill()
            process.wait()


class Load:
    """Lets dlt load once; returns the seconds."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def __call__(self, name: str) -> float:
        """Run the pipeline of a name."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit(f"dlt ended with {self._process.wait()}")
        return float(json.loads(answer))


@contextmanager
def tcp_server() -> Iterator[int]:
    """Start a server that listens on 127.0.0.1 too, which dlt's credentials need."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with (
        tempfile.TemporaryDirectory(prefix="rp-") as folder,
        running(Path(folder) / "pg") as server,
    ):
        server.stop()
        server.start("-c listen_addresses=127.0.0.1", f"-c port={port}")
        tcp = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        execute(tcp, *(f"create database {name}" for name in NAMES))
        yield port


def execute(dsn: str, *statements: str) -> None:
    """Run statements, each in its own transaction."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
