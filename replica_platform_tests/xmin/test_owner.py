"""A target table belongs to one source table; a sync of another one is refused."""

from collections.abc import Callable, Iterator

import pytest
from dagster.components.core.component_tree import ComponentTree
from pydantic import ValidationError

from replica_platform.app.embedded import Server
from replica_platform.components import XminTables
from replica_platform.components.xmin_tables import TableEntry
from replica_platform.xmin import TableSpec, sync, sync_group, validate
from replica_platform.xmin.errors import CannotSync, TargetTaken, TooManyDeletes
from replica_platform_tests.xmin.helpers import execute, rows

HELD = "select id, x from copy.o order by id"
MARKS = "select source_table, w, snapshot, identity::text from replica_platform.mark"
# A watermark of an earlier version, which knew no name of the source's database.
OLD = "update replica_platform.mark set identity = identity - 'name' - 'former'"
# What a logical restore or a major upgrade leaves: the same names on another server.
RESTORED = """update replica_platform.mark
    set identity = identity || '{"system": "1", "database": 2}'"""


@pytest.fixture
def twins(source: str, target: str) -> None:
    """Two tables `o` in two schemas of one source, with different rows."""
    for schema, first, count in (("t1", 1, 3000), ("t2", 10_000, 5)):
        execute(
            source,
            f"create schema {schema}",
            f"create table {schema}.o (id int primary key, x text)",
            f"insert into {schema}.o select i, '{schema}' "
            f"from generate_series({first}, {first + count - 1}) i",
        )


def test_another_table_of_the_source_is_refused(source: str, target: str, twins: None) -> None:
    sync(source, target, "t1.o", into="copy")
    before = rows(target, HELD), rows(target, MARKS)
    for mode in ("auto", "full", "scan"):
        with pytest.raises(TargetTaken, match=r"copy\.o holds t1\.o .* --take-over"):
            sync(source, target, "t2.o", into="copy", mode=mode)
    assert (rows(target, HELD), rows(target, MARKS)) == before
    assert sync(source, target, "t1.o", into="copy").rows == 3000


def test_a_group_refuses_two_tables_with_one_target(source: str, target: str, twins: None) -> None:
    execute(source, "create table public.p (id int primary key)")
    specs = [TableSpec(f"{schema}.{name}", into="copy")
             for schema, name in (("t1", "o"), ("t2", "o"), ("public", "p"))]  # fmt: skip
    group = sync_group(source, target, specs)
    assert list(group.reports) == ["copy.p"]
    assert list(group.failures) == ["copy.o"]
    assert "t1.o and t2.o both arrive as copy.o" in group.failures["copy.o"]
    assert rows(target, "select to_regclass('copy.o') is null") == [(True,)]
    whole = sync_group(source, target, specs, atomic=True)
    assert not whole.reports
    assert list(whole.failures) == ["copy.o"]


def test_one_table_may_have_two_targets(source: str, target: str, twins: None) -> None:
    specs = [TableSpec("t1.o", into=into) for into in ("copy", "other")]
    group = sync_group(source, target, specs)
    assert {name: report.rows for name, report in group.reports.items()} == {
        "copy.o": 3000,
        "other.o": 3000,
    }
    execute(source, "update t1.o set x = 'new' where id = 1")
    execute(
        target,
        "delete from other.o where id = 7",
        "update replica_platform.mark set rows = 2999 where target_table = 'other.o'",
    )
    again = sync_group(source, target, specs)
    assert (again.reports["copy.o"].mode, again.reports["copy.o"].rows_updated) == ("scan", 1)
    assert "somebody has written" in again.reports["other.o"].why
    assert rows(target, HELD) == rows(target, HELD.replace("copy", "other"))


def test_a_person_may_take_a_target_over(source: str, target: str, twins: None) -> None:
    sync(source, target, "t1.o", into="copy")
    with pytest.raises(CannotSync, match="deletes"):
        sync(source, target, "t2.o", into="copy", take_over=True, deletes="never")
    taken = sync(source, target, "t2.o", into="copy", take_over=True)
    assert (taken.rows_inserted, taken.rows_deleted, taken.rows) == (5, 3000, 5)
    assert "t1.o" in taken.why
    assert rows(target, HELD) == rows(source, "select id, x from t2.o order by id")
    with pytest.raises(TargetTaken, match=r"copy\.o holds t2\.o"):
        sync(source, target, "t1.o", into="copy")
    execute(source, "insert into t2.o values (1, 'new')")
    # The flag changes nothing where the target is the table's own.
    again = sync(source, target, "t2.o", into="copy", take_over=True)
    assert (again.mode, again.rows_inserted) == ("scan", 1)


