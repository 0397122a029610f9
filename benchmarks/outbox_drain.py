"""The speed of a drain: beside bare inserts of the same rows, with small and large backlogs.

    python benchmarks/outbox_drain.py [--target DSN] [--rows N] [--large N] [--delivered N]
                                      [--folder DIR]

Without a DSN the embedded Postgres is used. The bare inserts are `jsonb_to_recordset`,
`executemany` and row by row into `outbox.record`, in batches of 1,000 at synchronous_commit=on,
without reading or writing a file. The large backlog shows whether its size changes the rate.
`--delivered` measures only an empty drain of a file that has delivered N batches, seeded by SQL.
"""

import argparse
import contextlib
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import psycopg

from replica_platform.app.embedded import running
from replica_platform.outbox import Outbox, backlog, drain
from replica_platform.outbox.delivery import statements
from replica_platform.outbox.delivery.target import begin, create_tables
from replica_platform.outbox.file import Row, open_existing
from replica_platform.outbox.queue import next_batch

BATCH_ROWS = 1000


def fill(path: Path, rows: int) -> None:
    with Outbox(path, max_bytes=None) as box:
        for start in range(0, rows, 10_000):
            box.append_many(
                "conversation",
                [
                    {
                        "n": start + n,
                        "user_id": n % 100,
                        "message": "hello " * 40,
                        "response": "x" * 240,
                    }
                    for n in range(min(10_000, rows - start))
                ],
            )


def rows_of(path: Path, limit: int) -> list[Row]:
    connection = open_existing(path, read_only=True)
    rows = next_batch(connection, limit, 10**12)
    connection.close()
    return rows


def empty(connection: psycopg.Connection) -> None:
    connection.execute("truncate outbox.record, outbox.chain, outbox.conflict")
    connection.execute("checkpoint")


def batches(rows: list[Row]) -> Iterator[list[Row]]:
    for start in range(0, len(rows), BATCH_ROWS):
        yield rows[start : start + BATCH_ROWS]


def recordset(connection: psycopg.Connection, rows: list[Row]) -> None:
    file_uuid = "00000000-0000-0000-0000-000000000000"
    for batch in batches(rows):
        with connection.transaction():
            values = {"file_uuid": file_uuid, "rows": statements._as_json(batch)}
            connection.execute(statements.INSERT, values)


INSERT = (
    "insert into outbox.record (id, file_uuid, seq, kind, payload, payload_sha, created_at) "
    "values (%s, %s, %s, %s, %s, %s, to_timestamp(%s)) on conflict (id) do nothing"
)


def values(row: Row) -> tuple[object, ...]:
    file_uuid = "00000000-0000-0000-0000-000000000000"
    return (row.id, file_uuid, row.seq, row.kind, row.payload, row.sha, row.created_at)


def executemany(connection: psycopg.Connection, rows: list[Row]) -> None:
    for batch in batches(rows):
        with connection.transaction():
            connection.cursor().executemany(INSERT, [values(row) for row in batch])


