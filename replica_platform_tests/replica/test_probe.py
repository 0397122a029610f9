"""The program that reads a candidate in its own process: many tables, few statements."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from replica_platform.replica.probe import process, program
from replica_platform.replica.probe.process import Probe, ProbeFailed


class Counting:
    """A connection that counts its statements."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self.connection = connection
        self.statements: list[str] = []

    def execute(self, sql: str) -> Any:
        self.statements.append(sql)
        return self.connection.execute(sql)


@pytest.fixture
def many(tmp_path: Path) -> Iterator[Counting]:
    """A file with 300 tables of different sizes, some with deleted rows, in two schemas."""
    with duckdb.connect(str(tmp_path / "many.duckdb")) as connection:
        connection.execute("begin")
        connection.execute("create schema other")
        for i in range(300):
            schema = "other." if i % 3 == 0 else ""
            connection.execute(f'create table {schema}"t {i}" as select range a from range({i})')
            connection.execute(f'delete from {schema}"t {i}" where a < {i % 5}')
        wide = ", ".join(f"{i} c{i}" for i in range(500))
        connection.execute(f"create table wide as select {wide}")
        connection.execute("commit")
        connection.execute("checkpoint")
    with duckdb.connect(str(tmp_path / "many.duckdb"), read_only=True) as connection:
        yield Counting(connection)


@pytest.mark.parametrize("scan", [[], ["t 7", "other.t 3"], ["*"]])
def test_rows_and_schemas_of_many_tables(many: Counting, scan: list[str]) -> None:
    tables = program.read_tables(many, scan)  # type: ignore[arg-type]
    expected = {f"{'other.' if i % 3 == 0 else ''}t {i}": max(0, i - i % 5) for i in range(300)}
    assert {name: found["rows"] for name, found in tables.items()} == {**expected, "wide": 1}
    assert len({found["schema"] for found in tables.values()}) == 2


@pytest.mark.parametrize("scan", [[], ["*"]])
def test_statements_are_few_and_read_every_table(many: Counting, scan: list[str]) -> None:
    program.read_tables(many, scan)  # type: ignore[arg-type]
    assert len(many.statements) < 50
    read = " ".join(sql for sql in many.statements if "hash" in sql)
    assert all(f'"t {i}"' in read for i in range(300))


def test_only_the_largest_of_very_many_tables_are_read(
    many: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "FIRST_ROWS_OF_TABLES", 10)
    program.read_tables(many, ["t 1"])  # type: ignore[arg-type]
    read = " ".join(sql for sql in many.statements if "hash" in sql)
    assert all(f'"t {i}"' in read for i in (1, 295, 299))
    assert '"t 5"' not in read


def test_a_missing_required_table_is_named(many: Counting) -> None:
    with pytest.raises(LookupError, match="required table absent"):
        program.read_tables(many, ["absent"])  # type: ignore[arg-type]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("create table t as select 1 i")
    return path


def rows_of(path: Path, waiting: float = 0) -> tuple[int, int]:
    """Read a file through a probe; return the process and the rows of its table."""
    with Probe() as probe:
        time.sleep(waiting)
        return probe.pid, probe.read_tables(path, "file", ["*"]).tables["t"].rows


def test_a_process_that_answered_is_kept_for_the_next_file(file: Path) -> None:
    first, rows = rows_of(file)
    with duckdb.connect(str(file)) as connection:  # the process has not kept the file open
        connection.execute("insert into t values (2)")
    assert (rows, rows_of(file)) == (1, (first, 2))


def test_a_kept_process_that_was_killed_is_replaced(file: Path) -> None:
    first, _ = rows_of(file)
    os.kill(first, signal.SIGKILL)
    time.sleep(0.2)
    second, rows = rows_of(file)
    assert (second != first, rows) == (True, 1)


def test_a_kept_process_that_ends_when_it_is_asked_is_replaced(file: Path) -> None:
    """Because it had waited for too long."""
    pipe = subprocess.PIPE
    ended = subprocess.Popen(
        [sys.executable, "-c", ""], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )
    ended.wait()
    with Probe() as probe:
        process._end(probe._child)
        probe._child, probe._waited = ended, True
        assert probe.read_tables(file, "file", ["*"]).tables["t"].rows == 1


def test_a_damaged_file_ends_the_process_and_not_the_next_probe(file: Path) -> None:
    rows_of(file)
    damaged = file.with_name("damaged.duckdb")
    damaged.write_bytes(file.read_bytes()[:20_000])
    with Probe() as probe, pytest.raises(ProbeFailed):
        probe.read_tables(damaged, "damaged", ["*"])
    assert rows_of(file)[1] == 1


def test_a_forked_process_has_its_own(file: Path) -> None:
    first, _ = rows_of(file)
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(tell, str(rows_of(file)[0]).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(told, 20)) != first
    assert rows_of(file)[0] == first


def test_after_reading_a_large_file_to_the_end_the_process_is_not_kept(
    file: Path, tmp_path: Path
) -> None:
    """It has lowered its priority, and cannot raise it again."""
    large = tmp_path / "large.duckdb"
    with duckdb.connect(str(large)) as connection:
        connection.execute("create table t as select hash(range)::varchar s from range(4000000)")
    assert large.stat().st_size > program.READ_TO_THE_END_BYTES
    first, rows = rows_of(large)
    assert (rows, rows_of(file)[1]) == (4_000_000, 1)
    assert rows_of(file)[0] != first
