"""A connection pooler between the sync and a server: refused where sessions are shared."""

import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from replica_platform.app.embedded import Server, private_folder, system_user
from replica_platform.xmin import CannotSync, merge_frame, read_rows, status, sync, tune, validate
from replica_platform_tests.xmin.helpers import execute, rows

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
pytestmark = pytest.mark.skipif(
    PGBOUNCER is None, reason="pgbouncer is not installed (apt-get install pgbouncer)"
)
# Every setting that a sync pins and an application would notice.
SETTINGS = "select current_setting('search_path'), current_setting('row_security')"
LOCKS = """select count(*) from pg_locks where locktype = 'advisory'
    and database = (select oid from pg_database where datname = current_database())"""


class Pooler:
    """A running pgbouncer in front of the embedded server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def dsn(self, direct: str) -> str:
        """Return the address of the same database through the pooler."""
        database = psycopg.conninfo.conninfo_to_dict(direct)["dbname"]
        return f"host={self.folder} port=6432 dbname={database} user=postgres"


@contextmanager
def pooling(server: Server, mode: str, size: int = 20) -> Iterator[Pooler]:
    """Run pgbouncer in a pool mode, with so many server sessions for each database."""
    with tempfile.TemporaryDirectory(prefix="rp-") as name:
        folder = Path(name) / "pool"
        private_folder(folder)
        configuration = folder / "pgbouncer.ini"
        configuration.write_text(
            f"""[databases]
            * = host={server.socket_dir} user=postgres
            [pgbouncer]
            listen_addr =
            listen_port = 6432
            unix_socket_dir = {folder}
            auth_type = any
            pool_mode = {mode}
            default_pool_size = {size}
            ignore_startup_parameters = extra_float_digits
            """.replace("            ", "")
        )
        user = system_user()
        assert PGBOUNCER is not None
        process = subprocess.Popen(
            [PGBOUNCER, "-q", str(configuration)],
            user=user.pw_name if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            until = time.monotonic() + 10
            with socket.socket(socket.AF_UNIX) as client:
                while client.connect_ex(f"{folder}/.s.PGSQL.6432") and time.monotonic() < until:
                    time.sleep(0.02)
            yield Pooler(folder)
        finally:
            process.terminate()
            process.wait()


@pytest.fixture
def filled(source: str) -> str:
    """The DSN of a source with a table."""
    execute(source, "create table t (id int primary key, x text)", "insert into t values (1, 'a')")
    return source


@pytest.mark.parametrize("mode", ["transaction", "statement"])
@pytest.mark.parametrize("size", [1, 20])
def test_shared_sessions_are_refused_and_left_as_they_were(
    mode: str, size: int, filled: str, target: str, server: Server
) -> None:
    sync(filled, target, "t")
    execute(filled, "update t set x = 'b'")
    with pooling(server, mode, size) as pooler:
        through_source, through_target = pooler.dsn(filled), pooler.dsn(target)
        before = rows(through_source, SETTINGS), rows(through_target, SETTINGS)
        with pytest.raises(CannotSync, match=r"source .* pooler .* address of the server itself"):
            sync(through_source, target, "t")
        with pytest.raises(CannotSync, match=r"target .* pooler .* address of the server itself"):
            sync(filled, through_target, "t")
        for refused in (
            lambda: validate(through_source, target, "t"),
            lambda: validate(filled, through_target, "t"),
            lambda: tune(through_source, target),
            lambda: status(through_target),
            lambda: read_rows(through_target, "t"),
        ):
            with pytest.raises(CannotSync, match="pooler"):
                refused()
        assert rows(through_target, LOCKS) == [(0,)]
        # The application finds its table without naming a schema, as before.
        assert rows(through_source, "select x from t") == [("b",)]
        assert (rows(through_source, SETTINGS), rows(through_target, SETTINGS)) == before
    assert rows(target, "select x from t") == [("a",)]
    assert sync(filled, target, "t").rows_updated == 1


def test_shared_sessions_are_noticed_beside_a_busy_application(
    filled: str, target: str, server: Server
) -> None:
    """Its queries take and return the pool's sessions while the sync looks at them."""
    with pooling(server, "transaction", 4) as pooler:
        over = threading.Event()
        failed: list[Exception] = []

        def application() -> None:
            try:
                with psycopg.connect(
                    pooler.dsn(filled), autocommit=True, prepare_threshold=None
                ) as session:
                    while not over.is_set():
                        session.execute("select x from t")
            except psycopg.Error as error:
                failed.append(error)

        clients = [threading.Thread(target=application) for _ in range(6)]
        for client in clients:
            client.start()
        try:
            for _ in range(10):
                with pytest.raises(CannotSync, match="pooler"):
                    sync(pooler.dsn(filled), target, "t")
        finally:
            over.set()
            for client in clients:
                client.join()
    assert not failed


def test_a_pool_in_session_mode_works(filled: str, target: str, server: Server) -> None:
    with pooling(server, "session") as pooler:
        through_source, through_target = pooler.dsn(filled), pooler.dsn(target)
        assert sync(through_source, through_target, "t").rows_inserted == 1
        execute(filled, "update t set x = 'b'")
        assert sync(through_source, through_target, "t").rows_updated == 1
        assert validate(through_source, through_target, "t").in_sync
        assert rows(through_target, "select x from t") == [("b",)]
        assert rows(through_target, LOCKS) == [(0,)]


def test_a_pool_that_has_no_session_left_is_refused(
    filled: str, target: str, server: Server
) -> None:
    with pooling(server, "session", 1) as pooler, pytest.raises(CannotSync, match="pooler"):
        sync(pooler.dsn(filled), target, "t")


def test_a_frame_is_not_written_through_shared_sessions(target: str, server: Server) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"id": [1], "x": ["a"]})
    with pooling(server, "transaction") as pooler, pytest.raises(CannotSync, match="pooler"):
        merge_frame(pooler.dsn(target), "f", frame, ["id"])
    assert rows(target, "select to_regclass('f') is null") == [(True,)]
