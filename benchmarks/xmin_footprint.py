"""What a sync costs both servers, as their administrators ask: locks, horizon, load, bloat.

    python -m benchmarks.xmin_footprint [--rows 2000000]

Each step of a table's life (first copy, nothing changed, 0.1 % changed, rows deleted, a column
added, a part of the content proven) is watched from a third session on each server: which locks
its sessions hold and for how long, how long their snapshots hold back the source's horizon, the
WAL and the disk space on the target, and how many updates were HOT. The peer is `pg_dump | psql`
of the same table.
"""

import argparse
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg

from benchmarks.xmin_speed import a_server, clear, fill
from replica_platform.app.embedded import Server
from replica_platform.core.reports import format_bytes
from replica_platform.xmin import Proving, SyncReport, sync

OURS = "replica_platform xmin"
PAUSE_S = 0.003
_LOCKS = """
select l.mode, l.granted from pg_locks l join pg_stat_activity a using (pid)
where a.application_name = any(%s) and l.locktype = 'relation' and a.datname = current_database()
  and l.relation in (select oid from pg_class where relname = 'bar')
"""
_SESSIONS = """
select count(*), count(*) filter (where backend_xmin is not null)
from pg_stat_activity where application_name = any(%s) and datname = current_database()
"""


class Watch(threading.Thread):
    """A thread that samples what the sessions of some programs hold on one server.

    Attributes:
        locks: Seconds by mode for which a lock on the table was held.
        horizon_s: Seconds for which a session held a snapshot.
        sessions: The most sessions at once.
    """

    def __init__(self, dsn: str, programs: list[str]) -> None:
        super().__init__()
        self._dsn, self._programs = dsn, programs
        self._over = threading.Event()
        self.locks: dict[str, float] = defaultdict(float)
        self.horizon_s = 0.0
        self.sessions = 0

    def run(self) -> None:
        """Sample until stopped."""
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            last = time.monotonic()
            while not self._over.is_set():
                modes = {mode for mode, granted in connection.execute(_LOCKS, [self._programs])
                         if granted}  # fmt: skip
                sessions, holding = connection.execute(_SESSIONS, [self._programs]).fetchone() or (
                    0,
                    0,
                )
                now = time.monotonic()
                for mode in modes:
                    self.locks[mode] += now - last
                self.horizon_s += (now - last) * bool(holding)
                self.sessions = max(self.sessions, sessions)
                last = now
                time.sleep(PAUSE_S)

    def __enter__(self) -> "Watch":
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._over.set()
        self.join()


def main() -> None:
    """Take the steps, and then the peer's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    rows = parser.parse_args().rows
    with a_server() as one, a_server() as other:
        source, target = one.dsn("src"), other.dsn("dst")
        fill(source, rows)
        print(f"{rows:,} rows; seconds a lock on the table was held, by mode")
        dump = measured("pg_dump | psql", source, target, lambda: dump_and_load(one, other))
        clear(target)
        ours = measured("first copy", source, target, lambda: sync(source, target, "bar"))
        print(
            f"the source's horizon, first copy over pg_dump | psql: {ours / dump:.2f}; "
            f"{final_size(target)}"
        )
        steps(source, target, rows)


def steps(source: str, target: str, rows: int) -> None:
    """Take the steps of a table that is synced already."""
    execute(target, "vacuum (analyze) bar")
    few = rows // 1000
    proving = Proving(within_s=0, most_bytes=16 << 20)
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("nothing changed", "", {}),
        ("0.1 % changed", f"update bar set qty = qty + 1 where id % 1000 = {few % 1000}", {}),
        ("one row deleted", f"delete from bar where id = {few}", {}),
        ("a column added", "alter table bar add column more int default 7", {}),
        ("16 MiB proven", "", {"prove": proving}),
    ]
    for name, change, options in cases:
        if change:
            execute(source, change)
        before = updates(target)
        reports: list[SyncReport] = []
        measured(name, source, target, partial(once, reports, source, target, options))
        time.sleep(1.2)  # the statistics arrive late
        made, hot = (now - then for now, then in zip(updates(target), before, strict=True))
        report = reports[-1]
        proof = f"; {report.proof.sentence}" if report.proof else ""
        print(f"    mode {report.mode}, {made} updates in the target, {hot} HOT{proof}")


def once(reports: list[SyncReport], source: str, target: str, options: dict[str, Any]) -> None:
    """Sync the table once, and keep the report."""
    reports.append(sync(source, target, "bar", **options))


def measured(name: str, source: str, target: str, task: Callable[[], object]) -> float:
    """Do a task, print what it held, and return the seconds that it held the source's horizon."""
    programs = [OURS, "pg_dump", "psql"]
    with wal(target) as written, Watch(source, programs) as there, Watch(target, programs) as here:
        began = time.monotonic()
        task()
        seconds = time.monotonic() - began
    print(
        f"{name}: {seconds:.2f} s, source: {shown(there)}; target: {shown(here)}, "
        f"{format_bytes(written[0])} of WAL"
    )
    return there.horizon_s


def shown(watch: Watch) -> str:
    """Return what was held on one server."""
    locks = ", ".join(f"{mode} {seconds:.2f}" for mode, seconds in sorted(watch.locks.items()))
    return f"{watch.sessions} sessions, horizon {watch.horizon_s:.2f} s, {locks or 'no lock'}"


@contextmanager
def wal(dsn: str) -> Iterator[list[int]]:
    """Return the bytes of WAL that the server writes during the block, in a list."""
    place = "select pg_current_wal_insert_lsn() - '0/0'"
    written: list[int] = []
    before = value(dsn, place)
    yield written
    written.append(int(value(dsn, place) - before))


def dump_and_load(one: Server, other: Server) -> None:
    """Copy the table with the programs of the server."""
    dump = [str(one.binaries / "pg_dump"), "-t", "bar", one.dsn("src")]
    with subprocess.Popen(dump, stdout=subprocess.PIPE) as out:
        subprocess.run(
            [str(other.binaries / "psql"), "-Xqo", "/dev/null", other.dsn("dst")],
            stdin=out.stdout,
            check=True,
        )


def final_size(dsn: str) -> str:
    """Return the size of the copy, with its indexes."""
    heap = value(dsn, "select pg_table_size('bar')")
    return f"heap {format_bytes(heap)}, indexes {format_bytes(value(dsn, INDEXES))}"


INDEXES = "select pg_indexes_size('bar')"


def updates(dsn: str) -> tuple[int, int]:
    """Return how many updates the target table has had, and how many of them were HOT."""
    made = value(dsn, "select n_tup_upd from pg_stat_user_tables where relname = 'bar'")
    hot = value(dsn, "select n_tup_hot_upd from pg_stat_user_tables where relname = 'bar'")
    return int(made), int(hot)


def value(dsn: str, query: str) -> Any:
    """Return the value of a query."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(query).fetchone()  # type: ignore[arg-type]
        return row[0] if row else None


def execute(dsn: str, statement: str) -> None:
    """Run a statement."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
