"""Parts of a sync by blocks, each on a real server: start points, history, summaries, waiting."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from replica_platform.app.embedded import Server, running
from replica_platform.xmin.blocks import history
from replica_platform.xmin.blocks.choice import capability
from replica_platform.xmin.blocks.history import History
from replica_platform.xmin.blocks.summaries import LeafBlocks, NoSummaries, read_changes
from replica_platform.xmin.blocks.waiting import wait_for_summaries
from replica_platform.xmin.names import TableName
from replica_platform.xmin.source.snapshot import Identity, SourceSnapshot
from replica_platform.xmin.source.start_point import (
    StartPoint,
    format_lsn,
    parse_lsn,
    read_start_point,
)
from replica_platform.xmin.target import watermark
from replica_platform_tests.xmin.helpers import execute, rows

ROWS = "insert into t select i, repeat('x', 400) from generate_series(1, 2000) i"


@contextmanager
def snapshot(source: str, table: str = "t") -> Iterator[SourceSnapshot]:
    with SourceSnapshot(source) as session:
        session.begin([TableName("public", table)])
        yield session


def changed(source: str, since: StartPoint, table: str = "t") -> dict[str, LeafBlocks]:
    """Return the changed blocks of each leaf of a table, by the leaf's name."""
    with snapshot(source, table) as session:
        timeline, lsn = session.snapshot.identity.timeline, session.snapshot.lsn
        waited = wait_for_summaries(
            session.connection, source, timeline, lsn, checkpoint=True, most_s=30
        )
        assert waited.reached
        leaves = session.tables[TableName("public", table)].leaves
        found = read_changes(
            session.connection, timeline, since.lsn, lsn, [leaf.oid for leaf in leaves]
        )
        return {leaf.name.table: found.of(leaf, since.lsn) for leaf in leaves}


def now(source: str) -> StartPoint:
    """Return the start point after a checkpoint, so that no summary tells of earlier changes."""
    execute(source, "checkpoint")
    with psycopg.connect(source, autocommit=True) as connection:
        return read_start_point(connection)


def block(source: str, key: int) -> int:
    return int(rows(source, f"select (ctid::text::point)[0]::bigint from t where id = {key}")[0][0])


def test_a_position_is_printed_and_read() -> None:
    assert parse_lsn("1/A2") == (1 << 32) + 0xA2
    assert format_lsn(parse_lsn("AB/C0000000")) == "AB/C0000000"


