"""Partitioned tables are read leaf by leaf: attached rows arrive, detached ones are deleted."""

import psycopg
import pytest

from replica_platform.xmin import sync, validate
from replica_platform_tests.xmin.helpers import execute, rows


@pytest.fixture
def parted(source: str, target: str) -> None:
    execute(
        source,
        "create table p (id int primary key, x text) partition by range (id)",
        "create table p0 partition of p for values from (0) to (10)",
        "create table p1 partition of p for values from (10) to (20) partition by range (id)",
        "create table p1a partition of p1 for values from (10) to (15)",
        "insert into p values (1, 'a'), (11, 'b')",
        # The columns in another order, the rows older than the ATTACH.
        "create table late (x text, gone int, id int not null)",
        "alter table late drop column gone",
        "insert into late select 'l' || i, i from generate_series(20, 24) i",
    )
    assert sync(source, target, "p").rows == 2


QUERY = "select id, x from p order by id"


def test_an_attached_leaf_is_read_whole(source: str, target: str, parted: None) -> None:
    sync(source, target, "p")
    execute(source, "alter table p attach partition late for values from (20) to (30)")
    report = sync(source, target, "p")
    assert report.mode == "scan"
    assert "1 leaf table(s) are new and are read whole" in report.why
    assert report.rows_inserted == 5
    assert rows(source, QUERY) == rows(target, QUERY)


def test_a_detached_leaf_is_deleted_and_comes_back(source: str, target: str, parted: None) -> None:
    execute(source, "alter table p detach partition p0", "insert into p values (12, 'c')")
    report = sync(source, target, "p")
    assert (report.rows_inserted, report.rows_deleted) == (1, 1)
    assert rows(source, QUERY) == rows(target, QUERY)
    execute(source, "alter table p attach partition p0 for values from (0) to (10)")
    assert sync(source, target, "p").rows_inserted == 1
    assert validate(source, target, "p").in_sync


def test_a_row_that_moves_to_another_leaf_is_not_deleted(
    source: str, target: str, parted: None
) -> None:
    execute(source, "update p set id = 13 where id = 1", "update p set x = 'd' where id = 11")
    sync(source, target, "p")
    assert rows(source, QUERY) == rows(target, QUERY)


def test_truncate_vacuum_full_and_cluster(source: str, target: str, parted: None) -> None:
    execute(source, "vacuum full p0", "cluster p0 using p0_pkey")
    assert sync(source, target, "p").rows_read == 0  # xmin survives both
    execute(source, "truncate p0")
    assert sync(source, target, "p").rows_deleted == 1
    assert rows(source, QUERY) == rows(target, QUERY)


def test_a_new_column_has_the_leaves_constant(source: str, target: str, parted: None) -> None:
    """The parent has no rows, and so not the value that old ones have."""
    execute(
        source,
        "alter table p add column n int not null default 7",
        "create table p2 partition of p for values from (20) to (30)",
        "insert into p values (21, 'c', 8)",
    )
    report = sync(source, target, "p")
    assert (report.mode, report.rows_read) == ("scan", 1)
    query = "select id, x, n from p order by id"
    assert rows(source, query) == rows(target, query)
    assert rows(target, "select n from p where id = 1") == [(7,)]


def test_leaves_that_differ_in_a_new_column_are_read_whole(
    source: str, target: str, parted: None
) -> None:
    execute(
        source,
        "alter table p detach partition p0",
        "alter table p add column n int default 7",
        "alter table p0 add column n int default 9",
        "alter table p attach partition p0 for values from (0) to (10)",
    )
    report = sync(source, target, "p")
    assert "different values of the new column n" in report.why
    query = "select id, x, n from p order by id"
    assert rows(source, query) == rows(target, query) == [(1, "a", 9), (11, "b", 7)]


@pytest.mark.parametrize("leaves", [["p0"], ["p0", "p1a"]])
def test_a_new_column_of_rewritten_leaves_is_read_whole(
    source: str, target: str, parted: None, leaves: list[str]
) -> None:
    execute(source, "alter table p add column n int default 7")
    execute(source, *(f"vacuum full {leaf}" for leaf in leaves))
    assert sync(source, target, "p").mode == "full"
    assert rows(target, "select distinct n from p") == [(7,)]


