"""A later sync moves the changed rows and no others."""

from dataclasses import replace

import psycopg
import pytest
from psycopg import sql

from replica_platform.app.embedded import Server
from replica_platform.xmin import TableSpec, sync, sync_group
from replica_platform.xmin.copy.ranges import full_xid, leaf_ranges
from replica_platform.xmin.names import TableName
from replica_platform.xmin.source.catalog import Leaf
from replica_platform.xmin.source.snapshot import Identity, Snapshot
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
        assert again.rows_read == 0  # 5001 is above W but has been delivered
        assert f"pid {slow.info.backend_pid}" in again.notes[0]
        assert "holds W back" in again.notes[0]
    last = sync(source, target, "person")
    assert (last.rows_read, last.rows_inserted) == (1, 1)
    assert rows(target, "select id from person where id >= 5000 order by 1") == [(5000,), (5001,)]


def test_an_idle_source_is_not_read_at_all(source: str, target: str, sixteen: Server) -> None:
    """On another server than the target's, where no commit is the sync's."""
    execute(
        source,
        "create table a (id int primary key)",
        "create table b (id int primary key)",
        "insert into a select generate_series(1, 100)",
    )
    elsewhere, specs = sixteen.dsn("target"), [TableSpec("a", into="i"), TableSpec("b", into="i")]
    sync_group(source, elsewhere, specs)
    # An autovacuum may use an xid in between, hence three syncs.
    groups = [sync_group(source, elsewhere, specs) for _ in range(3)]
    assert "none" in {group.reports["i.a"].mode for group in groups}
    execute(source, "insert into b values (1)")
    last = sync_group(source, elsewhere, specs)
    assert (last.reports["i.b"].mode, last.reports["i.b"].rows_inserted) == ("scan", 1)


def test_rows_that_move_during_the_read_are_not_lost(source: str, target: str) -> None:
    """Ranges share one snapshot; pages by LIMIT and OFFSET lose rows that move between them."""
    execute(
        source,
        "create table t (id int primary key, x text)",
        "insert into t select i, repeat('x', 300) from generate_series(1, 3000) i",
    )
    pages: set[int] = set()
    moved: list[int] = []

    def disturb(done: int, _total: int, _unit: str) -> None:
        if not moved:
            moved.append(done)
            pages.update(key for (key,) in rows(source, "select id from t limit 1500"))
            execute(
                source,
                "delete from t where id <= 500",
                "update t set x = '' where id % 3 = 0",
                "vacuum t",
                "insert into t select i, 'new' from generate_series(5001, 5400) i",
            )
            page = rows(source, "select id from t limit 1500 offset 1500")
            pages.update(key for (key,) in page)

    first = sync(source, target, "t", workers=1, batch_bytes=65536, progress=disturb)
    assert moved
    assert first.rows_inserted == 3000  # as it was at the snapshot
    live = {key for (key,) in rows(source, "select id from t")}
    assert live - pages  # the control
    sync(source, target, "t")
    query = "select id, x from t order by id"
    assert rows(source, query) == rows(target, query)


def test_ranges_cover_the_table_and_are_equal() -> None:
    leaf = Leaf(1, TableName("public", "t"), 1, 30_001, "p", True)
    for blocks, streams in [(8192, 2), (8192, 3), (100_000, 2), (100_000, 1), (1, 7), (30_001, 4)]:
        cut = list(leaf_ranges(leaf, blocks, streams))
        assert cut[0].first is None and cut[-1].last is None
        assert [one.last for one in cut[:-1]] == [one.first for one in cut[1:]]
        sizes = [(p.last or leaf.blocks) - (p.first or 0) for p in cut]
        assert max(sizes) <= blocks
        assert max(sizes) - min(sizes) <= len(cut)
        if 1 < len(cut) < 1000:
            assert len(cut) % streams == 0
    assert len(list(leaf_ranges(replace(leaf, blocks=0), 8192, 2))) == 1


def test_full_xids_keep_their_epoch(source: str) -> None:
    """Xids 0 to 2 stand for no transaction; any other is the newest that has its low 32 bits."""
    snapshot = Snapshot("", 0, (5 << 32) + 100, None, "", Identity("", 1, 1))
    seen = full_xid(snapshot, sql.SQL("x")).as_string()
    found = rows(
        source,
        f"select x::text, {seen} from unnest('{{0,2,3,99,101,4294967295}}'::xid[]) x",
    )
    old = 4 << 32
    assert found == [
        ("0", 0), ("2", 2), ("3", (5 << 32) + 3), ("99", (5 << 32) + 99), ("101", old + 101),
        ("4294967295", old + 4294967295),
    ]  # fmt: skip
