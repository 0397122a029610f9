"""First copies in slices, under writers and definitions, killed, and with a source that crashes.

Each cycle copies all tables anew, a few blocks at a snapshot.
"""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from replica_platform.core.errors import TransientError
from replica_platform.xmin import TableSpec, sync, sync_group, validate
from replica_platform_tests.faults.test_xmin_oracle import differences
from replica_platform_tests.faults.xmin_servers import kill_9, own_server
from replica_platform_tests.faults.xmin_writers import SETUP, TABLES, Writers
from replica_platform_tests.xmin.helpers import execute, rows

SPECS = [TableSpec(table) for table in TABLES]
SLICES: dict[str, Any] = {"batch_bytes": 32768, "workers": 2, "max_snapshot_s": 0.000001}
DROP = f"drop table if exists {', '.join(TABLES)} cascade"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("atomic", [False, True])
def test_the_oracle_with_slices_on(
    atomic: bool, database: Callable[[str], str], torture: bool
) -> None:
    source, target = database("slices_source"), database("slices_target")
    execute(source, *SETUP)
    seconds = 60.0 if torture else 8.0
    copies = snapshots = 0
    failures: Counter[str] = Counter()
    with Writers(source, pace=6) as writers:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            execute(target, DROP)
            group = sync_group(source, target, SPECS, atomic=atomic, **SLICES)
            failures.update(sentence.split(" (")[0][:70] for sentence in group.failures.values())
            copies += len(group.reports)
            snapshots += max([0, *(report.snapshots for report in group.reports.values())])
    execute(target, DROP)
    with Writers(source, ddl=False, seed=50):
        group = sync_group(source, target, SPECS, atomic=atomic, **SLICES)
    assert group.ok
    assert all(report.snapshots > 8 for report in group.reports.values())
    last = sync_group(source, target, SPECS, atomic=atomic)
    found = {table: differences(source, target, table) for table in TABLES}
    print(
        f"\n{writers.transactions} transactions, {writers.definitions} definitions, {copies} first "
        f"copies at {snapshots} snapshots in {seconds:g} s, failed {dict(failures)}, then {found}"
    )
    assert last.ok
    assert not any(any(counts.values()) for counts in found.values())
    assert all(validate(source, target, table).in_sync for table in TABLES)


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_kills_between_slices(database: Callable[[str], str], torture: bool) -> None:
    """The sync is killed, or the source, at any moment of a copy; another sync completes it."""
    target = database("slices_killed")
    dice = random.Random(5)
    cycles, killed, continued = 30 if torture else 4, 0, 0
    with own_server() as server:
        source = server.dsn("src")
        execute(source, *SETUP, "alter system set wal_writer_delay = '2s'")
        execute(source, "select pg_reload_conf()")
        for cycle in range(cycles):
            execute(target, DROP)
            with Writers(source, count=3, ddl=False, seed=cycle * 100):
                child = begin(source, target)
                time.sleep(0.1 + dice.random() * 0.5)
                if cycle % 2:
                    kill_9(server)
                    os.waitpid(child, 0)
                else:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                killed += 1
            if cycle % 2:
                server.start()
            continued += arrived(target) > 0
            assert sync_group(source, target, SPECS, **SLICES).ok
            assert sync_group(source, target, SPECS).ok
            found = {table: differences(source, target, table) for table in TABLES}
            assert not any(any(counts.values()) for counts in found.values()), found
    print(f"\n{killed} kills, {continued} copies continued")
    assert continued > 0


@pytest.mark.timeout(120)
def test_a_delete_that_a_crash_undoes_is_undone_in_the_copy(
    database: Callable[[str], str],
) -> None:
    """A slice that saw it has left the row out, which is below W and lies in a range that came."""
    target = database("slices_undone")
    with own_server() as server:
        source = server.dsn("src")
        execute(
            source,
            "create table t (id int primary key, x text)",
            "insert into t select i, repeat('x', 300) from generate_series(1, 3000) i",
            "alter system set wal_writer_delay = '10s'",
            "alter system set synchronous_commit = off",
            "vacuum t",
            "checkpoint",
        )
        server.stop()
        server.start()
        pieces: list[int] = []

        def disturb(*_: object) -> None:
            pieces.append(1)
            if len(pieces) == 2:
                execute(source, "delete from t where id between 1000 and 1500")
            elif len(pieces) == 20:
                kill_9(server)

        with pytest.raises(TransientError):
            sync(source, target, "t", progress=disturb, **SLICES | {"workers": 1})
        server.start()
        lost = rows(source, "select 3000 - count(*) from t")[0][0]
        # As many others go, so that the counts would not show the loss.
        execute(source, "delete from t where id <= 501")
        report = sync(source, target, "t", **SLICES)
        assert report.notes[0].startswith("an interrupted copy went on")
        print(f"\n{lost} of 501 rows stayed deleted after the crash")
        query = "select id, x from t order by id"
        assert rows(source, query) == rows(target, query)


def begin(source: str, target: str) -> int:
    """Begin a sliced copy in a child; return its pid."""
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            sync_group(source, target, SPECS, **SLICES)
        os._exit(0)
    return child


def arrived(target: str) -> int:
    """Return how many ranges have arrived of copies that have not ended."""
    with suppress(TransientError):
        return int(rows(target, "select count(*) from replica_platform.first_copy")[0][0])
    return 0
