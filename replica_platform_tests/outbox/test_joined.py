"""`join`: records in the application's own SQLite transaction, or not at all."""

import sqlite3 as standard_sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import NotDurable, NotJoinable, NotStorable, Outbox, backlog, drain

Ask = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def application(box: Outbox, path: Path) -> Iterator[sqlite3.Connection]:
    """The application's connection to the outbox's file, with a table of its own."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("pragma synchronous = full")
        connection.execute("create table account (name text primary key, balance integer)")
        connection.execute("insert into account values ('a', 100)")
        yield connection


def balance(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        (found,) = connection.execute("select balance from account").fetchone()
    return int(found)


def test_both_are_committed_together(
    box: Outbox, path: Path, application: sqlite3.Connection, target: str, ask: Ask
) -> None:
    outbox = box.join(application)
    application.execute("begin immediate")
    application.execute("update account set balance = balance - 30")
    one = outbox.append("payment", {"amount": 30})
    two, three = outbox.append_many("payment", [{"amount": 1}, {"amount": 2}])
    assert backlog([path]).pending == 0
    application.execute("commit")
    assert (balance(path), backlog([path]).pending) == (70, 3)
    box.append("payment", {"amount": 4})  # the box itself goes on
    assert drain([path], target).delivered == 4
    found = ask("select id::text from outbox.record order by seq limit 3")
    assert [id for (id,) in found] == [one, two, three]


def test_both_are_rolled_back_together(
    box: Outbox, path: Path, application: sqlite3.Connection
) -> None:
    outbox = box.join(application)
    application.execute("begin")
    application.execute("update account set balance = 0")
    outbox.append("payment", {"amount": 100})
    application.execute("rollback")
    assert (balance(path), backlog([path]).pending) == (100, 0)


def test_a_bad_record_leaves_the_transaction_to_the_application(
    box: Outbox, path: Path, application: sqlite3.Connection
) -> None:
    outbox = box.join(application)
    application.execute("begin")
    outbox.append("payment", {"amount": 1})
    with pytest.raises(NotStorable):
        outbox.append("payment", {"amount": float("nan")})
    assert application.in_transaction
    application.execute("commit")
    assert backlog([path]).pending == 1


def test_without_a_transaction_nothing_is_saved(
    box: Outbox, path: Path, application: sqlite3.Connection
) -> None:
    outbox = box.join(application)
    with pytest.raises(NotJoinable, match="begin"):
        outbox.append("payment", {"amount": 1})
    assert backlog([path]).pending == 0


def test_a_closed_outbox_refuses(box: Outbox, application: sqlite3.Connection) -> None:
    outbox = box.join(application)
    box.close()
    application.execute("begin")
    with pytest.raises(NotJoinable, match="closed"):
        outbox.append("payment", {})
    application.execute("rollback")


def test_another_file_is_refused(box: Outbox, path: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "app.db")) as other:
        with pytest.raises(NotJoinable, match=r"app\.db"):
            box.join(other)
        # A transaction over attached files is not atomic in WAL mode.
        other.execute("attach ? as box", (str(path),))
        with pytest.raises(NotJoinable):
            box.join(other)
    with closing(sqlite3.connect(":memory:")) as memory, pytest.raises(NotJoinable):
        box.join(memory)


def test_less_durability_than_the_outbox_is_refused(box: Outbox, path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("pragma synchronous = normal")
        with pytest.raises(NotDurable, match="synchronous"):
            box.join(connection)
        outbox = None
        connection.execute("pragma synchronous = full")
        outbox = box.join(connection)
        connection.execute("pragma synchronous = off")
        connection.execute("begin")
        with pytest.raises(NotDurable):
            outbox.append("note", {})


@pytest.mark.skipif(sqlite3 is standard_sqlite3, reason="only one SQLite library is installed")
def test_another_sqlite_library_is_refused(box: Outbox) -> None:
    with (
        closing(standard_sqlite3.connect(":memory:")) as connection,
        pytest.raises(NotJoinable, match="library"),
    ):
        box.join(connection)
