"""An outbox file, a target database and queries on it, for every test of the engine."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from replica_platform.app.embedded import Server
from replica_platform.outbox import Outbox


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "worker-1.db"


@pytest.fixture
def box(path: Path) -> Iterator[Outbox]:
    with Outbox(path) as outbox:
        yield outbox


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 20 MB; only root can mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)]
    if subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def emptied(server: Server) -> str:
    """The name of one database for this folder: emptying it takes a tenth of creating one."""
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute("create database outbox_tests")
    return "outbox_tests"


@pytest.fixture
def target(server: Server, emptied: str) -> str:
    """The DSN of an empty target database."""
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [emptied]
        )
        admin.execute(f"alter database {emptied} reset all")
    with psycopg.connect(server.dsn(emptied)) as connection:
        connection.execute("drop schema if exists outbox, public cascade")
        connection.execute("create schema public")
    return server.dsn(emptied)


@pytest.fixture
def ask(target: str) -> Iterator[Callable[..., list[tuple[Any, ...]]]]:
    """A function that runs a statement in the target and returns its rows."""
    with psycopg.connect(target, autocommit=True) as connection:

        def run(statement: str, *values: Any) -> list[tuple[Any, ...]]:
            answer = connection.execute(statement, values or None)
            return answer.fetchall() if answer.description else []

        yield run
