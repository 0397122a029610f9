"""Whole syncs from process start to exit, beside what Postgres' own programs take for the same.

    python -m benchmarks.xmin_whole [--rows 2000000] [--repeat 3] [--only copy|changes]

The first copy against `psql | psql` into a logged table with the same two columns, followed by the
same key and index; and against `pg_dump | psql`. One deleted row, and 0.1 % changed rows, against
the bare scan of the source, to which a MERGE of as many rows is added; these without the start of
the process, which `xmin_command` measures. All turns are interleaved, and the source and the target
are databases of one server. Beside the seconds of the first copy stand those of the processor, of
the server and of all programs together: a loaded machine changes them less.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psycopg

from benchmarks.xmin_speed import TABLE, a_server, bare_merge, bare_scan, fill, w_of
from replica_platform.app.embedded import Server
from replica_platform.xmin import SyncReport
from replica_platform.xmin import sync as sync_table

PROJECT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-c", "from replica_platform.cli.main import main; main()"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PROJECT)}


def main() -> None:
    """Fill a source, and run all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", choices=["copy", "changes"])
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, {arguments.rows:,} rows, {arguments.repeat} turns")
    with a_server() as server:
        fill(server.dsn("src"), arguments.rows)
        if arguments.only != "changes":
            first_copy(server, arguments.repeat)
        if arguments.only != "copy":
            changes(server, arguments.rows, arguments.repeat)


def first_copy(server: Server, repeat: int) -> None:
    """Compare the first copy with both peers, in turn."""
    ways: dict[str, Callable[[Server], None]] = {
        "psql | psql, key, index": psql_pipe,
        "pg_dump | psql": dump_pipe,
        "replica sync": sync,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeat):
        for name, way in ways.items():
            clear(server.dsn("dst"))
            began, used = time.perf_counter(), processor_s(server)
            way(server)
            times[name].append(time.perf_counter() - began)
            time.sleep(0.3)  # until the server has counted the sessions that have ended
            processor[name].append(processor_s(server) - used)
    for name, seconds in times.items():
        print(f"first copy, {name:<24} {listed(seconds)}, processor {listed(processor[name])}")
    for name, wanted in {"psql | psql, key, index": 1.1, "pg_dump | psql": 1.0}.items():
        ratio, of_processor = (
            min(measured["replica sync"]) / min(measured[name]) for measured in (times, processor)
        )
        print(f"ratio to {name}: {ratio:.2f}, of processor {of_processor:.2f} (wanted {wanted})")


def processor_s(server: Server) -> float:
    """Return the seconds of processor of the server and of the programs that have ended."""
    postmaster = (server.folder / "postmaster.pid").read_text().splitlines()[0]
    ticks = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := stat(entry.name)):
            if entry.name == postmaster:
                ticks += sum(map(int, fields[11:15]))
            elif fields[1] == postmaster:
                ticks += sum(map(int, fields[11:13]))
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ticks / os.sysconf("SC_CLK_TCK") + ended.ru_utime + ended.ru_stime


def stat(pid: str) -> list[str]:
    """Return what the kernel says of a process, from its state on; nothing where it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return []


def psql_pipe(server: Server) -> None:
    """Copy with two `psql` into a logged table; then make the key and the index."""
    psql, target = str(server.binaries / "psql"), server.dsn("dst")
    columns = TABLE.replace(" primary key", "").removesuffix(")")
    call([psql, target, "-Xqc", f"create table bar {columns}, source_xmin xid, source_ctid tid)"])
    read = "copy (select *, xmin, ctid from bar) to stdout (format binary)"
    pipe(
        [psql, server.dsn("src"), "-Xqc", read],
        [psql, target, "-Xqc", "copy bar from stdin (format binary)"],
    )
    # BRIN has no operators for xid; the sync keeps a bigint, and so does this one.
    index = "create index on bar using brin (source_ctid)"
    call([psql, target, "-Xqc", "alter table bar add primary key (id)", "-c", index])


def dump_pipe(server: Server) -> None:
    """Copy with `pg_dump | psql`, which carries neither of the two columns nor the index."""
    dump, psql = (str(server.binaries / name) for name in ("pg_dump", "psql"))
    pipe([dump, server.dsn("src"), "-t", "bar"], [psql, server.dsn("dst"), "-Xqo", os.devnull])


def sync(server: Server) -> None:
    """Run the command."""
    dsns = ["--source", server.dsn("src"), "--target", server.dsn("dst")]
    call([*COMMAND, "sync", "bar", "--json", *dsns])


def changes(server: Server, rows: int, repeat: int) -> None:
    """Compare syncs of a table that has changed a little with the bare work."""
    source, target = server.dsn("src"), server.dsn("dst")
    clear(target)
    sync(server)
    with psycopg.connect(target, autocommit=True) as connection:
        connection.execute("vacuum (analyze) bar")
    execute(source, "update bar set qty = 0 where id = 1")
    sync(server)  # counts where the rows lie
    scans: list[float] = []
    deletes: list[float] = []
    updates: list[float] = []
    merges: list[float] = []
    for turn in range(repeat + 1):  # the first one warms up
        execute(source, f"delete from bar where id = {rows // 2 + turn}")
        deletes.append(timed(lambda: sync_table(source, target, "bar")))
        execute(
            source,
            "update bar set qty = qty + 1 where id in (select (random() * "
            f"{rows})::bigint from generate_series(1, {rows // 1000}))",
        )
        scans.append(bare_scan(source, w_of(target)))
        updates.append(timed(lambda: sync_table(source, target, "bar")))
        merges.append(bare_merge(target, rows // 1000, rows))
    scan, merge = min(scans[1:]), min(merges[1:])
    print(f"bare scan {listed(scans[1:])}; bare MERGE {listed(merges[1:])}")
    for name, seconds, bare, wanted in (
        ("one deleted row", deletes[1:], scan, 1.5),
        ("0.1 % changed", updates[1:], scan + merge, 1.25),
    ):
        print(f"{name}: {listed(seconds)}, ratio {min(seconds) / bare:.2f} (wanted {wanted})")


def clear(target: str) -> None:
    """Empty the target."""
    execute(
        target,
        "drop table if exists bar, staged",
        "drop schema if exists replica_platform cascade",
        "checkpoint",
    )


def execute(dsn: str, *statements: str) -> None:
    """Run statements, each in its own transaction."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)  # type: ignore[arg-type]


def call(command: Sequence[str]) -> None:
    """Run a command that has to work."""
    subprocess.run(command, check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL)


def pipe(read: Sequence[str], write: Sequence[str]) -> None:
    """Run two commands, one into the other."""
    with subprocess.Popen(read, stdout=subprocess.PIPE) as out:
        subprocess.run(write, stdin=out.stdout, check=True)


def timed(task: Callable[[], SyncReport]) -> float:
    """Return the seconds of a task."""
    began = time.perf_counter()
    task()
    return time.perf_counter() - began


def listed(seconds: Sequence[float]) -> str:
    """Return the best and the median."""
    return f"{min(seconds):.2f} s (median {statistics.median(seconds):.2f})"


if __name__ == "__main__":
    main()
