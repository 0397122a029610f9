"""The oldest supported server, where the machine has one: as source, as target, as both."""

from collections.abc import Iterator

import psycopg
import pytest

from replica_platform.app.embedded import Server
from replica_platform.xmin import (
    CannotSync,
    Proving,
    TableSpec,
    status,
    sync,
    sync_group,
    validate,
)
from replica_platform_tests.xmin.helpers import execute, rows
from replica_platform_tests.xmin.servers import fifteen_running
from replica_platform_tests.xmin.test_zoo import check_zoo


@pytest.fixture
def fifteen() -> Iterator[Server]:
    """A Postgres 15 with the databases source and target."""
    with fifteen_running() as server:
        yield server


def test_fifteen(fifteen: Server, source: str, target: str) -> None:
    check_zoo(fifteen.dsn("source"), target)
    check_zoo(source, fifteen.dsn("target"))
    old = fifteen.dsn("source")
    execute(old, "delete from zoo where id = 2", "insert into zoo (id) values (9)")
    report = sync(old, target, "zoo")
    assert (report.mode, report.rows_inserted, report.rows_deleted) == ("scan", 1, 1)
    assert validate(old, target, "zoo").in_sync
    execute(fifteen.dsn("target"), "drop table zoo")
    sync(old, fifteen.dsn("target"), "zoo")
    assert validate(old, fifteen.dsn("target"), "zoo").in_sync


XML = ['<a b="ü">text</a>', "just <b/> content", "<!-- a comment --><x/>", ""]


def test_xml(fifteen: Server) -> None:
    """The embedded server has no libxml."""
    old, new = fifteen.dsn("source"), fifteen.dsn("target")
    try:
        execute(old, "select '<a/>'::xml")
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this Postgres 15 has no libxml")
    execute(old, "create table x (id int primary key, v xml, vs xml[])")
    with psycopg.connect(old, autocommit=True) as connection:
        for number, value in enumerate(XML):
            connection.execute(
                "insert into x values (%s, %s, array[%s::xml])", [number, value, value]
            )
    query = "select id, v::text, vs::text from x order by id"
    sync(old, new, "x")
    assert rows(old, query) == rows(new, query)
    execute(old, "update x set v = '<new/>' where id = 0", "delete from x where id = 1")
    report = sync(old, new, "x")
    assert (report.mode, report.rows_updated, report.rows_deleted) == ("scan", 1, 1)
    assert rows(old, query) == rows(new, query)
    execute(old, "create type pair as (a int)", "alter table x add column p pair[]")
    assert not sync(old, new, "x", mode="full").rows_updated  # as text
    assert validate(old, new, "x").in_sync


def test_a_foreign_table_goes_by_timestamp_or_in_full(fifteen: Server) -> None:
    """The embedded server comes without postgres_fdw."""
    source, target = fifteen.dsn("source"), fifteen.dsn("target")
    try:
        execute(source, "create extension postgres_fdw")
    except psycopg.Error:
        pytest.skip("this Postgres 15 has no postgres_fdw")
    execute(fifteen.dsn(), "create database remote")
    execute(fifteen.dsn("remote"), "create table t (id int primary key, at timestamptz)",
            "insert into t values (1, '2000-01-01'), (2, now())")  # fmt: skip
    execute(
        source,
        "create server remote foreign data wrapper postgres_fdw "
        f"options (host '{fifteen.socket_dir}', dbname 'remote')",
        "create user mapping for postgres server remote options (user 'postgres')",
        "create foreign table t (id int, at timestamptz) server remote",
    )
    first = sync(source, target, "t", timestamp_column="at", key=["id"])
    assert (first.mode, first.rows_inserted) == ("timestamp", 2)
    execute(fifteen.dsn("remote"), "insert into t values (3, now())", "delete from t where id = 1")
    again = sync(source, target, "t", timestamp_column="at", key=["id"])
    assert (again.rows_read, again.rows_inserted, again.rows_deleted) == (2, 1, 1)
    whole = sync(source, target, "t", into="whole")
    assert whole.mode == "full"
    assert "is a foreign table" in whole.why
    assert sync(source, target, "t", into="whole").rows_deleted == 0
    with pytest.raises(CannotSync, match="is a foreign table and has no xmin"):
        sync(source, target, "t", mode="scan")


def test_citext_outside_the_search_path(fifteen: Server) -> None:
    source, target = fifteen.dsn("source"), fifteen.dsn("target")
    for dsn in (source, target):
        execute(dsn, "create schema ext", "create extension citext schema ext")
    execute(
        source,
        "create table words (word ext.citext primary key, n int)",
        "create domain name as ext.citext",
        "create table names (id name primary key)",
        "insert into words select 'Word' || i, i from generate_series(1, 500) i",
        "insert into names values ('Ann')",
    )
    specs = [TableSpec("words"), TableSpec("names")]
    assert sync_group(source, target, specs).ok
    execute(
        source,
        "update words set word = 'WORD' || n where n < 10",
        "delete from words where word = 'Word20'",
        "update names set id = 'ANN'",
    )
    group = sync_group(source, target, specs)
    assert group.ok, group.failures
    words = group.reports["public.words"]
    assert (words.rows_inserted, words.rows_updated, words.rows_deleted) == (0, 9, 1)
    for query in ("select word::text, n from words order by n", "select id::text from names"):
        assert rows(source, query) == rows(target, query)
    for mode in ("auto", "full"):
        report = sync(source, target, "words", mode=mode, deletes="keys", prove=Proving(0))
        assert not report.changed
    execute(target, "update words set word = 'Word1' where n = 1")  # in another case only
    found = validate(source, target, "words", content=True)
    assert (found.stale_count, found.missing_count, found.extra_count) == (1, 0, 0)
    assert sync(source, target, "words", prove=Proving(0)).rows_updated == 1
    assert validate(source, target, "words", content=True).in_sync


def test_counts_on_fifteen_beside_a_trigger(fifteen: Server) -> None:
    """Its MERGE tells one number, of which the new keys are subtracted."""
    source, target = fifteen.dsn("source"), fifteen.dsn("target")
    for dsn in (source, target):
        execute(dsn, "create table t (id int primary key, x int)")
    execute(
        target,
        """create function skip() returns trigger language plpgsql as
           $$ begin if new.id > 5 then return null; end if; return new; end $$""",
        "create trigger skip before insert on t for each row execute function skip()",
    )
    execute(source, "insert into t select i, i from generate_series(1, 10) i")
    with pytest.raises(CannotSync, match='DISABLE TRIGGER "skip"'):
        sync(source, target, "t")
    execute(target, "alter table t disable trigger skip")
    report = sync(source, target, "t")
    assert (report.rows_inserted, report.rows_updated) == (10, 0)


def test_a_sync_of_a_quiet_source_counts_as_one(fifteen: Server, target: str) -> None:
    """Nothing is written on the source for days, and every sync says that it ran."""
    quiet = fifteen.dsn("source")
    execute(quiet, "create table a (id int primary key)", "create table b (id int primary key)")
    sync_group(quiet, target, [TableSpec("a"), TableSpec("b")])
    modes: set[str] = set()
    for _ in range(5):  # autovacuum may spend an xid, so that the source is not quiet
        execute(
            target, "update replica_platform.mark set synced_at = synced_at - interval '1 hour'"
        )
        group = sync_group(quiet, target, [TableSpec("a"), TableSpec("b")])
        modes = {report.mode for report in group.reports.values()}
        if modes == {"none"}:
            break
    assert modes == {"none"}
    assert max(found.age_s for found in status(target)) < 600
