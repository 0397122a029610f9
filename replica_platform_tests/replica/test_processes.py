"""Readers in forked processes and in connection pools see new generations too."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from replica_platform.replica import Publication, ReplicaUnavailable, status

COUNT = "select count(*) from bars"

FORKING = """
import os, sys, time
from replica_platform.replica import Master, ReplicaReader, publish, status

master, store = sys.argv[1:]
COUNT = "select count(*) from bars"

def outcome(reader, rows):
    deadline = time.monotonic() + 10
    while (found := reader.query(COUNT)) != [(rows,)] and time.monotonic() < deadline:
        time.sleep(0.01)
    return found, reader.status().generation, reader.status().served_from

publish(master, store)
reader = ReplicaReader(store, poll_s=0.01)
reader.query(COUNT)
told, tell = os.pipe()
child = os.fork()
if child == 0:
    held = sorted({one.pid == os.getpid() for one in status(store).readers})
    os.read(told, 1)
    print("child", outcome(reader, 4), held, flush=True)
    reader.close()
    os._exit(0)
with Master(master).write() as connection:
    connection.execute("insert into bars values ('AAPL', 9, 9)")
publish(master, store, keep=1, min_age_s=0)
os.write(tell, b"1")
os.waitpid(child, 0)
print("parent", outcome(reader, 4), [one.generation for one in status(store).readers], flush=True)
"""


def test_a_forked_process_goes_on_to_new_generations(
    publish_next: Callable[..., Publication], store: Path, tmp_path: Path
) -> None:
    master = tmp_path / "master" / "stock_data.duckdb"
    finished = subprocess.run(
        [sys.executable, "-c", FORKING, str(master), str(store)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert finished.stdout.splitlines() == [
        "child ([(4,)], 2, 'current') [False]",
        "parent ([(4,)], 2, 'current') [2]",
    ], finished.stderr


def test_a_connection_stays_on_its_generation_and_the_next_one_is_on_the_newest(
    publish_next: Callable[..., Publication], store: Path
) -> None:
    from replica_platform.replica import connect

    with pytest.raises(ReplicaUnavailable, match="publish again"):
        connect(store)
    publish_next()
    first = connect(store)
    publish_next(4, keep=1)
    second = connect(store)
    assert [one.execute(COUNT).fetchone() for one in (first, second)] == [(4,), (5,)]
    assert second.execute("select count(*) from stock_data.main.bars").fetchone() == (5,)
    with pytest.raises(duckdb.Error, match="read-only"):
        second.execute("delete from bars")
    assert status(store).kept == [2, 1]  # the first one holds generation 1
    first.close()
    del first
    publish_next(5, keep=1)
    assert 1 not in status(store).kept


def test_a_pool_of_sqlalchemy_sees_new_generations(
    publish_next: Callable[..., Publication], store: Path
) -> None:
    """As in docs/replica.md; the control is the default pool on the link."""
    pool = pytest.importorskip("sqlalchemy.pool")
    from replica_platform.replica import connect

    fresh = pool.NullPool(lambda: connect(store), reset_on_return=None)
    link = str(store / "stock_data_replica.db")
    stale = pool.QueuePool(lambda: duckdb.connect(link, read_only=True), reset_on_return=None)
    seen: dict[str, list[int]] = {"fresh": [], "stale": []}
    for day in (3, 4, 5):
        publish_next(day)
        for name, one in (("fresh", fresh), ("stale", stale)):
            checked_out = one.connect()
            cursor = checked_out.cursor()
            cursor.execute(COUNT)
            seen[name].append(cursor.fetchone()[0])
            checked_out.close()
    assert seen == {"fresh": [4, 5, 6], "stale": [4, 4, 4]}


def test_an_engine_of_duckdb_engine_sees_new_generations(
    publish_next: Callable[..., Publication], store: Path
) -> None:
    """The recipe in docs/replica.md."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    wrapper = pytest.importorskip("duckdb_engine").ConnectionWrapper
    from replica_platform.replica import connect

    engine = sqlalchemy.create_engine(
        "duckdb://",
        creator=lambda: wrapper(connect(store)),
        poolclass=sqlalchemy.pool.NullPool,
    )
    for day in (3, 4, 5):
        publish_next(day)
        with engine.connect() as connection:
            assert connection.execute(sqlalchemy.text(COUNT)).scalar() == day + 1
