"""The target's definition follows the source's, or the sync refuses and changes nothing."""

import threading
import time

import psycopg
import pytest

from replica_platform.xmin import sync
from replica_platform.xmin.errors import SchemaRefused
from replica_platform.xmin.target.widening import widens
from replica_platform_tests.xmin.helpers import execute, rows


@pytest.fixture
def table(source: str, target: str) -> None:
    execute(
        source,
        "create table t (id int primary key, v varchar(5))",
        "insert into t select i, 'v' || i from generate_series(1, 100) i",
    )
    sync(source, target, "t")


def test_a_new_column_with_a_default_is_filled_without_reading(
    source: str, target: str, table: None
) -> None:
    execute(
        source,
        "alter table t add column n int not null default 7",
        "alter table t add column e text",
        "alter table t add column w text default 'it''s'",
        "insert into t values (101, 'v', 8, 'e', 'w')",
    )
    report = sync(source, target, "t")
    assert report.mode == "scan"
    assert report.rows_read == 1
    assert report.notes == (
        "column n integer was added",
        "column e text was added",
        "column w text was added",
    )
    query = "select id, v, n, e, w from t order by id"
    assert rows(source, query) == rows(target, query)
    assert rows(target, "select count(*) from pg_attrdef where adrelid = 't'::regclass") == [(0,)]


@pytest.mark.parametrize("rewrite", ["vacuum full t", "cluster t using t_pkey"])
def test_a_new_column_of_a_rewritten_table_is_read_whole(
    source: str, target: str, table: None, rewrite: str
) -> None:
    """The rows keep their xmin and hold the default; the catalog no longer has it."""
    execute(source, "alter table t add column n int default 7", rewrite)
    report = sync(source, target, "t")
    assert "Column n is new and the table was rewritten" in report.why
    assert rows(target, "select distinct n from t") == [(7,)]
    execute(source, rewrite, "alter table t add column m int default 8")
    assert sync(source, target, "t").rows_read == 0  # rewritten before: the catalog has it
    assert rows(target, "select distinct m from t") == [(8,)]


def test_a_column_dropped_and_added_again_is_read_whole(
    source: str, target: str, table: None
) -> None:
    execute(
        source,
        "alter table t drop column v",
        "alter table t add column v varchar(5) default 'new'",
    )
    report = sync(source, target, "t")
    assert report.mode == "full"
    assert "dropped and added again" in report.why
    assert rows(target, "select distinct v from t") == [("new",)]


def test_a_dropped_column_is_kept_and_reported(source: str, target: str, table: None) -> None:
    execute(source, "alter table t drop column v", "insert into t values (101)")
    report = sync(source, target, "t")
    assert report.notes == ("column v is no longer in the source and was kept",)
    assert rows(target, "select v from t where id in (100, 101) order by id") == [
        ("v100",),
        (None,),
    ]


def test_a_widened_type_is_altered(source: str, target: str, table: None) -> None:
    execute(
        source,
        "alter table t alter id type bigint, alter v type varchar(500)",
        "update t set v = repeat('x', 300) where id = 1",
    )
    report = sync(source, target, "t")
    assert report.mode == "full"
    assert set(report.notes) == {
        "column id was widened to bigint",
        "column v was widened to character varying(500)",
    }
    assert rows(target, "select id, v from t order by id") == rows(
        source, "select * from t order by id"
    )


def test_another_type_is_refused_and_nothing_changes(source: str, target: str, table: None) -> None:
    before = rows(target, "select * from t order by id")
    execute(
        source,
        "alter table t alter v type int using 1",
        "alter table t add column more int",
    )
    with pytest.raises(SchemaRefused, match=r"v is character varying\(5\) in the target and int"):
        sync(source, target, "t")
    assert rows(target, "select * from t order by id") == before


def test_a_renamed_table_under_the_same_name_is_copied_whole(
    source: str, target: str, table: None
) -> None:
    execute(
        source,
        "alter table t rename to old",
        "create table t (id int primary key, v varchar(5))",
        "insert into t values (1, 'other')",
    )
    report = sync(source, target, "t")
    assert report.mode == "full"
    assert "another one under the same name" in report.why
    assert rows(target, "select id, v from t") == [(1, "other")]


