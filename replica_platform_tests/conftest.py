"""Fixtures of all tests: one embedded Postgres per session, and databases for each test."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from replica_platform.app.embedded import Server, running
from replica_platform.app.project import init_project

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def torture() -> bool:
    """Whether the long form of the fault tests runs (`make torture`)."""
    return os.environ.get("REPLICA_TORTURE") == "1"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for a separate embedded Postgres.

    It is not below pytest's folder, which is private: started by root, Postgres is another user.
    """
    with tempfile.TemporaryDirectory(prefix="rp-") as path:
        yield Path(path)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The embedded Postgres 18, started once and stopped at the end."""
    # Not below pytest's folder, which is private: started by root, Postgres is another user.
    with (
        tempfile.TemporaryDirectory(prefix="rp-") as folder,
        running(Path(folder) / "pg") as server,
    ):
        yield server


@pytest.fixture
def database(server: Server) -> Iterator[Callable[[str], str]]:
    """A function that creates an empty database and returns its DSN; all are dropped afterwards."""
    made: list[str] = []
    with psycopg.connect(server.dsn(), autocommit=True) as admin:

        def make(name: str = "db") -> str:
            unique = f"{name}_{secrets.token_hex(4)}"
            admin.execute(sql.SQL("create database {}").format(sql.Identifier(unique)))
            made.append(unique)
            return server.dsn(unique)

        yield make
        for name in made:
            admin.execute(
                sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name))
            )


@pytest.fixture
def source(database: Callable[[str], str]) -> str:
    """The DSN of an empty source database."""
    return database("source")


@pytest.fixture
def target(database: Callable[[str], str]) -> str:
    """The DSN of an empty target database."""
    return database("target")


@pytest.fixture
def cli(tmp_path: Path, folder: Path) -> Cli:
    """A function that calls `replica` with the data folder `folder / "data"` as only setting."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REPLICA_")}
    environment = {
        **kept,
        "REPLICA_DATA_DIR": str(folder / "data"),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "COLUMNS": "200",
    }

    def call(*arguments: object, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "replica_platform.cli.main", *map(str, arguments)],
            cwd=tmp_path,
            env=environment | settings,
            input=settings.pop("stdin", None),
            capture_output=True,
            text=True,
        )

    return call


@pytest.fixture
def entries(tmp_path: Path) -> Path:
    """The folder `defs` of a project without the sample in `tmp_path`, where `cli` works."""
    init_project(tmp_path / "new" / "shop", sample=False)
    shutil.copytree(tmp_path / "new" / "shop", tmp_path, dirs_exist_ok=True)
    return tmp_path / "shop" / "defs"
