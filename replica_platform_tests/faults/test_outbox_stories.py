"""The losses that must not happen, each with its numbers and a naive counterpart."""

import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from replica_platform.app.embedded import Server, running
from replica_platform.outbox import Outbox, backlog, drain, reconcile
from replica_platform.outbox.file import open_existing
from replica_platform_tests.faults.outbox_proxy import Proxy

TABLE = "create table conversations (id uuid primary key, message text not null)"
MAPPING = {"conversation": {"table": "conversations", "columns": ["id", "message"]}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "worker-1.db"


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.socket_dir) as one:
        yield one


@pytest.fixture
def proxied(proxy: Proxy, target: str) -> str:
    """The DSN of the target through the proxy."""
    return proxy.dsn(psycopg.conninfo.conninfo_to_dict(target)["dbname"] or "")


def append_conversations(box: Outbox, n: int) -> list[str]:
    return [box.append("conversation", {"n": number, "message": "m"}) for number in range(n)]


def ask(dsn: str, question: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        answer = connection.execute(question)
        return answer.fetchall() if answer.description else []


def count(dsn: str) -> int:
    [(n,)] = ask(dsn, "select count(*) from outbox.record")
    return int(n)


def test_a_silent_network_ends_the_batch_at_its_deadline(
    path: Path, proxy: Proxy, proxied: str
) -> None:
    """The deadline fires; psycopg's own timeouts, of a second each, do not."""
    with Outbox(path) as box:
        append_conversations(box, 50)
    timeouts = "-c statement_timeout=1000 -c lock_timeout=1000"
    connection = psycopg.connect(proxied, tcp_user_timeout=1000, options=timeouts)
    connection.execute("select 1")
    started = time.monotonic()
    report = drain(
        [path], proxied, deadline_s=1, progress=lambda *_: setattr(proxy, "mode", "silent")
    )
    took = time.monotonic() - started
    naive = threading.Thread(target=_wait_for_ever, args=(connection,), daemon=True)
    naive.start()
    naive.join(4)
    still_hangs = naive.is_alive()
    proxy.mode = "ok"
    proxy.reset()
    naive.join(10)
    connection.close()
    print(f"\nsilent: ours ended after {took:.1f} s, naive hung after 4 s: {still_hangs}")
    assert took < 3
    assert still_hangs
    assert (report.files[0].state, report.pending) == ("failed", 50)
    report = drain([path], proxied, force=True)
    assert (report.delivered, report.pending, count(proxied)) == (50, 0, 50)


def _wait_for_ever(connection: psycopg.Connection) -> None:
    try:
        connection.execute("select 2")
    except psycopg.OperationalError:
        return


def test_connecting_to_a_silent_server_ends(path: Path, proxy: Proxy, proxied: str) -> None:
    with Outbox(path) as box:
        append_conversations(box, 1)
    proxy.mode = "silent"
    started = time.monotonic()
    report = drain([path], f"{proxied}&connect_timeout=2")
    assert time.monotonic() - started < 6
    assert report.pending == 1


@pytest.mark.parametrize("mode", ["refuse", "reset", "delay"])
def test_a_network_that_refuses_resets_or_delays_loses_nothing(
    path: Path, proxy: Proxy, proxied: str, mode: str
) -> None:
    with Outbox(path) as box:
        append_conversations(box, 50)
    proxy.mode = "ok" if mode == "reset" else mode
    report = drain([path], proxied, progress=lambda *_: proxy.reset() if mode == "reset" else None)
    assert report.pending == (0 if mode == "delay" else 50)
    proxy.mode = "ok"
    report = drain([path], proxied, force=True)
    assert (report.pending, count(proxied)) == (0, 50)


def test_a_commit_whose_reply_is_lost_is_absorbed(path: Path, proxy: Proxy, proxied: str) -> None:
    """Its outcome is unknown: it counts as failed, and the target absorbs the rows."""
    with Outbox(path) as box:
        append_conversations(box, 50)
    drain([path], proxied, budget_s=0)  # creates the tables, so that the next COMMIT is the batch's
    report = drain(
        [path], proxied, progress=lambda *_: setattr(proxy, "mode", "drop_commit"), deadline_s=5
    )
    assert (proxy.commits_dropped, report.files[0].state, report.pending) == (1, "failed", 50)
    assert count(proxied) == 50
    report = drain([path], proxied, force=True)
    print(f"\nreply lost: {report.absorbed} of 50 absorbed, {report.delivered} delivered again")
    assert (report.delivered, report.absorbed, count(proxied)) == (0, 50, 50)


def test_fifty_conversations_survive_an_outage(path: Path) -> None:
    """Postgres is down for five minutes of maintenance, and the scheduled drains fail."""
    with (
        tempfile.TemporaryDirectory(prefix="rp-") as folder,
        running(Path(folder) / "pg") as server,
        Outbox(path) as box,
    ):
        append_conversations(box, 3)
        assert drain([path], server.dsn()).delivered == 3
        server.stop("immediate")
        naive_lost = 0
        for _ in range(5):
            append_conversations(box, 10)
            try:
                ask(server.dsn(), "select 1")
            except psycopg.OperationalError:
                naive_lost += 10  # a worker without an outbox would have lost them
            assert drain([path], server.dsn(), force=True).files[0].state == "failed"
        assert (backlog([path]).pending, backlog([path]).files[0].breaker) == (50, "waiting")
        server.start()
        report = drain([path], server.dsn(), force=True)
        print(f"\noutage: {report.delivered} delivered after it, naive lost {naive_lost}")
        assert (report.delivered, report.pending, count(server.dsn())) == (50, 0, 53)
        assert naive_lost == 50


@pytest.mark.parametrize("death", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("mode", ["outbox", "direct"])
def test_a_hundred_conversations_survive_the_stop_of_their_worker(
    path: Path, proxy: Proxy, proxied: str, target: str, death: signal.Signals, mode: str
) -> None:
    ask(target, TABLE)
    proxy.mode = "silent"
    log = path.with_name("log")
    arguments = [mode, str(path), proxied, str(log), "100"]
    worker = subprocess.Popen(
        [sys.executable, "-m", "replica_platform_tests.faults.outbox_worker", *arguments]
    )
    end = time.monotonic() + 60
    while not log.exists() or log.read_text().count("\n") < 100:
        assert time.monotonic() < end
        time.sleep(0.02)
    worker.send_signal(death)
    assert worker.wait(10) == -death
    ids = set(log.read_text().split())
    proxy.mode = "ok"
    if mode == "outbox":
        report = drain([path], target, mappings=MAPPING)
        assert (report.delivered, report.ok) == (100, True)
    arrived = {id for (id,) in ask(target, "select id::text from conversations")}
    lost = len(ids - arrived)
    print(f"\n{death.name} with 100 in flight, {mode}: lost {lost}")
    assert lost == (0 if mode == "outbox" else 100)


def test_two_hundred_conversations_survive_a_bug(path: Path, target: str) -> None:
    """A deployed mapping names a missing column; all drains of thirty minutes fail."""
    ask(target, TABLE)
    bug = {
        "conversation": {"table": "conversations", "columns": {"id": "$id", "mesage": "message"}}
    }
    fix = {
        "conversation": {"table": "conversations", "columns": {"id": "$id", "message": "message"}}
    }
    alerts = 0
    with Outbox(path) as box:
        for _ in range(6):  # every five minutes
            append_conversations(box, 33)
            report = drain([path], target, mappings=bug, force=True)
            assert (report.delivered, report.dead) == (0, 0)
            assert report.files[0].sqlstate == "42703"
            alerts += report.files[0].alerts
        append_conversations(box, 2)
    naive_lost = _naive_drain_with_the_bug(path, target)
    report = drain([path], target, mappings=fix, force=True)
    [(typed,)] = ask(target, "select count(*) from conversations")
    print(
        f"\nbug: {report.delivered} delivered after the fix, alerts {alerts}, "
        f"naive lost {naive_lost}"
    )
    assert (report.delivered, report.pending, typed, alerts) == (200, 0, 200, 1)
    assert reconcile([path], target).ok
    assert naive_lost == 200


def _naive_drain_with_the_bug(path: Path, target: str) -> int:
    """Log each error and continue, as many drains do; return how many rows are never sent again."""
    abandoned = 0
    with closing(open_existing(path, read_only=True)) as local, psycopg.connect(target) as there:
        for id, payload in local.execute("select id, payload from record").fetchall():
            try:
                there.execute(
                    "insert into conversations (id, mesage) values (%s, %s)", (id, payload)
                )
            except psycopg.Error:
                there.rollback()
                abandoned += 1
    return abandoned