@pytest.mark.parametrize("default", ["", "default 'anew'"])
def test_a_leaf_that_was_changed_while_detached_is_read_whole(
    source: str, target: str, parted: None, default: str
) -> None:
    """Its rows keep their xmin, and have other values in a column that the parent has as before."""
    execute(
        source,
        "alter table p detach partition p0",
        "alter table p0 drop column x",
        f"alter table p0 add column x text {default}",
        "alter table p attach partition p0 for values from (0) to (10)",
    )
    report = sync(source, target, "p")
    assert "Column x of public.p0 is another one than before" in report.why
    assert rows(source, QUERY) == rows(target, QUERY)
    assert sync(source, target, "p").mode == "scan"


def test_a_leafs_own_virtual_column_is_followed(source: str, target: str) -> None:
    execute(
        source,
        "create table g (id int primary key, v int generated always as (id * 2) virtual) "
        "partition by range (id)",
        "create table g0 partition of g for values from (0) to (10)",
        "insert into g values (1)",
    )
    sync(source, target, "g")
    execute(source, "alter table g0 alter v set expression as (id * 100)")
    sync(source, target, "g")
    assert rows(target, "select id, v from g") == [(1, 100)]


def test_a_leaf_takes_anothers_place_with_rows_of_the_same_transaction(
    source: str, target: str, parted: None
) -> None:
    """Key and xmin are those of the target's row; the content is not."""
    with psycopg.connect(source) as one:
        one.execute("insert into p values (2, 'old')")
        one.execute("create table other (id int primary key, x text)")
        one.execute("insert into other values (1, 'a'), (2, 'new')")
    sync(source, target, "p")
    execute(
        source,
        "alter table p detach partition p0",
        "alter table p attach partition other for values from (0) to (10)",
    )
    sync(source, target, "p")
    assert rows(source, QUERY) == rows(target, QUERY)


# What pg_repack does: the rows are copied into another file under new xmins, which then becomes
# the table's.
SWAP = """
with pairs (one, other) as (values ('t'::regclass, 't2'::regclass), ('t_pkey', 't2_pkey')),
files as (select c.oid, case when c.oid = p.one then b.relfilenode else a.relfilenode end as file
          from pairs p join pg_class a on a.oid = p.one join pg_class b on b.oid = p.other
          join pg_class c on c.oid in (p.one, p.other))
update pg_class c set relfilenode = f.file from files f where c.oid = f.oid
"""


def test_a_table_whose_rows_were_copied_into_another_file_is_in_sync_again(
    source: str, target: str
) -> None:
    """A sync between the copy and the swap leaves a W above the xmin of every row."""
    execute(
        source,
        "create table t (id int primary key, x int)",
        "insert into t select i, i from generate_series(1, 5000) i",
        "create table t2 (like t including all)",
    )
    sync(source, target, "t")
    execute(source, "insert into t2 select * from t", "vacuum t2")
    execute(source, "create table other (id int)", "insert into other values (1)")
    assert sync(source, target, "t").mode == "scan"
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute("set allow_system_table_mods = on")
        connection.execute(SWAP)
    execute(source, "update t set x = 0 where id = 7", "delete from t where id = 8")
    report = sync(source, target, "t")
    assert "rewritten" in report.why
    assert report.rows_deleted == 1
    found = validate(source, target, "t")
    assert (found.in_sync, found.stale_count) == (True, 0)
    assert found.score > 0.99
    assert rows(source, "select * from t order by 1") == rows(
        target, "select id, x from t order by 1"
    )


def test_a_table_that_was_vacuumed_full_is_compared_and_not_read(source: str, target: str) -> None:
    execute(
        source,
        "create table t (id int primary key, x int)",
        "insert into t select i, i from generate_series(1, 5000) i",
    )
    sync(source, target, "t")
    execute(source, "vacuum full t", "update t set x = 0 where id = 7")
    report = sync(source, target, "t")
    assert report.rows_read < 500
    assert report.rows_updated == 1
    assert validate(source, target, "t").in_sync
