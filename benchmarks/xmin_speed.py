"""The speed of a sync, each figure beside its peer in the same run.

    python -m benchmarks.xmin_speed [--rows 2000000] [--tables 200]

First copy against `psql | psql` in binary into an unlogged table; a sync after 0.1 % changed
against the bare scan plus the bare MERGE; many idle tables in one group.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psycopg

from replica_platform.app.embedded import Server, running
from replica_platform.xmin import SyncReport, TableSpec, sync, sync_group

TABLE = (
    "(id bigint primary key, symbol text, price numeric(18,4), qty int, ts timestamptz, note text)"
)
COLUMNS = ("id", "symbol", "price", "qty", "ts", "note", "source_xmin", "source_ctid")
Result = TypeVar("Result")


def main() -> None:
    """Run all three, each on its own server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--tables", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", choices=["copy", "delta", "idle"])
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, {arguments.rows:,} rows, best of {arguments.repeat}")
    if arguments.only != "idle":
        with a_server() as server:
            fill(server.dsn("src"), arguments.rows)
            first_copy(server, arguments.repeat if arguments.only != "delta" else 1)
            if arguments.only != "copy":
                delta(server, arguments.rows, arguments.repeat)
    if arguments.only in (None, "idle"):
        with a_server() as server:
            idle_group(server, arguments.tables)


@contextmanager
def a_server() -> Iterator[Server]:
    """Start a server with the databases src and dst."""
    with (
        tempfile.TemporaryDirectory(prefix="rp-") as folder,
        running(Path(folder) / "pg") as server,
    ):
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute("create database src")
            admin.execute("create database dst")
        yield server


def fill(dsn: str, rows: int) -> None:
    """Create and fill the table of the benchmark."""
    with psycopg.connect(dsn, autocommit=True) as source:
        source.execute(f"create table bar {TABLE}")
        source.execute(
            "insert into bar select i, 'SYM' || i % 500, (i % 100000) / 100.0, i % 1000, "
            "timestamptz '2020-01-01' + i * interval '1 second', 'note ' || md5(i::text) "
            f"from generate_series(1, {rows}) i"
        )
        source.execute("vacuum (analyze) bar")
        source.execute("checkpoint")


def first_copy(server: Server, repeat: int) -> None:
    """Time the copy into an unlogged table, and the whole first sync."""
    source, target = server.dsn("src"), server.dsn("dst")
    peer: list[float] = []
    laden: list[float] = []
    reports: list[SyncReport] = []
    for _ in range(repeat):
        peer.append(psql_pipe(server, source, target))
        laden.append(psql_pipe(server, source, target, laden=True))
        clear(target)
        reports.append(sync(source, target, "bar"))
    ours = min(report.seconds_by_step["copy"] for report in reports)
    print(
        f"first copy: psql | psql {min(peer):.2f} s, copy {ours:.2f} s, "
        f"ratio {min(peer) / ours:.2f} (wanted 0.85); psql | psql with xmin and ctid "
        f"{min(laden):.2f} s, ratio {min(laden) / ours:.2f}; logged, keyed, indexed and committed "
        f"{min(report.seconds for report in reports):.2f} s in all ({steps(reports[-1])})"
    )


def psql_pipe(server: Server, source: str, target: str, *, laden: bool = False) -> float:
    """Return the seconds of `psql | psql`, in binary, into an unlogged table without key.

    `laden` carries the two columns that a sync carries beside the table's own.
    """
    columns = TABLE.replace(" primary key", "")
    read = "bar"
    if laden:
        columns = columns.removesuffix(")") + ", source_xmin xid, source_ctid tid)"
        read = "(select *, xmin, ctid from bar)"
    with psycopg.connect(target, autocommit=True) as connection:
        connection.execute("drop table if exists peer")
        connection.execute(f"create unlogged table peer {columns}")
    psql = str(server.binaries / "psql")
    began = time.perf_counter()
    with subprocess.Popen(
        [psql, source, "-Xqc", f"copy {read} to stdout (format binary)"], stdout=subprocess.PIPE
    ) as out:
        copy = "copy peer from stdin (format binary)"
        subprocess.run([psql, target, "-Xqc", copy], stdin=out.stdout, check=True)
    return time.perf_counter() - began


def clear(target: str) -> None:
    """Empty the target."""
    with psycopg.connect(target, autocommit=True) as connection:
        connection.execute("drop table if exists bar, peer")
        connection.execute("drop schema if exists replica_platform cascade")
        connection.execute("checkpoint")


