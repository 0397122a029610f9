"""A standby is read by xmin; promoted, it has another history, which the target follows."""

import time
from collections.abc import Callable

import psycopg
import pytest

from replica_platform.app.embedded import Server
from replica_platform.xmin import Proving, sync, validate
from replica_platform_tests.faults.xmin_servers import own_server, standby_of
from replica_platform_tests.xmin.helpers import execute, rows

QUERY = "select id, x from t order by id"


def catch_up(primary: str, standby: str) -> None:
    """Wait until the standby has replayed all that the primary has written."""
    lsn = rows(primary, "select pg_current_wal_flush_lsn()::text")[0][0]
    for _ in range(500):
        if rows(standby, f"select pg_last_wal_replay_lsn() >= '{lsn}'::pg_lsn")[0][0]:
            return
        time.sleep(0.02)
    raise AssertionError("the standby does not catch up")


@pytest.mark.timeout(120)
def test_read_and_promoted(database: Callable[[str], str]) -> None:
    target = database("standby_target")
    with own_server() as primary:
        execute(
            primary.dsn("src"),
            "create table t (id int primary key, x text)",
            "insert into t select i, 'old' from generate_series(1, 500) i",
        )
        with standby_of(primary) as standby:
            _reads(primary, standby, target)
            _in_conflict(primary, standby, target)
            _promoted(primary, standby, target)


def _reads(primary: Server, standby: Server, target: str) -> None:
    source, replica = primary.dsn("src"), standby.dsn("src")
    catch_up(source, replica)
    assert sync(replica, target, "t").mode == "full"
    with psycopg.connect(source) as slow:
        slow.execute("insert into t values (1001, 'slow')")
        execute(source, "insert into t values (1002, 'fast')", "delete from t where id = 7")
        catch_up(source, replica)
        report = sync(replica, target, "t", prove=Proving(within_s=0))
        assert report.proof is not None
        assert (report.proof.differing, report.proof.whole) == (0, True)
        assert (report.mode, report.rows_inserted, report.rows_deleted) == ("scan", 1, 1)
    catch_up(source, replica)
    assert sync(replica, target, "t").rows_inserted == 1
    assert rows(replica, QUERY) == rows(target, QUERY)
    assert validate(replica, target, "t").in_sync


def _in_conflict(primary: Server, standby: Server, target: str) -> None:
    """Replay removes rows that the read still sees: the copy is continued at a new snapshot."""
    source, replica = primary.dsn("src"), standby.dsn("src")
    execute(
        source,
        "create table big (id int primary key, x text)",
        "insert into big select i, repeat('x', 300) from generate_series(1, 20000) i",
    )
    catch_up(source, replica)
    execute(replica, "alter system set max_standby_streaming_delay = 0", "select pg_reload_conf()")
    disturbed: list[int] = []

    def disturb(done: int, _total: int, _unit: str) -> None:
        if not disturbed and done > 1_000_000:
            disturbed.append(done)
            execute(source, "delete from big where id % 3 = 0", "vacuum big")
            # VACUUM's records wait for a commit, or the WAL writer, before they are sent.
            execute(source, "create table after_vacuum ()")
            catch_up(source, replica)

    report = sync(replica, target, "big", workers=1, batch_bytes=65536, progress=disturb)
    print(f"\nrecovery conflict after {disturbed} bytes; {report.notes}")
    assert disturbed
    assert report.notes[0].startswith("an interrupted copy went on")
    query = "select id, x from big order by id"
    assert rows(source, query) == rows(target, query)


def _promoted(primary: Server, standby: Server, target: str) -> None:
    source, replica = primary.dsn("src"), standby.dsn("src")
    # The standby is cut off: what the primary writes from here on is lost with it.
    execute(replica, "alter system set primary_conninfo = ''", "select pg_reload_conf()")
    while rows(replica, "select count(*) from pg_stat_wal_receiver")[0][0]:
        time.sleep(0.05)
    for i in range(20):
        execute(source, f"insert into t values ({2000 + i}, 'only on the old primary')")
    sync(source, target, "t")
    old_w = rows(target, "select w from replica_platform.mark where target_table = 'public.t'")[0][
        0
    ]
    primary.stop("immediate")
    execute(replica, "select pg_promote(false)")
    while rows(replica, "select pg_is_in_recovery()")[0][0]:
        time.sleep(0.05)
    for i in range(40):
        execute(replica, f"insert into t values ({2010 + i}, 'on the new primary')")
    naive = rows(replica, f"select count(*) from t where xmin::text::bigint >= {old_w}")[0][0]
    report = sync(replica, target, "t")
    print(f"\nby W alone {naive} of the 40 rows of the new primary; the engine: {report.why}")
    assert naive < 40  # the control: their xids were given out again, below W
    assert report.mode == "full"
    assert "another server, timeline or database" in report.why
    assert rows(replica, QUERY) == rows(target, QUERY)
    assert sync(replica, target, "t").mode in ("scan", "none")
    _only_differing_ranges_are_read(replica, target)
    primary.start()


def _only_differing_ranges_are_read(replica: str, target: str) -> None:
    """Nearly all of a large table survives a failover unchanged, and is not moved again."""
    execute(replica, "update big set x = 'after' where id < 3", "delete from big where id = 4")
    report = sync(replica, target, "big")
    print(f"of {report.rows} rows {report.rows_read} were read: {report.why}")
    assert "compared by hashes" in report.why
    assert (report.rows_updated, report.rows_deleted) == (2, 1)
    assert 2 <= report.rows_read < 1000
    query = "select id, x from big order by id"
    assert rows(replica, query) == rows(target, query)
