"""Tables without a key are changed in place; a swap of tables, the control, loses more."""

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from replica_platform.xmin import sync, validate
from replica_platform.xmin.errors import CannotSync, TooManyDeletes
from replica_platform_tests.xmin.helpers import execute, rows


@pytest.fixture
def table(source: str, target: str) -> None:
    execute(
        source,
        "create table t (a int, x text)",
        "insert into t select i % 1500, 'x' from generate_series(1, 3000) i",
        "insert into t values (null, null), (null, null)",
    )
    sync(source, target, "t")


BAG = "select a, x, count(*) from t group by 1, 2 order by 1, 2"


def swap(source: str, target: str) -> None:
    """The control: fill a new table and give it the name of the old one."""
    new = rows(source, "select a, x from t")
    with psycopg.connect(target) as connection:
        connection.execute("create table t_new (a int, x text)")
        connection.cursor().executemany("insert into t_new values (%s, %s)", new)
        connection.execute("alter table t rename to t_old")
        connection.execute("alter table t_new rename to t")


def in_place(source: str, target: str) -> None:
    """Sync."""
    assert sync(source, target, "t").changed


def test_equal_rows_are_counted(source: str, target: str, table: None) -> None:
    assert not sync(source, target, "t").changed
    execute(
        source,
        "insert into t values (1, 'x'), (null, null), (7777, 'new')",
        "delete from t where ctid = (select max(ctid) from t where a = 2)",
    )
    report = sync(source, target, "t")
    assert (report.rows_inserted, report.rows_deleted, report.rows) == (3, 1, 3004)
    assert rows(source, BAG) == rows(target, BAG)
    assert validate(source, target, "t").in_sync


def test_only_what_differs_is_written(source: str, target: str, table: None) -> None:
    """The target does not grow by a whole table each time."""
    location = "select ctid::text, xmin::text, a, x from t"
    before = set(rows(target, location))
    execute(source, "update t set x = 'other' where a = 5", "vacuum full t")
    assert sync(source, target, "t").changed
    assert len(before & set(rows(target, location))) == 3000
    assert rows(source, BAG) == rows(target, BAG)


def test_a_unique_index_of_the_target_is_respected(source: str, target: str) -> None:
    execute(source, "create table t (a int, x text)", "insert into t values (1, 'a'), (2, 'b')")
    sync(source, target, "t")
    execute(target, "create unique index on t (a)")
    execute(source, "update t set x = x || '!'")
    assert sync(source, target, "t").rows_inserted == 2
    assert rows(source, BAG) == rows(target, BAG)


@pytest.mark.parametrize(("method", "kept"), [(in_place, True), (swap, False)])
def test_dependents_of_the_target_stay(
    method: Callable[[str, str], None], kept: bool, source: str, target: str, table: None
) -> None:
    """Views, grants, foreign keys, indexes and comments; the control loses all of them."""
    execute(
        target,
        "create view seen as select count(*) as n from t",
        "create table parent (id int primary key)",
        "insert into parent select generate_series(0, 1500)",
        "alter table t add constraint family foreign key (a) references parent",
        "create index by_x on t (x)",
        "comment on table t is 'ours'",
        "grant select on t to public",
    )
    execute(source, "delete from t where a = 3")
    method(source, target)
    found = rows(
        target,
        """select (select n from seen), obj_description(oid), relacl::text like '%=r/%',
           (select count(*) from pg_constraint where conrelid = c.oid and contype = 'f'),
           (select count(*) from pg_indexes where tablename = 't' and indexname = 'by_x')
           from pg_class c where oid = 't'::regclass""",
    )
    assert found == [(3000, "ours", True, 1, 1) if kept else (3002, None, None, 0, 0)]


@pytest.mark.parametrize(("method", "seen"), [(in_place, 3002), (swap, 0)])
def test_an_open_reader_keeps_its_rows(
    method: Callable[[str, str], None], seen: int, source: str, target: str, table: None
) -> None:
    """Its snapshot does not see the rows of a table that was filled after it: a swap is empty."""
    execute(source, "delete from t where a = 3")
    with psycopg.connect(target) as reader:
        reader.execute("set transaction isolation level repeatable read")
        reader.execute("select 1")
        method(source, target)
        assert reader.execute("select count(*) from t").fetchone() == (seen,)


def test_readers_never_see_it_empty_or_torn(source: str, target: str, table: None) -> None:
    execute(source, "update t set x = 'new'")
    seen: set[Any] = set()
    over = threading.Event()

    def read() -> None:
        with psycopg.connect(target, autocommit=True) as connection:
            while not over.is_set():
                query = "select count(*), count(distinct x) from t"
                seen.add(connection.execute(query).fetchone())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for value in ("one", "two", "three"):
            execute(source, f"update t set x = '{value}'")
            assert sync(source, target, "t").rows_inserted == 3002
    finally:
        over.set()
        reader.join()
    assert seen == {(3002, 1)}


def test_a_view_that_reads_empty_is_refused(source: str, target: str, table: None) -> None:
    execute(source, "create table switch (ok bool)", "insert into switch values (true)",
            "create view v as select a, x from t where (select ok from switch)")  # fmt: skip
    assert sync(source, target, "v").rows == 3002
    execute(source, "update switch set ok = false")
    with pytest.raises(TooManyDeletes, match=r"3,002 of 3,002 rows of public\.v"):
        sync(source, target, "v")
    assert rows(target, "select count(*) from v") == [(3002,)]


@pytest.mark.parametrize("mode", ["auto", "full"])
def test_deletes_never_is_refused(mode: str, source: str, target: str, table: None) -> None:
    """Without a key a changed row is a deleted and an inserted one."""
    execute(source, "delete from t where a < 100", "update t set x = 'new' where a = 200")
    before = rows(target, BAG), rows(target, "select w, snapshot from replica_platform.mark")
    with pytest.raises(CannotSync, match=r"public\.t has no key.* deletes='never'.*deletes='auto'"):
        sync(source, target, "t", mode=mode, deletes="never")
    after = rows(target, BAG), rows(target, "select w, snapshot from replica_platform.mark")
    assert after == before
    # The control: these rows are what such a sync deleted.
    assert sync(source, target, "t").rows_deleted == 202


def test_deletes_never_is_refused_at_the_first_copy(source: str, target: str) -> None:
    execute(source, "create table t (a int)", "create view v as select * from t",
            "create table k (a int primary key)", "insert into k values (1), (2)")  # fmt: skip
    for name in ("t", "v"):
        with pytest.raises(CannotSync, match=rf"public\.{name} has no key"):
            sync(source, target, name, deletes="never")
    assert rows(target, "select to_regclass('t') is null, to_regclass('v') is null") == [
        (True, True)
    ]
    sync(source, target, "k", deletes="never")
    execute(source, "delete from k where a = 1", "insert into t values (1)")
    for mode in ("auto", "full"):
        assert sync(source, target, "k", mode=mode, deletes="never").rows == 2
    assert sync(source, target, "v", key=["a"], deletes="never").rows == 1
