"""The cost of a sync by blocks: it grows with the change, where the scan's grows with the table.

    python -m benchmarks.xmin_blocks [--mb 64 256] [--rows 2000] [--tables 1000] [--watch-s 10]
                                     [--without-scan]

Source and target are two servers. Per size of the table: the same number of changed rows, scattered
and clustered, and one changed row, by blocks and by the scan in turn; idle tables in one group; and
a watched table with its lag, measured row by row, and what it costs the source.
"""

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg

from replica_platform.app.embedded import Server, running
from replica_platform.xmin import BlockOptions, SyncReport, TableSpec, sync, sync_group, watch

TABLE = "create table bar (id bigint primary key, n int, note text) with (fillfactor = 90)"
ROWS_PER_MB = 5_600  # of 8 kB pages filled to 90 %
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Run every part that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--rows", type=int, default=2_000, help="changed rows, at every size")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--tables", type=int, default=1_000)
    parser.add_argument("--watch-s", type=float, default=10.0)
    parser.add_argument("--every", type=float, default=1.0, help="seconds from sync to sync")
    parser.add_argument("--rate", type=int, default=1_000, help="changes a second, watched")
    parser.add_argument("--only", choices=["changes", "idle", "watch"])
    parser.add_argument("--without-scan", action="store_true", help="time the blocks alone")
    arguments = parser.parse_args()
    with two_servers() as (source, target):
        if arguments.only in (None, "changes", "watch"):
            sizes = arguments.mb if arguments.only != "watch" else arguments.mb[-1:]
            changes(source, target, sizes, arguments)
        if arguments.only in (None, "watch"):
            watched(source, target, arguments)
        if arguments.only in (None, "idle"):
            idle(source, target, arguments.tables)


@contextmanager
def two_servers() -> Iterator[tuple[Server, Server]]:
    """Start a source and a target."""
    with ExitStack() as stack:
        servers = []
        for _ in range(2):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rp-"))
            servers.append(stack.enter_context(running(Path(folder) / "pg")))
        yield servers[0], servers[1]


def changes(source: Server, target: Server, sizes: list[int], asked: argparse.Namespace) -> None:
    """Time syncs of the same change at every size."""
    modes = ("blocks",) if asked.without_scan else ("blocks", "scan")
    median: dict[tuple[int, str, str], float] = {}
    for mb in sizes:
        execute(target.dsn(), "drop table if exists bar")
        rows = fill(source.dsn(), mb)
        first = sync(source.dsn(), target.dsn(), "bar", mode="blocks", max_delete_fraction=1)
        print(f"{mb:,} MB, {rows:,} rows: first copy with locations {first.seconds:.1f} s")
        if asked.only == "watch":
            return
        for name, where in kinds(rows, asked.rows).items():
            for mode in modes:
                seconds = [
                    one_sync(source, target, where, mode).seconds for _ in range(asked.repeat)
                ]
                median[mb, name, mode] = statistics.median(seconds)
            by_blocks = median[mb, name, "blocks"]
            line = f"  {name}: blocks {by_blocks:.3f} s"
            if not asked.without_scan:
                by_scan = median[mb, name, "scan"]
                line += f", scan {by_scan:.3f} s, {by_scan / by_blocks:.1f} times as fast"
            print(line)
    for name in kinds(asked.rows, asked.rows):
        growth = median[sizes[-1], name, "blocks"] / median[sizes[0], name, "blocks"]
        print(
            f"{name}: by blocks {growth:.2f} times as long at {sizes[-1]:,} as at {sizes[0]:,} MB"
        )


