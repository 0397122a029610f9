"""A run loads the definitions again, and knows the tables that its code server knew."""

from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from dagster._core.code_pointer import CodePointer
from dagster._core.definitions.definitions_load_context import DefinitionsLoadContext
from dagster._core.definitions.reconstruct import (
    initialize_repository_def_from_pointer,
    reconstruct_repository_def_from_pointer,
)

from replica_platform.app.settings import Settings
from replica_platform.components.machine import Machine

POINTER = CodePointer.from_module("replica_platform.definitions", "defs", None)
PRICES = dg.AssetKey(["raw_data", "prices"])


@pytest.fixture
def source(
    database: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A source with the sample's table `fds.prices`, which the settings name."""
    dsn = database("source")
    with psycopg.connect(dsn) as connection:
        connection.execute("create schema fds")
        connection.execute("create table fds.prices (fsym_id text primary key)")
        connection.execute("comment on column fds.prices.fsym_id is 'The security'")
    for name, value in {
        "DATA_DIR": str(tmp_path),
        "SOURCE_DSN": dsn,
        "TARGET_DSN": database("target"),
        "SAMPLE": "on",
    }.items():
        monkeypatch.setenv(f"REPLICA_{name}", value)
    yield dsn
    DefinitionsLoadContext.set(None)  # type: ignore[arg-type]


def columns(repository: dg.RepositoryDefinition) -> list[tuple[str, str | None]]:
    schema = repository.asset_graph.get(PRICES).metadata["dagster/column_schema"]
    return [(column.name, column.description) for column in schema.columns]


def told() -> list[tuple[str, str | None]]:
    """The columns that the definitions which were loaded last were told."""
    machine = Machine(Settings(_env_file=None).data_dir)
    tables = {str(one.name): one for one in machine.catalog(None, needed=False).tables}
    prices = tables.get("fds.prices")
    return [(column.name, column.comment) for column in prices.columns] if prices else []


@pytest.mark.filterwarnings("ignore:Function `Definitions.with_reconstruction_metadata`")
def test_a_run_knows_the_columns_of_its_code_server(source: str) -> None:
    server = initialize_repository_def_from_pointer(POINTER)
    assert columns(server) == [("fsym_id", "The security")]
    with psycopg.connect(source) as connection:
        connection.execute("drop table fds.prices")
    run = reconstruct_repository_def_from_pointer(POINTER, server.repository_load_data)
    # What only a page shows is left out of a run; what it reports knows the columns all the same.
    assert "dagster/column_schema" not in run.asset_graph.get(PRICES).metadata
    assert told() == [("fsym_id", "The security")]
    # The control: a run that is told nothing knows nothing.
    DefinitionsLoadContext.set(None)  # type: ignore[arg-type]
    reconstruct_repository_def_from_pointer(POINTER)
    assert told() == []
