"""A transaction pooler between drain and target: nothing is lost, and nothing stays behind."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from replica_platform.outbox import Outbox, drain, verify

Ask = Callable[..., list[tuple[Any, ...]]]
SETTINGS = (
    "synchronous_commit",
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(params=["transaction", "session"])
def pooled(request: pytest.FixtureRequest, target: str) -> Iterator[str]:
    """The DSN of the target through pgbouncer, which has two connections to the server.

    The sessions have synchronous_commit=off, so that a setting that stays behind would show.
    """
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed (apt-get install pgbouncer)")
    with psycopg.connect(target, autocommit=True) as admin:
        admin.execute("alter database outbox_tests set synchronous_commit = off")
    server, port = conninfo_to_dict(target), free_port()
    with tempfile.TemporaryDirectory(prefix="rp-") as name:
        folder = Path(name)
        ini = folder / "pgbouncer.ini"
        ini.write_text(
            "[databases]\n"
            f"* = host={server['host']} port={server.get('port', 5432)} user={server['user']}\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = any\npool_mode = {request.param}\n"
            "default_pool_size = 2\n"
            f"logfile = {folder / 'log'}\n"
        )
        user: list[str] = []
        if os.getuid() == 0:  # it refuses to run as root, and the server's socket is private
            owner = pwd.getpwuid(Path(str(server["host"])).stat().st_uid).pw_name
            for one in (folder, ini):
                shutil.chown(one, user=owner)
            user = ["-u", owner]
        pooler = subprocess.Popen([program, *user, str(ini)], stderr=subprocess.DEVNULL)
        dsn = make_conninfo(target, host="127.0.0.1", port=str(port), connect_timeout="3")
        try:
            wait_until_it_answers(dsn, folder / "log")
            yield dsn
        finally:
            pooler.kill()
            pooler.wait()


def wait_until_it_answers(dsn: str, log: Path) -> None:
    end = time.monotonic() + 10
    while True:
        try:
            psycopg.connect(dsn).close()
            return
        except psycopg.OperationalError as error:
            if time.monotonic() > end:
                text = log.read_text() if log.exists() else ""
                pytest.fail(f"pgbouncer does not answer: {error}\n{text}")
            time.sleep(0.05)


@pytest.fixture
def other_clients(request: pytest.FixtureRequest, pooled: str) -> Iterator[None]:
    """Clients that keep the pool busy, so that each transaction meets another connection."""
    stop = threading.Event()
    transaction_mode = request.node.callspec.params["pooled"] == "transaction"

    def work() -> None:
        with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as connection:
            while not stop.is_set():
                with connection.transaction():
                    connection.execute("select pg_sleep(0.002)")

    # In session mode a client has its connection for itself: leave one for the drain.
    threads = [threading.Thread(target=work) for _ in range(3 if transaction_mode else 1)]
    for thread in threads:
        thread.start()
    yield
    stop.set()
    for thread in threads:
        thread.join()


def settings_of(connection: psycopg.Connection) -> list[str]:
    row = connection.execute(
        "select array_agg(current_setting(name) order by name) from unnest(%s::text[]) as name",
        (list(SETTINGS),),
    ).fetchone()
    assert row is not None
    return list(row[0])


@pytest.mark.usefixtures("other_clients")
def test_drains_through_a_pooler_deliver_everything(
    box: Outbox, path: Path, target: str, pooled: str, ask: Ask
) -> None:
    with psycopg.connect(target) as fresh:
        usual = settings_of(fresh)
    states = []
    for turn in range(10):
        box.append_many("note", [{"turn": turn, "n": n} for n in range(500)])
        report = drain([path], pooled, batch_rows=50)
        states.append((report.files[0].state, report.delivered))
    assert states == [("drained", 500)] * 10
    assert ask("select count(*) from outbox.record") == [(5000,)]
    assert verify([path], pooled).ok
    assert ask("select count(*) from pg_locks where locktype = 'advisory'") == [(0,)]
    # What the pooler's next clients get.
    for _ in range(5):
        with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as client:
            assert settings_of(client) == usual
            assert client.execute("select count(*) from pg_prepared_statements").fetchone() == (0,)


def test_bad_rows_are_set_aside_through_a_pooler(
    box: Outbox, path: Path, pooled: str, ask: Ask
) -> None:
    assert drain([path], pooled).ok
    ask("alter table outbox.record add constraint no_bad check (not payload ? 'bad')")
    box.append_many("note", [{"bad": 1} if n % 50 == 7 else {"n": n} for n in range(500)])
    report = drain([path], pooled)
    assert (report.delivered, report.dead, report.pending) == (490, 10, 0)


def test_commits_are_durable_though_the_database_says_otherwise(
    box: Outbox, path: Path, target: str, ask: Ask
) -> None:
    """`synchronous_commit=on` holds inside each transaction of a delivery, and only there."""
    assert drain([path], target).ok
    ask("alter database outbox_tests set synchronous_commit = off")
    ask("create table seen (setting text)")
    ask(
        "create function see() returns trigger language plpgsql as $$ begin "
        "insert into seen values (current_setting('synchronous_commit')); return new; end $$"
    )
    ask("create trigger see before insert on outbox.record for each row execute function see()")
    box.append("note", {})
    assert drain([path], target).delivered == 1
    assert ask("select setting from seen") == [("on",)]
