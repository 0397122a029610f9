"""Fixtures of the replica engine: a small master, a store, and damage to a file."""

import filecmp
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from replica_platform.replica import Master, Publication, publish, verify


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def master(tmp_path: Path) -> Master:
    """A master with a table `bars` of three rows and a table `pad` of many blocks."""
    master = Master(tmp_path / "master" / "stock_data.duckdb", patience_s=0.3)
    with master.write() as connection:
        connection.execute("create table bars (symbol varchar, day integer, close double)")
        connection.execute(
            "insert into bars values ('AAPL', 1, 10), ('IBM', 1, 20), ('IBM', 2, 21)"
        )
        connection.execute("create table pad as select hash(range)::varchar s from range(100000)")
    return master


@pytest.fixture
def publish_next(master: Master, store: Path) -> Callable[..., Publication]:
    """A function that adds one bar to the master and publishes the master."""

    def publish_it(day: int = 3, **options: object) -> Publication:
        with master.write() as connection:
            connection.execute("insert into bars values ('AAPL', ?, 11)", [day])
        return publish(master.path, store, min_age_s=0, **options)  # type: ignore[arg-type]

    return publish_it


def damage(path: Path, at: int, content: bytes) -> None:
    """Overwrite some bytes of a read-only file, as a failing disk would."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)
    path.chmod(0o444)


def append(master: Master, rows: int = 100) -> None:
    with master.write() as connection:
        connection.execute(
            f"insert into pad select hash(range + {rows})::varchar from range(?)", [rows]
        )


@pytest.fixture
def publish_now(master: Master, store: Path) -> Callable[[], Publication]:
    """A function that publishes, and compares the generation with the master."""

    def publish_it() -> Publication:
        publication = publish(master.path, store, keep=1, min_age_s=0)
        assert filecmp.cmp(publication.file, master.path, shallow=False)
        assert verify(store).ok
        return publication

    return publish_it


@pytest.fixture
def patching(master: Master, publish_now: Callable[[], Publication]) -> Callable[[], Publication]:
    """`publish_now`, of a store whose next publication patches."""
    for _ in range(3):
        append(master)
        publish_now()
    return publish_now


ELSEWHERE = "a program other than Master.write"


def write_elsewhere(master: Master) -> None:
    """Write as any other program does, with several checkpoints."""
    with duckdb.connect(str(master.path)) as connection:
        for number in range(3):
            connection.execute(
                f"create or replace table other as select {number} n, range i from range(90000)"
            )
            connection.execute("checkpoint")