def test_taking_over_by_timestamp_reads_everything(source: str, target: str) -> None:
    for schema in ("t1", "t2"):
        execute(source, f"create schema {schema}",
                f"create table {schema}.o (id int primary key, at timestamptz)",
                f"insert into {schema}.o values (length('{schema}'), now() - interval '9 days')",
                f"insert into {schema}.o values (right('{schema}', 1)::int * 10, now())",
                )  # fmt: skip
    sync(source, target, "t1.o", into="copy", mode="timestamp", timestamp_column="at")
    with pytest.raises(TargetTaken):
        sync(source, target, "t2.o", into="copy", mode="timestamp", timestamp_column="at")
    sync(source, target, "t2.o", into="copy", mode="timestamp", timestamp_column="at",
         take_over=True)  # fmt: skip
    assert rows(target, "select id from copy.o order by id") == [(2,), (20,)]


def test_another_database_is_refused(
    source: str, target: str, twins: None, database: Callable[[str], str]
) -> None:
    other = database("other")
    execute(
        other,
        "create schema t1",
        "create table t1.o (id int primary key, x text)",
        "insert into t1.o values (1, 'of another database')",
    )
    sync(source, target, "t1.o", into="copy")
    before = rows(target, HELD)
    with pytest.raises(TargetTaken, match=r"of the database xmin_source"):
        sync(other, target, "t1.o", into="copy")
    with pytest.raises(TargetTaken, match=r"of the database xmin_source"):
        validate(other, target, "t1.o", into="copy")
    execute(target, OLD)  # the name is not known, but its database is still there
    with pytest.raises(TargetTaken, match=r"of the database xmin_source"):
        sync(other, target, "t1.o", into="copy")
    assert rows(target, HELD) == before


def test_validate_refuses_another_table(source: str, target: str, twins: None) -> None:
    sync(source, target, "t1.o", into="copy")
    assert validate(source, target, "t1.o", into="copy").in_sync
    with pytest.raises(TargetTaken, match=r"copy\.o holds t1\.o"):
        validate(source, target, "t2.o", into="copy")


def test_an_older_watermark_continues(source: str, target: str, twins: None) -> None:
    sync(source, target, "t1.o", into="copy")
    execute(target, OLD)
    execute(source, "update t1.o set x = 'new' where id = 1")
    report = sync(source, target, "t1.o", into="copy")
    assert (report.mode, report.rows_read) == ("scan", 1)
    assert rows(target, "select identity ->> 'name' from replica_platform.mark") == [
        ("xmin_source",)
    ]


def test_a_renamed_database_continues(source: str, target: str, twins: None) -> None:
    sync(source, target, "t1.o", into="copy")
    renamed = """identity || '{"name": "before"}'"""
    execute(target, f"update replica_platform.mark set identity = {renamed}")
    assert sync(source, target, "t1.o", into="copy").mode in ("scan", "none")


@pytest.mark.parametrize("old", [False, True])
def test_a_restored_server_is_verified_and_followed(
    old: bool, source: str, target: str, twins: None
) -> None:
    """Another system identifier with the same names is a restore and is followed."""
    sync(source, target, "t1.o", into="copy")
    execute(target, RESTORED, *([OLD] if old else []))
    execute(source, "update t1.o set x = 'new' where id = 1", "delete from t1.o where id = 2")
    report = sync(source, target, "t1.o", into="copy")
    assert "compared by hashes" in report.why
    assert (report.rows_updated, report.rows_deleted) == (1, 1)
    assert rows(target, HELD) == rows(source, "select id, x from t1.o order by id")
    assert sync(source, target, "t1.o", into="copy").mode in ("scan", "none")


def test_a_restored_small_table_is_not_emptied(source: str, target: str, twins: None) -> None:
    """Small tables have no limit on deletes, except after a change of the server."""
    sync(source, target, "t2.o", into="copy")
    execute(target, RESTORED)
    execute(source, "delete from t2.o where id > 10001")
    with pytest.raises(TooManyDeletes, match=r"3 of 5 rows of copy\.o"):
        sync(source, target, "t2.o", into="copy")
    assert rows(target, "select count(*) from copy.o") == [(5,)]
    assert sync(source, target, "t2.o", into="copy", max_delete_fraction=1).rows_deleted == 3


