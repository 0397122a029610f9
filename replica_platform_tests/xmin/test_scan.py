"""A later sync moves what changed, and nothing else."""

import psycopg
import pytest

from replica_platform.embedded import Server
from replica_platform.xmin import TableSpec, sync, sync_group
from replica_platform_tests.xmin.helpers import execute, rows


@pytest.fixture
def person(source: str, target: str) -> None:
    execute(
        source,
        "create table person (id int primary key, name text)",
        "insert into person select i, 'n' || i from generate_series(1, 1000) i",
    )
    sync(source, target, "person")


def test_inserts_updates_and_deletes(source: str, target: str, person: None) -> None:
    execute(
        source,
        "insert into person values (2000, 'new')",
        "update person set name = 'other' where id = 5",
        "delete from person where id in (7, 8)",
        "update person set id = 3000 where id = 9",
    )

    report = sync(source, target, "person")

    assert report.mode == "scan"
    assert (report.rows_read, report.rows_inserted, report.rows_updated, report.rows_deleted) == (
        3, 2, 1, 3,
    )  # fmt: skip
    query = "select * from person order by id"
    assert rows(source, query) == rows(target, "select id, name from person order by id")
    assert report.rows == 999


def test_an_idle_table_moves_nothing(source: str, target: str, person: None) -> None:
    report = sync(source, target, "person")
    assert (report.rows_read, report.bytes, report.changed) == (0, 0, False)


def test_a_transaction_that_commits_late_is_not_lost(
    source: str, target: str, person: None
) -> None:
    with psycopg.connect(source) as slow:
        slow.execute("insert into person values (5000, 'slow')")
        execute(source, "insert into person values (5001, 'fast')")
        first = sync(source, target, "person")
        assert first.rows_inserted == 1
        assert first.lag_xids >= 2
        again = sync(source, target, "person")
        assert again.rows_read == 0  # 5001 lies above W but has been delivered
        assert f"pid {slow.info.backend_pid}" in again.notes[0]
        assert "holds W back" in again.notes[0]
    last = sync(source, target, "person")
    assert (last.rows_read, last.rows_inserted) == (1, 1)
    assert rows(target, "select id from person where id >= 5000 order by 1") == [(5000,), (5001,)]


def test_an_idle_source_is_not_read_at_all(source: str, target: str, sixteen: Server) -> None:
    """On another server than the target's: there, nobody's commits are our own."""
    execute(
        source,
        "create table a (id int primary key)",
        "create table b (id int primary key)",
        "insert into a select generate_series(1, 100)",
    )
    elsewhere, specs = sixteen.dsn("target"), [TableSpec("a", into="i"), TableSpec("b", into="i")]
    sync_group(source, elsewhere, specs)
    # An autovacuum may use an xid in between, hence three looks.
    groups = [sync_group(source, elsewhere, specs) for _ in range(3)]
    assert "none" in {group.reports["a"].mode for group in groups}
    execute(source, "insert into b values (1)")
    last = sync_group(source, elsewhere, specs)
    assert (last.reports["b"].mode, last.reports["b"].rows_inserted) == ("scan", 1)
