"""The program that reads a candidate in its own process: many tables, few statements."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from replica_platform.replica.probe import program


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