def delta(server: Server, rows: int, repeat: int) -> None:
    """Time a sync of 0.1 % changed rows, and a bare scan and a bare MERGE of as many."""
    source, target = server.dsn("src"), server.dsn("dst")
    count = rows // 1000
    with psycopg.connect(target, autocommit=True) as connection:
        connection.execute("vacuum (analyze) bar")
    ours: list[float] = []
    scans: list[float] = []
    merges: list[float] = []
    idle: list[float] = []
    for _ in range(repeat + 1):  # the first one warms up
        with psycopg.connect(source, autocommit=True) as connection:
            connection.execute(
                f"update bar set qty = qty + 1 where id in (select (random() * {rows})::bigint "
                f"from generate_series(1, {count}))"
            )
        scans.append(bare_scan(source, w_of(target)))
        report, seconds = measured(lambda: sync(source, target, "bar"))
        ours.append(seconds)
        merges.append(bare_merge(target, count, rows))
        idle.append(measured(lambda: sync(source, target, "bar"))[1])
    bare = min(scans[1:]) + min(merges[1:])
    print(
        f"0.1 % changed ({count} rows): bare scan {min(scans[1:]):.3f} s + bare MERGE "
        f"{min(merges[1:]):.3f} s = {bare:.3f} s; sync {min(ours[1:]):.3f} s "
        f"(median {statistics.median(ours[1:]):.3f}), ratio {min(ours[1:]) / bare:.2f} "
        f"(wanted 1.5 at most; {steps(report)}); nothing changed {min(idle):.3f} s"
    )


def w_of(target: str) -> int:
    """Return W of the last sync."""
    with psycopg.connect(target) as connection:
        row = connection.execute("select w from replica_platform.mark").fetchone()
    assert row is not None
    return int(row[0])


def bare_scan(source: str, w: int) -> float:
    """Return the seconds of counting the changed rows, the least that a sync must do."""
    query = "select count(*) from bar where age(xmin) between 1 and age(%s::text::xid)"
    with psycopg.connect(source, autocommit=True) as connection:
        return measured(lambda: connection.execute(query, [str(w & 4294967295)]))[1]


def bare_merge(target: str, count: int, rows: int) -> float:
    """Return the seconds of a MERGE of as many staged rows, with its commit."""
    sets = ", ".join(f"{name} = s.{name}" for name in COLUMNS)
    values = ", ".join(f"s.{name}" for name in COLUMNS)
    merge = (
        f"merge into bar t using staged s on t.id = s.id when matched then update set {sets} "
        f"when not matched then insert values ({values})"
    )
    with psycopg.connect(target, autocommit=True) as connection:
        connection.execute("drop table if exists staged")
        connection.execute(
            # From outside, as in the sync: reading them from the target would warm its pages, and
            # an equal source_xmin, which is indexed, would make the updates mere HOT ones.
            "create unlogged table staged as select id, 'SYM' as symbol, 1.5::numeric(18,4) as "
            "price, 7 as qty, now() as ts, 'note ' || md5(id::text) as note, 99::bigint as "
            "source_xmin, '(0,1)'::tid as source_ctid from (select distinct "
            f"(random() * {rows})::bigint as id from generate_series(1, {count})) i"
        )
        connection.execute("analyze staged")
        seconds = measured(lambda: connection.execute(merge))[1]  # type: ignore[arg-type]
        connection.execute("drop table staged")
    return seconds


def idle_group(server: Server, tables: int) -> None:
    """Time a group of many tables in which no row changed."""
    source, target = server.dsn("src"), server.dsn("dst")
    with psycopg.connect(source, autocommit=True) as connection:
        for i in range(tables):
            connection.execute(f"create table t{i} (id int primary key, x text)")
            connection.execute(f"insert into t{i} select i, 'x' from generate_series(1, 1000) i")
    specs = [TableSpec(f"t{i}") for i in range(tables)]
    _, first = measured(lambda: sync_group(source, target, specs))
    idle: list[float] = []
    for _ in range(3):
        group, seconds = measured(lambda: sync_group(source, target, specs))
        assert group.ok
        assert not any(report.changed for report in group.reports.values())
        idle.append(seconds)
    print(
        f"{tables} tables of 1,000 rows in one group: first {first:.2f} s, idle {min(idle):.2f} s "
        f"(worst of 3: {max(idle):.2f}; wanted under 2 s)"
    )


def steps(report: SyncReport) -> str:
    """Return the seconds by step, for a sentence."""
    return ", ".join(f"{name} {seconds:.3f}" for name, seconds in report.seconds_by_step.items())


def measured(task: Callable[[], Result]) -> tuple[Result, float]:
    """Return the result of `task` and its seconds."""
    began = time.perf_counter()
    result = task()
    return result, time.perf_counter() - began


if __name__ == "__main__":
    main()
