"""The embedded Postgres: made once, shared by its users, stopped by the last."""

import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from replica_platform.embedded import EmbeddedPostgresFailed, Server, running, server_at


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "pg"


def test_starts_answers_and_stops(folder: Path) -> None:
    with running(folder) as server:
        with psycopg.connect(server.dsn()) as connection:
            assert connection.info.server_version >= 180000
        assert server.is_running
    assert not server_at(folder).is_running


def test_a_database_is_made_once(server: Server) -> None:
    server.make_database("made once")
    server.make_database("made once")
    with psycopg.connect(server.dsn("made once")) as connection:
        assert connection.execute("select current_database()").fetchone() == ("made once",)


def test_the_last_user_stops_it(folder: Path) -> None:
    with running(folder) as outer:
        with running(folder) as inner:
            assert inner.folder == outer.folder
        assert outer.is_running
    assert not outer.is_running


def test_a_killed_user_is_not_counted(folder: Path) -> None:
    program = (
        "import os, sys, pathlib\n"
        "from replica_platform.embedded import running\n"
        "with running(pathlib.Path(sys.argv[1])):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(folder)], check=False)
    assert server_at(folder).is_running
    with running(folder):
        pass
    assert not server_at(folder).is_running


def test_a_folder_above_that_is_closed_meanwhile(folder: Path) -> None:
    with running(folder):
        folder.parent.chmod(0o700)
        with running(folder) as server:
            assert server.is_running


def test_a_long_path_gets_a_short_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120) / "pg"
    with running(folder) as server, psycopg.connect(server.dsn()) as connection:
        assert connection.execute("select 1").fetchone() == (1,)


def test_nothing_is_world_writable(folder: Path) -> None:
    with running(folder):
        open_to_all = [p for p in folder.parent.rglob("*") if p.lstat().st_mode & 0o002]
    assert [p for p in open_to_all if not p.is_socket() and not p.is_symlink()] == []


def test_a_broken_cluster_says_its_last_words(folder: Path) -> None:
    with running(folder):
        pass
    (folder / "postgresql.conf").write_text("nonsense = 'x'\n")
    with pytest.raises(EmbeddedPostgresFailed, match="nonsense"), running(folder):
        pass
