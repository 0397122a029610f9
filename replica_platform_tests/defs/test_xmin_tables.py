"""Tables by name and by pattern: resolved by the source's list of tables, described by it."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from dagster._core.definitions.definitions_load_context import (
    DefinitionsLoadContext,
    DefinitionsLoadType,
)
from dagster._core.definitions.repository_definition import RepositoryLoadData

from replica_platform.app.catalog import KEPT, Catalog, CatalogFolder
from replica_platform.app.entries import TableEntry
from replica_platform.components import XminTables
from replica_platform.components.machine import Machine, loading_on
from replica_platform.definitions import without_repeats
from replica_platform.resources.platform import PlatformConfig
from replica_platform.resources.postgres import PostgresDatabase
from replica_platform.xmin import list_tables
from replica_platform_tests.xmin.helpers import execute, rows

AWAY = "postgresql://nobody@127.0.0.1:1/nothing"
TABLES = (
    "create schema shop",
    "create table shop.customer (id int primary key, email text, password text)",
    "create table shop.orders (id int primary key, customer int references shop.customer)",
    "create table shop.session_1 (id int primary key)",
    "create view shop.all_orders as select * from shop.orders",
    "create table public.orders (id int primary key)",
    "comment on table shop.orders is 'What was bought.'",
    "comment on column shop.orders.customer is 'Who bought it.'",
    "insert into shop.customer values (1, 'ada@x', 'secret')",
    "insert into shop.orders values (7, 1)",
)
PATTERNS = [
    TableEntry(table="shop.*", exclude=["shop.session_*"], left_out=["password"]),
    TableEntry(table="shop.customer", mask={"email": "hash"}, left_out=["password"]),
]


class Loaded:
    """An entry loaded on a machine, and what it makes."""

    def __init__(self, folder: Path, source: str, target: str) -> None:
        self.folder, self.source, self.target = folder, source, target

    def load(
        self,
        *tables: TableEntry,
        context: DefinitionsLoadContext | None = None,
        **attributes: object,
    ) -> dg.Definitions:
        """Load an entry as a code server does, or as `context` says."""
        entry = XminTables(tables=tables or PATTERNS, **{"salt_env": "SALT", **attributes})
        with (
            loading_on(Machine(self.folder, self.source)),
            DefinitionsLoadContext.scoped(
                context or DefinitionsLoadContext(DefinitionsLoadType.INITIALIZATION)
            ),
        ):
            made = entry.build_defs(None)  # type: ignore[arg-type]
        resources = {
            "platform": PlatformConfig(data_dir=str(self.folder), backup_dir=str(self.folder)),
            "source": PostgresDatabase(self.source),
            "target": PostgresDatabase(self.target),
        }
        self.definitions = without_repeats(
            dg.Definitions.merge(made, dg.Definitions(resources=resources))
        )
        return self.definitions

    @property
    def keys(self) -> set[str]:
        graph = self.definitions.resolve_asset_graph()
        return {key.to_user_string() for key in graph.materializable_asset_keys}

    def run(self, selection: dg.AssetSelection | None = None) -> dg.ExecuteInProcessResult:
        job = dg.define_asset_job("selected", selection=selection or dg.AssetSelection.all())
        both = dg.Definitions.merge(self.definitions, dg.Definitions(jobs=[job]))
        with dg.DagsterInstance.ephemeral() as instance:
            return both.resolve_job_def("selected").execute_in_process(
                instance=instance, raise_on_error=False
            )

    def check(self) -> dg.AssetCheckEvaluation:
        key = dg.AssetCheckKey(dg.AssetKey("warehouse_catalog"), "every_matching_table_is_synced")
        (found,) = self.run(dg.AssetSelection.checks(key)).get_asset_check_evaluations()
        return found


@pytest.fixture
def loaded(
    tmp_path: Path, source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Loaded]:
    monkeypatch.setenv("SALT", "pepper")
    execute(source, *TABLES)
    yield Loaded(tmp_path, source, target)


def test_a_pattern_takes_tables_that_no_other_entry_names(loaded: Loaded) -> None:
    loaded.load()
    assert loaded.keys == {"raw_data/customer", "raw_data/orders"}
    loaded.load(TableEntry(table="*.orders", exclude=["public.orders"]))
    assert loaded.keys == {"raw_data/orders"}
    loaded.load(TableEntry(table="*.*"), into=None)
    assert loaded.keys == {
        "shop/customer", "shop/orders", "shop/session_1", "public/orders",
    }  # fmt: skip
    result = loaded.run()
    assert result.success
    assert rows(loaded.target, "select id from shop.orders") == [(7,)]


def test_columns_are_left_out_masked_and_described(loaded: Loaded) -> None:
    loaded.load()
    result = loaded.run()
    assert result.success
    assert all(one.passed for one in result.get_asset_check_evaluations())
    (customer,) = rows(loaded.target, "select to_jsonb(c) from raw_data.customer c")
    assert set(customer[0]) == {"id", "email", "source_xmin", "source_ctid"}
    assert "ada" not in str(customer) and len(customer[0]["email"]) == 64
    specs = {
        spec.key.to_user_string(): spec for spec in loaded.definitions.resolve_all_asset_specs()
    }
    orders = specs["raw_data/orders"]
    assert str(orders.description).startswith("What was bought.")
    columns = {one.name: one for one in orders.metadata["dagster/column_schema"].columns}
    assert columns["customer"].description == "Who bought it. Refers to shop.customer.id."
    assert (columns["id"].type, columns["id"].constraints.nullable) == ("integer", False)
    email = specs["raw_data/customer"].metadata["dagster/column_schema"].columns[1]
    assert (email.name, email.type, email.description) == ("email", "text", "(masked: hash)")
    lineage = orders.metadata["dagster/column_lineage"].deps_by_column["customer"]
    source_key = dg.AssetKey(["source", "shop", "orders"])
    assert lineage == [dg.TableColumnDep(asset_key=source_key, column_name="customer")]
    made = {
        event.asset_key.to_user_string(): event.materialization.metadata
        for event in result.get_asset_materialization_events()
    }
    # The page shows the columns of the definition, unless a materialisation says others.
    assert "dagster/column_schema" not in made["raw_data/orders"]


def test_a_salt_that_is_not_set_fails_in_one_sentence(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded.load()
    monkeypatch.delenv("SALT")
    result = loaded.run()
    (failure,) = (event for event in result.all_events if event.is_step_failure)
    sentence = failure.step_failure_data.user_failure_data.description
    assert "masks by hash, and SALT is not set" in sentence
    assert rows(loaded.target, "select to_regclass('raw_data.customer')") == [(None,)]


def test_definitions_load_while_the_source_is_away(loaded: Loaded) -> None:
    loaded.load()
    before = loaded.keys
    loaded.source = AWAY
    loaded.load()
    assert loaded.keys == before
    schema = loaded.definitions.resolve_all_asset_specs()[0].metadata
    assert schema["dagster/column_schema"]


def test_without_any_list_only_named_tables_are_loaded(
    loaded: Loaded, caplog: pytest.LogCaptureFixture
) -> None:
    loaded.source = AWAY
    loaded.load()
    assert loaded.keys == {"raw_data/customer"}
    assert "The source does not tell its tables, so no tables are taken" in caplog.text


def test_a_new_table_is_named_by_the_check_and_arrives_at_the_next_reload(loaded: Loaded) -> None:
    loaded.load()
    assert loaded.check().passed
    execute(
        loaded.source,
        "create table shop.item (id int primary key)",
        "drop table shop.orders cascade",
    )
    found = loaded.check()
    assert not found.passed
    assert found.severity == dg.AssetCheckSeverity.WARN
    assert "shop.item: new in the source, and not synced yet." in str(found.description)
    assert "shop.orders: no longer in the source." in str(found.description)
    assert "Reload the definitions" in str(found.description)
    loaded.load()
    assert loaded.keys == {"raw_data/customer", "raw_data/item"}
    assert loaded.check().passed


def test_a_run_has_the_tables_of_its_code_server(loaded: Loaded) -> None:
    served = loaded.load()
    metadata = served.metadata
    keys = loaded.keys
    execute(loaded.source, "create table shop.item (id int primary key)")
    in_a_run = DefinitionsLoadContext(
        DefinitionsLoadType.RECONSTRUCTION,
        RepositoryLoadData(
            cacheable_asset_data={},
            reconstruction_metadata={
                name: value
                for name, value in metadata.items()
                if name.startswith("replica_platform/catalog/")
            },
        ),
    )
    loaded.load()  # another code server, which stores the newer list
    assert loaded.keys == keys | {"raw_data/item"}
    loaded.load(context=in_a_run)
    assert loaded.keys == keys
    # Only the pages of a code server show columns.
    specs = loaded.definitions.resolve_all_asset_specs()
    assert not [spec.key for spec in specs if "dagster/column_schema" in spec.metadata]
    result = loaded.run()
    assert result.success
    orders = next(
        event.materialization.metadata
        for event in result.get_asset_materialization_events()
        if event.asset_key == dg.AssetKey(["raw_data", "orders"])
    )
    # As told by the code server, so that the event need not repeat them.
    assert "dagster/column_schema" not in orders


def test_a_second_source_and_target(
    loaded: Loaded, database: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, lake = database("other"), database("lake")  # type: ignore[operator]
    execute(other, "create table orders (id int primary key)", "insert into orders values (3)")
    monkeypatch.setenv("ERP_DSN", other)
    monkeypatch.setenv("LAKE_DSN", lake)
    loaded.load(
        TableEntry(table="public.*"), name="erp", source="ERP_DSN", target="LAKE_DSN", into="erp"
    )
    assert loaded.keys == {"lake/erp/orders"}
    assert loaded.run().success
    assert rows(lake, "select id from erp.orders") == [(3,)]
    external = loaded.definitions.resolve_asset_graph().external_asset_keys
    assert dg.AssetKey(["erp", "public", "orders"]) in external
    monkeypatch.delenv("ERP_DSN")
    loaded.load(
        TableEntry(table="public.*"), name="erp", source="ERP_DSN", target="LAKE_DSN", into="erp"
    )
    assert loaded.keys == {"lake/erp/orders"}  # from the list of before
    (failure,) = (event for event in loaded.run().all_events if event.is_step_failure)
    sentence = failure.step_failure_data.user_failure_data.description
    assert "The environment variable ERP_DSN is not set; set it to a DSN" in sentence


def test_lists_of_tables_are_kept_by_their_content(tmp_path: Path, source: str) -> None:
    folder = CatalogFolder(tmp_path, None)
    assert folder.newest() == Catalog()
    kept = []
    for n in range(KEPT + 2):
        execute(
            source,
            f"create table t{n} (id int primary key, o int references t0 (id))"
            if n
            else "create table t0 (id int primary key)",
        )
        kept.append(Catalog.of(list_tables(source)))
        folder.store(kept[-1])
    assert folder.newest() == kept[-1]
    assert folder.find(kept[-2].digest) == kept[-2]
    assert folder.find(kept[0].digest) == kept[-1]  # no longer kept
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute("insert into t0 select generate_series(1, 1000)")
        connection.execute("analyze")
    assert Catalog.of(list_tables(source)).digest == kept[-1].digest
    for file in (tmp_path / "catalog" / "replica_source_dsn").glob("*.json"):
        file.write_text("{")
    assert folder.newest() == Catalog()
