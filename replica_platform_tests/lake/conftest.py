"""Lakes for tests: one that they share, each with a table of its own, and new ones."""

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from replica_platform.app.embedded import Server
from replica_platform.lake import Lake, LakeWriter

MakeLake = Callable[..., Lake]


@pytest.fixture(scope="session")
def lake(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    """A lake that tests share: opening one takes half a second."""
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute("create database shared_lake")
        yield Lake(
            server.dsn("shared_lake"), """my "la'ke; x""", str(tmp_path_factory.mktemp("da'ta"))
        )
        admin.execute("drop database shared_lake with (force)")


@pytest.fixture(scope="session")
def writer(lake: Lake) -> Iterator[LakeWriter]:
    """A writer of it."""
    with LakeWriter(lake) as opened:
        yield opened


@pytest.fixture(scope="session")
def other(lake: Lake, writer: LakeWriter) -> Iterator[LakeWriter]:
    """Another writer of it."""
    with LakeWriter(lake) as opened:
        yield opened


@pytest.fixture
def table(writer: LakeWriter) -> str:
    """A new table of it, with one column `i`."""
    name = f"t_{secrets.token_hex(4)}"
    writer.write(lambda connection: connection.execute(f"create table {name} (i int)"))
    return name


@pytest.fixture
def make_lake(target: str, tmp_path: Path) -> MakeLake:
    """A function that names a lake which nobody has made yet; all are in one database."""

    def make(name: str = "lake") -> Lake:
        return Lake(target, name, str(tmp_path / f"data of {name}"))

    return make
