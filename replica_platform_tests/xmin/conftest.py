"""One source and one target database for the whole folder, emptied before each test.

A CREATE DATABASE for each test would take longer than the tests.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from replica_platform.app.embedded import Server, running
from replica_platform_tests.xmin.helpers import execute

_EMPTY = """
select nspname from pg_namespace
where nspname not in ('information_schema') and nspname !~ '^pg_'
"""


@pytest.fixture(scope="session")
def pair(server: Server) -> Iterator[tuple[str, str]]:
    """The DSNs of the two databases."""
    names = ("xmin_source", "xmin_target")
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        for name in names:
            admin.execute(f"drop database if exists {name} with (force)")
            admin.execute(f"create database {name}")
    yield server.dsn(names[0]), server.dsn(names[1])


@pytest.fixture
def source(pair: tuple[str, str]) -> str:
    """The DSN of an empty source database."""
    _empty(pair[0])
    return pair[0]


@pytest.fixture
def target(pair: tuple[str, str]) -> str:
    """The DSN of an empty target database."""
    _empty(pair[1])
    return pair[1]


def _empty(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for (schema,) in connection.execute(_EMPTY).fetchall():
            connection.execute(sql.SQL("drop schema {} cascade").format(sql.Identifier(schema)))
        connection.execute("create schema public")


@pytest.fixture(scope="session")
def sixteen() -> Iterator[Server]:
    """A Postgres 16 with the databases source and target."""
    with (
        tempfile.TemporaryDirectory(prefix="rp-") as folder,
        running(Path(folder) / "pg", 16) as old,
    ):
        execute(old.dsn(), "create database source", "create database target")
        yield old