def test_a_target_table_without_the_columns_of_the_sync_gets_them(source: str, target: str) -> None:
    execute(
        source,
        "create table t (id int primary key, v text)",
        "insert into t values (1, 'a'), (2, 'b')",
    )
    execute(
        target,
        "create table t (id int generated always as identity, v text, own int, "
        "twice text generated always as (v || v) stored)",
        "insert into t overriding system value values (1, 'old', 5), (9, 'gone', 6)",
    )
    report = sync(source, target, "t")
    assert (report.rows_inserted, report.rows_updated, report.rows_deleted) == (1, 1, 1)
    assert rows(target, "select id, v, own, twice, source_xmin > 0 from t order by 1") == [
        (1, "a", 5, "aa", True),
        (2, "b", None, "bb", True),
    ]
    execute(source, "update t set v = 'c' where id = 2")
    assert sync(source, target, "t").rows_updated == 1


def test_changed_policies_are_read_whole(source: str, target: str, table: None) -> None:
    """They change which rows a role sees, and no xmin."""
    execute(source, "alter table t enable row level security",
            "create policy few on t using (id > 5)")  # fmt: skip
    report = sync(source, target, "t")
    assert report.mode == "full"
    assert "policies of the table have changed" in report.why
    assert sync(source, target, "t").mode == "scan"


def test_nothing_of_a_refused_sync_stays(source: str, target: str, table: None) -> None:
    """No column, no row, no watermark."""
    state = """select (select array_agg(m::text) from replica_platform.mark m),
        (select array_agg(attname::text) from pg_attribute where attrelid = 't'::regclass),
        (select count(*) from t)"""
    before = rows(target, state)
    execute(source, "alter table t add column early int", "insert into t values (500, 'x')",
            "alter table t alter v type int using 1")  # fmt: skip
    with pytest.raises(SchemaRefused):
        sync(source, target, "t")
    assert rows(target, state) == before


def test_a_target_that_becomes_a_primary_needs_its_sequences(source: str, target: str) -> None:
    """As the documentation says; without it the first insert meets an existing key."""
    execute(source, "create table t (id int generated by default as identity primary key)",
            "insert into t select from generate_series(1, 5)")  # fmt: skip
    execute(target, "create table t (id int generated by default as identity primary key)")
    sync(source, target, "t")
    with pytest.raises(psycopg.errors.UniqueViolation):
        execute(target, "insert into t default values")
    execute(
        target,
        "select setval(pg_get_serial_sequence('public.t', 'id'), (select max(id) from public.t))",
        "insert into t default values",
    )
    assert rows(target, "select max(id) from t") == [(6,)]


@pytest.mark.parametrize(
    ("old", "new", "fits"),
    [
        ("integer", "bigint", True),
        ("bigint", "integer", False),
        ("character varying(5)", "character varying(6)", True),
        ("character varying(5)", "character varying(4)", False),
        ("character varying(5)", "text", True),
        ("text", "character varying(5)", False),
        ("numeric(10,2)", "numeric(12,2)", True),
        ("numeric(10,2)", "numeric(10,3)", False),
        ("numeric(10,2)", "numeric", True),
        ("integer[]", "bigint[]", True),
        ("timestamp(3) without time zone", "timestamp without time zone", True),
        ("timestamp without time zone", "timestamp with time zone", False),
    ],
)
def test_which_types_are_wider(old: str, new: str, fits: bool) -> None:
    assert widens(old, new) is fits


def test_a_new_column_behind_a_long_reader_lets_other_readers_pass(
    source: str, target: str, table: None
) -> None:
    """A waiting ALTER TABLE holds up every later reader; it gives up its place now and then."""
    execute(source, "alter table t add column late int default 7")
    failed: list[Exception] = []

    def run() -> None:
        try:
            sync(source, target, "t")
        except Exception as error:
            failed.append(error)

    waiting = """select exists (select from pg_locks where not granted
        and mode = 'AccessExclusiveLock' and relation = 't'::regclass)"""
    with psycopg.connect(target) as long_reader:
        long_reader.execute("select count(*) from t")
        syncing = threading.Thread(target=run)
        syncing.start()
        try:
            with psycopg.connect(target, autocommit=True) as reader:
                reader.execute("set lock_timeout = '10s'")
                while rows(target, waiting) == [(False,)] and syncing.is_alive():
                    time.sleep(0.01)
                for _ in range(3):
                    assert reader.execute("select count(*) from t").fetchone() == (100,)
            assert syncing.is_alive()
        finally:
            long_reader.rollback()
            syncing.join()
    assert not failed
    assert rows(target, "select distinct late from t") == [(7,)]
