"""Writes: committed once, retried after a conflict, refused in words."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import duckdb
import psycopg
import pytest

from replica_platform.app.embedded import Server
from replica_platform.lake import Lake, LakeConflict, LakeUnavailable, LakeWriter
from replica_platform_tests.lake.conftest import MakeLake

Work = Callable[[duckdb.DuckDBPyConnection], object]


def run(statement: str) -> Work:
    """A write of one statement."""
    return lambda connection: connection.execute(statement)


def rows(writer: LakeWriter, query: str) -> list[tuple]:
    return writer._connection.execute(query).fetchall()


def test_a_write_is_a_snapshot_and_a_wrong_one_changes_nothing(make_lake: MakeLake) -> None:
    with LakeWriter(make_lake()) as writer:
        made = writer.write(run('create schema "a.b"; create table "a.b"."T ""x" as select 1 as i'))
        table = '"a.b"."T ""x"'
        added = writer.write(run(f"insert into {table} values (2)"))
        assert (made.snapshot, added.snapshot) == (1, 2)
        assert added.ok and added.sentence == "Committed as snapshot 2, at attempt 1."
        with pytest.raises(duckdb.CatalogException, match="nowhere"):
            writer.write(run(f"insert into {table} values (3); insert into nowhere values (1)"))
        with pytest.raises(ZeroDivisionError):
            writer.write(lambda c: [c.execute(f"insert into {table} values (4)"), 1 / 0])
        nothing = writer.write(run("select 1"))
        assert nothing.snapshot is None and "no new snapshot" in nothing.sentence
        assert writer.write(run(f"insert into {table} values (5)")).snapshot == 3
        assert rows(writer, f"from {table} order by i") == [(1,), (2,), (5,)]


def test_many_first_writers_make_one_lake(make_lake: MakeLake) -> None:
    lake = make_lake()

    def first(number: int) -> list[tuple]:
        with LakeWriter(lake) as writer:
            writer.write(run("create table if not exists t (i int)"))
            writer.write(run(f"insert into t values ({number})"))
            return rows(writer, "select count(*) from t")

    with ThreadPoolExecutor(3) as threads:
        counted = list(threads.map(first, range(3)))
    assert max(counted) == [(3,)]


def test_a_key_is_written_once_by_any_process(
    writer: LakeWriter, other: LakeWriter, table: str
) -> None:
    first = writer.write(run(f"insert into {table} values (1)"), key="it's batch 7")
    again = other.write(run(f"insert into {table} values (1)"), key="it's batch 7")
    assert again.snapshot == first.snapshot
    assert again.attempts == 0 and "committed before" in again.sentence
    assert rows(writer, f"from {table}") == [(1,)]


def overtaken(other: LakeWriter, table: str, times: int) -> Work:
    """A write of a counter that another writer overtakes in its first attempts."""
    calls = []

    def work(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute(f"update {table} set i = i + 1")
        calls.append(1)
        if len(calls) <= times:
            other.write(run(f"update {table} set i = i + 1"))

    return work


def test_a_conflict_is_retried_with_the_new_state(
    writer: LakeWriter, other: LakeWriter, table: str
) -> None:
    writer.write(run(f"insert into {table} values (0)"))
    assert writer.write(overtaken(other, table, 2)).attempts == 3
    assert rows(writer, f"from {table}") == [(3,)]
    with pytest.raises(LakeConflict, match="came first in 2 attempts, and nothing") as refused:
        writer.write(overtaken(other, table, 9), attempts=2)
    assert "Transaction conflict" in str(refused.value)
    assert rows(writer, f"from {table}") == [(5,)]
    assert writer.write(run(f"update {table} set i = i + 1")).attempts == 1


def test_without_the_retry_the_update_fails(
    writer: LakeWriter, other: LakeWriter, table: str
) -> None:
    """The negative control: DuckLake alone leaves the conflict to the caller."""
    writer.write(run(f"insert into {table} values (0)"))
    plain = writer._connection
    plain.execute("begin")
    overtaken(other, table, 1)(plain)
    with pytest.raises(duckdb.TransactionException, match="Transaction conflict"):
        plain.execute("commit")
    assert rows(writer, f"from {table}") == [(1,)]


class Cut:
    """The connection of a writer, whose next commit is cut off before or after it is done."""

    def __init__(self, writer: LakeWriter, *, done: bool) -> None:
        self._inner = writer._connection
        self._done = done

    def execute(self, statement: str) -> object:
        if statement != "commit":
            return self._inner.execute(statement)
        self._inner.execute("commit" if self._done else "rollback")
        raise duckdb.IOException("Postgres: server closed the connection unexpectedly")


@pytest.mark.parametrize("done", [True, False])
def test_a_lost_acknowledgement_neither_loses_nor_doubles(
    writer: LakeWriter, table: str, done: bool
) -> None:
    writer._connection = Cut(writer, done=done)  # type: ignore[assignment]
    commit = writer.write(run(f"insert into {table} values (1)"))
    assert commit.attempts == (1 if done else 2)
    assert rows(writer, f"from {table}") == [(1,)]


def test_a_blind_repetition_doubles(writer: LakeWriter, table: str) -> None:
    """The negative control: the same lost acknowledgement, repeated without asking the catalog."""
    plain = Cut(writer, done=True)
    for _attempt in range(2):
        plain.execute("begin")
        plain.execute(f"insert into {table} values (1)")
        with pytest.raises(duckdb.IOException):
            plain.execute("commit")
    assert rows(writer, f"from {table}") == [(1,), (1,)]


def test_a_commit_that_arrives_twice_is_refused_by_the_index(
    writer: LakeWriter, other: LakeWriter, table: str
) -> None:
    """A first commit that was still under way when it was looked for cannot double the write."""
    writer.write(run(f"insert into {table} values (1)"), key="a")
    late = other._connection
    late.execute("begin")
    late.execute(f"insert into {table} values (1)")
    late.execute("call lake.set_commit_message('', '', extra_info => 'replica_platform:a')")
    with pytest.raises(duckdb.TransactionException, match="replica_platform_commits"):
        late.execute("commit")
    assert rows(writer, f"from {table}") == [(1,)]


def end_connections(server: str, database: str) -> int:
    with psycopg.connect(server, autocommit=True) as admin:
        found = admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [database]
        )
        return len(found.fetchall())


def test_a_catalog_that_went_away_comes_back(
    lake: Lake, writer: LakeWriter, server: Server, table: str
) -> None:
    """Every connection of a writer is ended, also in the midst of a write."""
    ended = []

    def work(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute(f"insert into {table} values (1)")
        if not ended:
            ended.append(end_connections(server.dsn(), lake.parameters["dbname"]))

    assert writer.write(work).attempts > 1
    assert ended[0] >= 2
    end_connections(server.dsn(), lake.parameters["dbname"])
    writer.write(run(f"insert into {table} values (2)"))
    assert rows(writer, f"from {table} order by i") == [(1,), (2,)]


def test_a_catalog_that_stays_away_names_the_key(
    lake: Lake, writer: LakeWriter, server: Server, table: str
) -> None:
    """The remedy of the sentence, the same key, writes it once."""
    name = lake.parameters["dbname"]
    allow = f"alter database {name} allow_connections"

    def work(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute(f"insert into {table} values (1)")
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute(f"{allow} false")
        end_connections(server.dsn(), name)

    try:
        with pytest.raises(LakeUnavailable, match=r"write it again with key='seven'"):
            writer.write(work, key="seven", attempts=2)
    finally:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute(f"{allow} true")
    once = [writer.write(run(f"insert into {table} values (1)"), key="seven") for _ in range(2)]
    assert [one.attempts for one in once] == [1, 0]
    assert rows(writer, f"from {table}") == [(1,)]


def test_a_lock_that_is_kept_is_reported(
    writer: LakeWriter, other: LakeWriter, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replica_platform.lake.catalog.LOCK_WAIT_S", 1)
    other.write(run("select 1"))  # another test cut its connection
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with other._catalog.lock():
            held.set()
            release.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(10)
        with pytest.raises(LakeUnavailable, match="kept its commit lock for 1 s"):
            writer.write(run(f"insert into {table} values (1)"), attempts=1)
    finally:
        release.set()
        thread.join()
    assert writer.write(run(f"insert into {table} values (1)")).attempts == 1