def row_by_row(connection: psycopg.Connection, rows: list[Row]) -> None:
    for row in rows[: len(rows) // 10]:
        connection.execute(INSERT, values(row))


def rate(rows: int, work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return rows / (time.perf_counter() - started)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--target", default=None)
    arguments.add_argument("--folder", default=None)
    arguments.add_argument("--rows", type=int, default=50_000)
    arguments.add_argument("--large", type=int, default=0, help="such as 1000000")
    arguments.add_argument("--delivered", type=int, default=0, help="such as 10000000")
    given = arguments.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=given.folder)))
        dsn = given.target
        if dsn is None:
            server_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rp-")))
            dsn = stack.enter_context(running(server_dir / "pg")).dsn()
        connection = stack.enter_context(psycopg.connect(dsn, autocommit=True))
        with begin(connection, 60):
            create_tables(connection)
        if given.delivered:
            return empty_drain(folder / "old.db", dsn, connection, given.delivered)
        fill(folder / "sample.db", given.rows)
        sample = rows_of(folder / "sample.db", given.rows)
        rates: dict[str, list[float]] = {}
        for turn in range(3):
            for name, work in (
                ("bare jsonb_to_recordset", lambda: recordset(connection, sample)),
                ("bare executemany", lambda: executemany(connection, sample)),
                ("row by row (a tenth)", lambda: row_by_row(connection, sample)),
            ):
                empty(connection)
                n = given.rows // 10 if name.startswith("row") else given.rows
                rates.setdefault(name, []).append(rate(n, work))
            path = folder / f"turn-{turn}.db"
            fill(path, given.rows)
            empty(connection)
            rates.setdefault("drain", []).append(rate(given.rows, partial(drain, [path], dsn)))
            report = drain([path], dsn)
            assert report.ok and report.pending == 0, report.sentence
            path.unlink()
        for name, found in rates.items():
            print(f"{name:26} {statistics.median(found):8.0f} rows/s  {[round(r) for r in found]}")
        bare = statistics.median(rates["bare jsonb_to_recordset"])
        ours = statistics.median(rates["drain"])
        print(
            f"drain is {ours / bare:.2f} of bare jsonb_to_recordset "
            f"(target: {min(15_000, 0.35 * bare):.0f} rows/s)"
        )
        if given.large:
            large(folder / "large.db", dsn, connection, given.large)


def large(path: Path, dsn: str, connection: psycopg.Connection, rows: int) -> None:
    """Drain a large backlog and show the rate of each tenth."""
    fill(path, rows)
    empty(connection)
    started = time.perf_counter()
    waiting = backlog([path]).pending
    took = time.perf_counter() - started
    moments: list[tuple[int, float]] = [(0, time.perf_counter())]

    def progress(done: int, total: int, unit: str) -> None:
        if done >= moments[-1][0] + rows // 10:
            moments.append((done, time.perf_counter()))

    report = drain([path], dsn, progress=progress)
    tenths = [round((b[0] - a[0]) / (b[1] - a[1])) for a, b in pairwise(moments)]
    print(f"backlog of {waiting} counted in {took * 1000:.1f} ms")
    print(f"{report.delivered} rows at {report.rows_per_s:.0f} rows/s; by tenths: {tenths}")


def empty_drain(path: Path, dsn: str, connection: psycopg.Connection, batches: int) -> None:
    """Drain a file that notes `batches` delivered batches, none old enough to be pruned."""
    with Outbox(path, max_bytes=None) as box:
        box.append("note", {"n": 1})
        assert drain([path], dsn).ok
        local = open_existing(path)
        local.execute(
            "with recursive n(n) as (select 2 union all select n + 1 from n where n < ?) "
            "insert into batch select value, n, n, n, 1, zeroblob(32), ? from n, meta "
            "where key = 'file_uuid'",
            (batches, time.time()),
        )
        local.execute("update meta set value = ? where key = 'mark'", (str(batches),))
        local.execute("update sqlite_sequence set seq = ? where name = 'record'", (batches,))
        local.close()
        connection.execute(
            "update outbox.chain set number = %s, last_seq = %s, chain = decode(%s, 'hex')",
            (batches, batches, "00" * 32),
        )
        for name, append in (("an empty drain", False), ("a drain of one row", True)):
            took = []
            for _ in range(21):
                if append:
                    box.append("note", {"n": 2})
                started = time.perf_counter()
                report = drain([path], dsn)
                took.append((time.perf_counter() - started) * 1000)
                assert report.ok and report.files[0].reopened == 0, report.sentence
                assert report.delivered == append
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            print(
                f"{name} after {batches:,} batches: median {statistics.median(took):.1f} ms, "
                f"longest {max(took):.1f} ms, with its connection; memory {memory} MB "
                f"(target: 50 ms)"
            )


if __name__ == "__main__":
    main()
