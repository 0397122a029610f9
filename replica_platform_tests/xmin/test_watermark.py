"""With the watermark a replay writes nothing, and readers never see half a sync."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from replica_platform.xmin import TableSpec, sync, sync_group
from replica_platform.xmin.errors import TableBusy, TooManyDeletes
from replica_platform.xmin.names import TableName
from replica_platform.xmin.target import watermark
from replica_platform_tests.xmin.helpers import execute, rows


@pytest.fixture
def table(source: str, target: str) -> None:
    execute(
        source,
        "create table t (id int primary key, x text)",
        "insert into t select i, 'x' from generate_series(1, 3000) i",
    )
    sync(source, target, "t")


def test_a_replay_writes_nothing(source: str, target: str, table: None) -> None:
    execute(source, "update t set x = 'y' where id <= 10")
    before = rows(target, "select w, next from replica_platform.mark")
    sync(source, target, "t")
    written = rows(target, "select ctid::text, xmin::text from t order by id")
    # As if the sync had been forgotten, and the epoch of old rows computed again.
    execute(
        target,
        f"update replica_platform.mark set w = {before[0][0]}, next = {before[0][1]}, "
        "delivered = '{}', snapshot = ''",
    )
    replay = sync(source, target, "t")
    assert (replay.rows_read, replay.rows_updated, replay.rows_inserted) == (10, 0, 0)
    assert rows(target, "select ctid::text, xmin::text from t order by id") == written


def test_more_delivered_xids_than_the_cap_are_read_again(
    source: str, target: str, table: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watermark, "DELIVERED_CAP", 3)
    with psycopg.connect(source) as slow:
        slow.execute("insert into t values (9000, 'slow')")
        for i in range(5):
            execute(source, f"insert into t values ({9001 + i}, 'fast')")
        assert sync(source, target, "t").rows_inserted == 5
        assert rows(target, "select complete, delivered from replica_platform.mark") == [
            (False, [])
        ]
        again = sync(source, target, "t")
        assert (again.rows_read, again.changed) == (5, False)
    assert sync(source, target, "t").rows_inserted == 1
    assert rows(source, "select count(*) from t") == rows(target, "select count(*) from t")


def test_rows_of_savepoints_are_delivered_once(source: str, target: str, table: None) -> None:
    """Their xids are in no snapshot's list: the delivered xids come from the rows."""
    with psycopg.connect(source) as slow:
        slow.execute("insert into t values (9000, 'slow')")
        with psycopg.connect(source) as fast:
            for i in range(3):
                with fast.transaction():
                    fast.execute("insert into t values (%s, 'sub')", [9001 + i])
        assert sync(source, target, "t").rows_inserted == 3
        assert sync(source, target, "t").rows_read == 0
        with slow.transaction():
            slow.execute("insert into t values (9010, 'sub of slow')")
    assert sync(source, target, "t").rows_inserted == 2


def test_readers_see_the_old_table_or_the_new_one(source: str, target: str, table: None) -> None:
    execute(source, "update t set x = 'new'")
    seen: set[tuple[int, int]] = set()
    stop = threading.Event()

    def read() -> None:
        with psycopg.connect(target, autocommit=True) as connection:
            while not stop.is_set():
                query = "select count(*), count(distinct x) from t"
                seen.add(connection.execute(query).fetchone())  # type: ignore[arg-type]

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert sync(source, target, "t", mode="full").rows_updated == 3000
    finally:
        stop.set()
        reader.join()
    assert seen == {(3000, 1)}


def test_a_group_fits_together(source: str, target: str) -> None:
    """Foreign keys hold across the tables of a group, while parents and children are written."""
    execute(
        source,
        "create table parent (id int primary key)",
        "create table child (id int primary key, parent int references parent)",
    )
    orphans = (
        "select count(*) from child c left join parent p on p.id = c.parent where p.id is null"
    )
    specs = [TableSpec("parent"), TableSpec("child")]
    with families(source):
        for _ in range(5):
            assert sync_group(source, target, specs, atomic=True).ok
            assert rows(target, orphans) == [(0,)]
        # The control: one after the other, each at its own snapshot.
        torn = False
        for _ in range(40):
            sync(source, target, "parent")
            sync(source, target, "child")
            torn = torn or rows(target, orphans)[0][0] > 0
            if torn:
                break
    assert torn


@contextmanager
def families(dsn: str) -> Iterator[None]:
    """Write a parent with its child, and delete both, in a loop."""
    stop = threading.Event()

    def write() -> None:
        with psycopg.connect(dsn) as connection:
            key = 0
            while not stop.is_set():
                key += 1
                with connection.transaction():
                    connection.execute("insert into parent values (%s)", [key])
                    connection.execute("insert into child values (%s, %s)", [key, key])
                    connection.execute("delete from child where id = %s", [key - 50])
                    connection.execute("delete from parent where id = %s", [key - 50])
                connection.commit()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


def test_two_syncs_of_one_table_exclude_each_other(
    source: str, target: str, table: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["replica_platform.xmin.lock"], "LOCK_TIMEOUT_S", 0.2)
    with psycopg.connect(target, autocommit=True) as other:
        assert watermark.lock(other, TableName("public", "t"))
        with pytest.raises(TableBusy, match="Another sync"):
            sync(source, target, "t")
    assert sync(source, target, "t").mode == "scan"


def test_an_empty_source_of_another_identity_deletes_nothing(
    source: str, target: str, table: None
) -> None:
    execute(source, "truncate t")
    execute(target, """update replica_platform.mark set identity = '{"system": "0", "timeline": 1,
                    "database": 1}'""")  # fmt: skip
    with pytest.raises(TooManyDeletes, match="another server than at the last sync"):
        sync(source, target, "t")
    assert rows(target, "select count(*) from t") == [(3000,)]


def test_a_dropped_or_replaced_target_is_copied_again(
    source: str, target: str, table: None
) -> None:
    execute(target, "drop table t")
    assert sync(source, target, "t").rows_inserted == 3000
    execute(target, "drop table t", "create table t (id int primary key, x text)")
    assert sync(source, target, "t").rows_inserted == 3000


def test_a_refreshed_view_and_a_logged_table(source: str, target: str, table: None) -> None:
    execute(source, "create unlogged table u (id int primary key)", "insert into u values (1)",
            "create materialized view m as select id from t where id < 4")  # fmt: skip
    assert sync(source, target, "u").rows == 1
    assert sync(source, target, "m").rows == 3
    execute(source, "alter table u set logged", "update t set x = 'z' where id = 1",
            "delete from t where id = 2", "refresh materialized view m")  # fmt: skip
    assert sync(source, target, "u").rows == 1
    assert rows(target, "select id from u") == [(1,)]
    assert sync(source, target, "m").rows == 2