def test_the_next_xid_is_above_a_transaction_that_runs(source: str) -> None:
    execute(source, "create table t (id int primary key)")
    with psycopg.connect(source) as runs:
        running_xid = runs.execute("select pg_current_xact_id()::text::bigint").fetchone()
        assert running_xid
        # A snapshot's xmax is not above it: no younger transaction has ended.
        upper = rows(source, "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
        assert upper[0][0] <= running_xid[0]
        assert now(source).next_xid > running_xid[0]
        # Which costs no xid; autovacuum may take one between two looks, but not between all.
        assert any(now(source).next_xid == now(source).next_xid for _ in range(20))


def test_changed_blocks_are_named_and_no_others(source: str) -> None:
    execute(source, "create table t (id int primary key, v text)", ROWS)
    since = now(source)
    execute(source, "delete from t where id = 1000", "update t set v = 'y' where id = 1")
    found = changed(source, since)["t"]
    assert found.tail is None
    # The block of the deleted row, that of the old version, and that of the new one.
    gone = rows(source, "select 1 from t where id = 999")
    assert gone
    assert set(found.blocks) == {block(source, 999), 0, block(source, 1)}


def test_an_aborted_change_counts_and_an_earlier_one_does_not(source: str) -> None:
    execute(source, "create table t (id int primary key, v text)", ROWS)
    execute(source, "delete from t where id = 1500")
    since = now(source)
    with psycopg.connect(source) as connection:
        connection.execute("delete from t where id = 1000")
        connection.rollback()
    assert changed(source, since)["t"].blocks == [block(source, 1000)]


def test_all_blocks_past_a_truncation_count_as_changed(source: str) -> None:
    execute(source, "create table t (id int primary key, v text)", ROWS)
    since = now(source)
    end = block(source, 1000)
    execute(source, "delete from t where id > 1000", "vacuum (truncate) t")
    found = changed(source, since)["t"]
    assert found.tail == end + 1
    assert found.listed(end + 3)[-2:] == [end + 1, end + 2]
    # VACUUM forgets the deletes past the end: only the limit tells of them.
    assert all(number <= end for number in found.blocks)


def test_tables_of_one_file_number_in_two_databases_are_kept_apart(
    source: str, target: str
) -> None:
    """`target` serves as another database of the same server."""
    for dsn in (source, target):
        execute(dsn, "create table t (id int primary key, v text)", ROWS)
    number = rows(source, "select pg_relation_filenode('t')")[0][0]
    since = now(source)
    # The other database's table takes this one's number as its own.
    with psycopg.connect(target, autocommit=True) as other:
        other.execute("update t set v = 'y'")
    execute(source, "delete from t where id = 1")
    found = changed(source, since)["t"]
    assert found.blocks == [0], number


def test_a_database_that_is_moved_is_followed(folder: Path) -> None:
    """Its files keep their numbers, so that changes before the move are under another name."""
    with running(folder / "pg") as server:
        space = folder / "space"
        space.mkdir()
        _give(space, server)
        execute(
            server.dsn(),
            "create database moved",
            f"create tablespace other location '{space}'",
        )
        dsn = server.dsn("moved")
        execute(dsn, "create table t (id int primary key, v text)", ROWS)
        since = now(dsn)
        execute(dsn, "delete from t where id = 1000")
        execute(server.dsn(), "alter database moved set tablespace other")
        execute(dsn, "delete from t where id = 1")
        assert changed(dsn, since)["t"].blocks == [0, block(dsn, 999)]


def _give(folder: Path, server: Server) -> None:
    import os

    owner = server.folder.stat()
    os.chown(folder, owner.st_uid, owner.st_gid)
    folder.parent.chmod(0o755)


def test_a_gap_is_refused(folder: Path) -> None:
    with running(folder / "pg") as server:
        dsn = server.dsn()
        execute(dsn, "create table t (id int primary key, v text)", ROWS, "checkpoint")
        since = now(dsn)
        for key in range(1, 4):
            execute(dsn, f"delete from t where id = {key}")
            changed(dsn, since)
        files = sorted((server.folder / "pg_wal" / "summaries").glob("0*.summary"))
        lost = files[-2].rename(folder / "lost")
        with pytest.raises(NoSummaries, match="wal_summary_keep_time"):
            changed(dsn, since)
        lost.rename(files[-2])
        assert changed(dsn, since)["t"].blocks == [0]
        files[-2].write_bytes(b"")
        with pytest.raises(NoSummaries, match="cannot be read"):
            changed(dsn, since)


def test_a_server_says_what_it_lacks(sixteen: Server, folder: Path) -> None:
    with psycopg.connect(sixteen.dsn(), autocommit=True) as old:
        assert "Postgres 16" in capability(old).obstacle
    with running(folder / "pg") as server:
        execute(server.dsn(), "create role plain login")
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            assert capability(connection).obstacle == ""
            assert capability(connection).checkpoint
            connection.execute("alter system set summarize_wal = off")
            connection.execute("select pg_reload_conf()")
        plain = server.dsn().replace("postgres@", "plain@")
        with psycopg.connect(plain, autocommit=True) as connection:
            told = capability(connection)
            assert "ALTER SYSTEM SET summarize_wal = on" in told.obstacle
        # The cure in the sentence.
        execute(server.dsn(), "alter system set summarize_wal = on", "select pg_reload_conf()")
        with psycopg.connect(plain, autocommit=True) as connection:
            told = capability(connection)
            assert (told.obstacle, told.checkpoint, told.role) == ("", False, "plain")
        execute(server.dsn(), "grant pg_checkpoint to plain")
        with psycopg.connect(plain, autocommit=True) as connection:
            assert capability(connection).checkpoint


def test_waiting_ends_at_its_limit_and_a_checkpoint_shortens_it(source: str) -> None:
    execute(source, "create table t (id int primary key, v text)", ROWS)
    with snapshot(source) as session:
        timeline, lsn = session.snapshot.identity.timeline, session.snapshot.lsn
        ask = (session.connection, source, timeline, lsn)
        waited = wait_for_summaries(*ask, checkpoint=False, most_s=0.2)
        assert not waited.reached
        assert waited.seconds >= 0.2
        assert not waited.checkpoint
        waited = wait_for_summaries(*ask, checkpoint=True, most_s=30)
        assert waited.reached
        assert waited.checkpoint
        again = wait_for_summaries(*ask, checkpoint=True, most_s=30)
        assert (again.reached, again.checkpoint) == (True, False)


def test_the_history_starts_at_the_newest_point_below_w() -> None:
    points = [StartPoint(100, 10), StartPoint(200, 20), StartPoint(300, 20), StartPoint(400, 30)]
    known = History(points)
    assert known.before(9) is None
    assert known.before(10) == StartPoint(100, 10)
    assert known.before(29) == StartPoint(300, 20)
    assert known.before(99) == StartPoint(400, 30)


def test_the_history_is_kept_per_source_and_pruned(target: str) -> None:
    one, other = Identity("1", 1, 5), Identity("1", 2, 5)
    with psycopg.connect(target, autocommit=True) as connection:
        watermark.prepare(connection)
        assert history.read(connection, one) == History([])
        for w, table in ((15, "old"), (30, "new")):
            connection.execute(
                "insert into replica_platform.mark (target_table, source_table, mode, w, next, "
                "snapshot, delivered, complete, identity, fingerprint, leaves, target_oid, deletes)"
                " values (%s, 'a', 'scan', %s, %s, '', '{}', true, "
                "'{\"system\": \"1\", \"timeline\": 1, \"database\": 5}', '{}', '{}', 1, 'auto')",
                [table, w, w],
            )
        points = [StartPoint(lsn, lsn // 10) for lsn in range(100, 500, 10)]
        history.write(connection, one, points)
        history.write(connection, other, points[:1])
        history.prune(connection, one, 40)
        kept = [point.next_xid for point in history.read(connection, one).points]
        # Of each W the newest point, and all that a later W may need.
        assert kept == [15, 30, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49]
        assert history.read(connection, other).points == []  # no watermark is of that timeline
