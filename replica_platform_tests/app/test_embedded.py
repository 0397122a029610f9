"""The embedded Postgres: created once, shared by processes, stopped by the last one."""

import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from replica_platform.app.embedded import EmbeddedPostgresFailed, Server, running, server_at


@pytest.fixture
def cluster(folder: Path) -> Path:
    return folder / "pg"


def test_starts_answers_and_stops(cluster: Path) -> None:
    with running(cluster) as server:
        with psycopg.connect(server.dsn()) as connection:
            assert connection.info.server_version >= 180000
        assert server.is_running
    assert not server_at(cluster).is_running


def test_a_database_is_created_once(server: Server) -> None:
    server.make_database("made once")
    server.make_database("made once")
    with psycopg.connect(server.dsn("made once")) as connection:
        assert connection.execute("select current_database()").fetchone() == ("made once",)


def test_the_last_user_stops_the_server(cluster: Path) -> None:
    with running(cluster) as outer:
        with running(cluster) as inner:
            assert inner.folder == outer.folder
        assert outer.is_running
    assert not outer.is_running


def test_a_killed_user_is_not_counted(cluster: Path) -> None:
    program = (
        "import os, sys, pathlib\n"
        "from replica_platform.app.embedded import running\n"
        "with running(pathlib.Path(sys.argv[1])):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(cluster)], check=False)
    assert server_at(cluster).is_running
    with running(cluster):
        pass
    assert not server_at(cluster).is_running


def test_a_parent_folder_that_becomes_private_is_opened_again(cluster: Path) -> None:
    with running(cluster):
        cluster.parent.chmod(0o700)
        with running(cluster) as server:
            assert server.is_running


def test_a_long_path_gets_a_short_socket(folder: Path) -> None:
    with (
        running(folder / ("x" * 120) / "pg") as server,
        psycopg.connect(server.dsn()) as connection,
    ):
        assert connection.execute("select 1").fetchone() == (1,)


def test_nothing_is_world_writable(cluster: Path) -> None:
    with running(cluster):
        open_to_all = [p for p in cluster.parent.rglob("*") if p.lstat().st_mode & 0o002]
    assert [p for p in open_to_all if not p.is_socket() and not p.is_symlink()] == []


def test_the_error_of_a_broken_cluster_names_the_cause(cluster: Path) -> None:
    with running(cluster):
        pass
    (cluster / "postgresql.conf").write_text("nonsense = 'x'\n")
    with pytest.raises(EmbeddedPostgresFailed, match="nonsense"), running(cluster):
        pass