def kinds(rows: int, changed: int) -> dict[str, str]:
    """Return the changes to time: which rows of so many are changed."""
    step = max(1, rows // changed)
    return {
        f"{changed:,} rows, scattered": f"id % {step} = 1",
        f"{changed:,} rows, clustered": f"id between {rows // 2} and {rows // 2 + changed - 1}",
        "1 row": f"id = {max(1, rows // 3)}",
    }


def one_sync(source: Server, target: Server, where: str, mode: str) -> SyncReport:
    """Change rows, settle the source, and sync.

    A first sync by blocks takes the blocks of the one before along: the summary that it began in
    names them again. It is not timed.
    """
    sync(source.dsn(), target.dsn(), "bar", mode="blocks")
    execute(source.dsn(), f"update bar set n = n + 1 where {where}")
    execute(source.dsn(), "checkpoint")
    # Where the rows are to be counted it is a scan, which keeps the locations.
    options = BlockOptions(count_every_s=0.0 if mode == "scan" else 86_400.0)
    began = time.perf_counter()
    report = sync(source.dsn(), target.dsn(), "bar", mode="blocks", blocks=options)
    seconds = time.perf_counter() - began
    assert report.mode == mode, report.why
    return replace(report, seconds=seconds)


def idle(source: Server, target: Server, tables: int) -> None:
    """Time a group of idle tables on a source where others write."""
    specs = [TableSpec(f"idle{number}", mode="blocks") for number in range(tables)]
    for spec in specs:
        execute(
            source.dsn(),
            f"create table {spec.table} (id int primary key, v text)",
            f"insert into {spec.table} select i, 'x' from generate_series(1, 100) i",
        )
    execute(source.dsn(), "create table other (id int)", "checkpoint")
    seconds: list[float] = []
    for _ in range(20):
        execute(source.dsn(), "insert into other values (1)")
        group = sync_group(source.dsn(), target.dsn(), specs)
        # At first the summary of the copy names their blocks again, and autovacuum changes some.
        if {report.mode for report in group.reports.values()} == {"none"}:
            seconds.append(group.seconds)
        if len(seconds) == 5:
            break
    print(
        f"{tables:,} idle tables: {statistics.median(seconds):.2f} s (worst {max(seconds):.2f} s)"
    )


def watched(source: Server, target: Server, asked: argparse.Namespace) -> None:
    """Watch a table under a steady load; print its lag and what it costs the source."""
    seconds = asked.watch_s
    with writing(source, asked.rate):
        time.sleep(1)
        alone = cpu_s(source)
        time.sleep(seconds)
        alone = cpu_s(source) - alone
        sync(source.dsn(), target.dsn(), "bar", mode="blocks")
        stop = threading.Event()
        seen: list[float] = []
        poller = threading.Thread(target=poll, args=(target.dsn(), stop, seen))
        poller.start()
        before = cpu_s(source)
        report = watch(
            source.dsn(),
            target.dsn(),
            [TableSpec("bar", mode="blocks")],
            every_s=asked.every,
            for_s=seconds,
        )
        cost = (cpu_s(source) - before - alone) / report.seconds
        stop.set()
        poller.join()
    lags = statistics.quantiles(seen, n=100) if len(seen) > 1 else [0.0] * 99
    print(
        f"watched, {asked.rate:,} changes a second: {report.syncs} syncs, "
        f"lag p50 {lags[49]:.2f} s, p99 {lags[98]:.2f} s, of {len(seen)} marks (reported: p50 "
        f"{report.lag_p50_s or 0:.2f} s, p99 {report.lag_p99_s or 0:.2f} s); "
        f"{report.checkpoints} checkpoints; the source spent {100 * cost:.1f} % of a core on it"
    )


@contextmanager
def writing(source: Server, rate: int) -> Iterator[None]:
    """Update rows at random, and each 50 ms set the clock in a row that tells the lag."""
    stop = threading.Event()

    def write() -> None:
        with psycopg.connect(source.dsn(), autocommit=True) as connection:
            found = connection.execute("select max(id) from bar").fetchone()
            assert found
            batch = max(1, rate // 20)
            number = 0
            while not stop.is_set():
                began = time.monotonic()
                number += 1
                connection.execute(
                    "update bar set n = n + 1 where id = any(array(select 1 + "
                    "(random() * %s)::bigint from generate_series(1, %s)))",
                    [found[0] - 1, batch],
                )
                connection.execute(
                    "insert into bar values (%s, 0, clock_timestamp()::text)", [-number]
                )
                stop.wait(max(0.0, 0.05 - (time.monotonic() - began)))

    execute(source.dsn(), "delete from bar where id < 0")
    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


def poll(dsn: str, stop: threading.Event, seen: list[float]) -> None:
    """Note how old each mark is when it is first seen in the target."""
    query = (
        "select id, extract(epoch from clock_timestamp() - note::timestamptz)::float8 from bar "
        "where id < %s and id >= -2000000000 order by id"
    )
    with psycopg.connect(dsn, autocommit=True) as connection:
        found = connection.execute("select coalesce(min(id), 0) from bar where id < 0").fetchone()
        assert found
        newest = found[0]
        while not stop.wait(0.02):
            marks = connection.execute(query, [newest]).fetchall()
            seen += [age for _, age in marks]
            newest = min([newest, *(number for number, _ in marks)])


def cpu_s(server: Server) -> float:
    """Return the processor time of a server and of all its children, those that ended included."""
    postmaster = int((server.folder / "postmaster.pid").read_text().splitlines()[0])
    total = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(entry.name) == postmaster:
            total += sum(map(int, fields[11:15]))
        elif int(fields[1]) == postmaster:
            total += sum(map(int, fields[11:13]))
    return total / TICKS


def fill(dsn: str, mb: int) -> int:
    """Create the table in a size; return its rows."""
    rows = mb * ROWS_PER_MB
    execute(
        dsn,
        "drop table if exists bar",
        TABLE,
        "insert into bar select i, 0, md5(i::text) || md5((-i)::text) || repeat('x', 60) "
        f"from generate_series(1, {rows}) i",
        "vacuum (freeze, analyze) bar",
        "checkpoint",
    )
    return rows


def execute(dsn: str, *statements: str) -> None:
    """Run statements, each in its own transaction."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