def test_two_servers_in_turn_are_refused(source: str, target: str, twins: None) -> None:
    """A restore replaces the old server; one that comes back is one of two sources."""
    sync(source, target, "t1.o", into="copy")

    execute(target, RESTORED)
    sync(source, target, "t1.o", into="copy")
    # The watermark as it is once another server has followed the first.
    execute(target, """update replica_platform.mark set identity = identity || jsonb_build_object(
            'system', '3', 'former', jsonb_build_array(
            (identity ->> 'system') || '/' || (identity ->> 'database') || '/' ||
            (fingerprint ->> 'oid')))""")  # fmt: skip
    with pytest.raises(TargetTaken, match="from this server before, and from another one since"):
        sync(source, target, "t1.o", into="copy")
    assert sync(source, target, "t1.o", into="copy", take_over=True).rows == 3000
    assert sync(source, target, "t1.o", into="copy").mode in ("scan", "none")


def test_a_former_server_is_remembered(source: str, target: str, twins: None) -> None:
    sync(source, target, "t1.o", into="copy")
    execute(target, RESTORED)
    oid = rows(source, "select 't1.o'::regclass::oid::text")[0][0]
    sync(source, target, "t1.o", into="copy")
    former = "select identity -> 'former' from replica_platform.mark"
    assert rows(target, former) == [([f"1/2/{oid}"],)]
    execute(source, "update t1.o set x = 'new' where id = 1")
    sync(source, target, "t1.o", into="copy")
    assert rows(target, former) == [([f"1/2/{oid}"],)]


def test_a_replaced_target_keeps_its_owner(source: str, target: str, twins: None) -> None:
    """A restored target has other oids than its watermarks say; they still name the owner."""
    sync(source, target, "t1.o", into="copy")
    execute(target, "create table copy.n as select * from copy.o", "drop table copy.o",
            "alter table copy.n rename to o")  # fmt: skip
    with pytest.raises(TargetTaken):
        sync(source, target, "t2.o", into="copy")
    execute(target, "drop table copy.o")  # which frees the name
    assert sync(source, target, "t2.o", into="copy").rows == 5


def test_the_sync_s_own_schema_is_no_target(source: str, target: str) -> None:
    execute(source, "create table mark (id int primary key)")
    with pytest.raises(CannotSync, match="replica_platform"):
        sync(source, target, "mark", into="replica_platform")


def test_a_bad_name_does_not_stop_the_others(source: str, target: str) -> None:
    execute(source, "create table a (id int primary key)")
    group = sync_group(source, target, [TableSpec("a b c"), TableSpec("a")])
    assert list(group.reports) == ["public.a"]
    assert list(group.failures) == ["a b c"]


def test_the_component_refuses_entries_with_one_target() -> None:
    tables = [TableEntry(table="t1.o"), TableEntry(table="t2.O"), TableEntry(table="t1.p")]
    with pytest.raises(ValidationError, match=r"t1\.o and t2\.O .* copy\.o"):
        XminTables(tables=tables, into="copy")
    kept = XminTables(tables=tables[1:], into="copy")
    assert kept.build_defs(ComponentTree.for_test().load_context).assets


@pytest.fixture
def restored(server: Server) -> Iterator[str]:
    """The DSN of a database `source` on another server than `sixteen`'s of the same name."""
    execute(server.dsn(), "create database source")
    yield server.dsn("source")
    execute(server.dsn(), "drop database source with (force)")


def test_a_restored_server_and_the_old_one_again(
    target: str, sixteen: Server, restored: str
) -> None:
    """The same rows under other xids and another system identifier; then the old server again."""
    old = sixteen.dsn("source")
    execute(restored, "select count(pg_current_xact_id()) from generate_series(1, 3)")
    for dsn in (old, restored):
        execute(dsn, "drop table if exists o", "create table o (id int primary key, x text)",
                "insert into o select i, 'x' from generate_series(1, 2000) i")  # fmt: skip
    sync(old, target, "o", into="copy")
    execute(restored, "update o set x = 'new' where id = 1", "delete from o where id = 2")
    report = sync(restored, target, "o", into="copy")
    assert "another server" in report.why
    assert (report.mode, report.rows_read) == ("full", 1999)
    assert (report.rows_inserted, report.rows_deleted) == (0, 1)
    assert rows(target, HELD) == rows(restored, "select id, x from o order by id")
    assert sync(restored, target, "o", into="copy").mode in ("scan", "none")
    with pytest.raises(TargetTaken, match="from this server before"):
        sync(old, target, "o", into="copy")
    assert sync(old, target, "o", into="copy", take_over=True).rows == 2000
    with pytest.raises(TargetTaken, match="from this server before"):
        sync(restored, target, "o", into="copy")
