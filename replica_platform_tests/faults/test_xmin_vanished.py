"""Servers end the sessions of a sync that has vanished, and keep those of one that waits long."""

import os
import signal
import socket
import sys
import time
from contextlib import suppress

import psycopg
import pytest

from replica_platform.xmin import SourceInterrupted, sync
from replica_platform.xmin.names import TableName
from replica_platform.xmin.source.snapshot import SourceSnapshot
from replica_platform_tests.faults.xmin_servers import own_server
from replica_platform_tests.xmin.helpers import execute, rows
from replica_platform_tests.xmin.test_interruptions import locked_for, setting

SESSION = sys.modules["replica_platform.xmin.session"]
SESSIONS = """select count(*) from pg_stat_activity
    where application_name = 'replica_platform xmin' and datname = current_database()"""


def limits(monkeypatch: pytest.MonkeyPatch, timeout_s: float, beat_s: float) -> None:
    monkeypatch.setattr(SESSION, "IDLE_TIMEOUT_S", timeout_s, raising=False)
    monkeypatch.setattr(SESSION, "BEAT_S", beat_s, raising=False)


def filled(source: str) -> None:
    execute(source, "create table t (id int primary key, x int)", "insert into t values (1, 1)")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_client_that_has_stopped_releases_the_source(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It still acknowledges packets, so no keepalive notices it."""
    filled(source)
    limits(monkeypatch, 1.0, 0.2)
    child = os.fork()
    if child == 0:
        with suppress(BaseException), SourceSnapshot(source) as snapshot:
            snapshot.begin([TableName("public", "t")])
            time.sleep(60)
        os._exit(0)
    try:
        until = time.monotonic() + 10
        while rows(source, SESSIONS) == [(0,)] and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(2)
        assert rows(source, SESSIONS) == [(1,)]  # it lives, and is idle for longer than allowed
        os.kill(child, signal.SIGSTOP)
        until = time.monotonic() + 10
        while rows(source, SESSIONS) != [(0,)] and time.monotonic() < until:
            time.sleep(0.05)
        assert rows(source, SESSIONS) == [(0,)]
        execute(source, "set lock_timeout = '1s'; alter table t add column y int")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_sync_that_waits_longer_than_the_timeout_is_not_ended(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(source)
    sync(source, target, "t")
    limits(monkeypatch, 0.5, 0.1)
    execute(source, "update t set x = 2", "delete from t")
    with locked_for(target, "t", 2):
        assert sync(source, target, "t", deletes="keys").rows_deleted == 1


def test_without_a_heartbeat_such_a_sync_is_ended(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""
    filled(source)
    execute(source, "insert into t values (2, 2)")
    sync(source, target, "t")
    limits(monkeypatch, 0.5, 1000)
    execute(source, "update t set x = 2 where id = 1", "delete from t where id = 2")
    with locked_for(target, "t", 2), pytest.raises(SourceInterrupted, match="idle-in-transaction"):
        sync(source, target, "t", deletes="keys")


@pytest.mark.parametrize(
    ("theirs", "ours"), [("0", "10min"), ("4min", "4min"), ("1h", "10min"), ("5s", "10min")]
)
def test_the_administrator_s_timeout_is_kept_where_a_sync_can_live_with_it(
    theirs: str, ours: str, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = "idle_in_transaction_session_timeout"
    caplog.set_level("INFO")
    with setting(source, name, theirs), SourceSnapshot(source) as snapshot:
        found = snapshot.connection.execute(f"show {name}").fetchone()
    assert found == (ours,)
    assert (f"{name} of the source is 5000 ms" in caplog.text) == (theirs == "5s")


@pytest.mark.timeout(120)
def test_a_server_notices_a_client_whose_host_is_gone() -> None:
    query = "select current_setting('tcp_keepalives_idle'), current_setting('tcp_keepalives_count')"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with own_server() as server:
        with (server.folder / "pg_hba.conf").open("a") as allowed:
            allowed.write("\nhost all all 127.0.0.1/32 trust\n")
        execute(server.dsn(), f"alter system set port = {port}")
        execute(server.dsn(), "alter system set listen_addresses = '127.0.0.1'")
        server.stop()
        server.start()
        dsn = f"postgresql://postgres@127.0.0.1:{port}/src"
        for open_session in (SESSION.open_source, SESSION.open_target):
            with open_session(dsn) as session:
                assert session.execute(query).fetchone() == ("30", "3")
        with psycopg.connect(dsn) as other:  # the control: the kernel's two hours
            assert other.execute(query).fetchone() == ("7200", "9")
