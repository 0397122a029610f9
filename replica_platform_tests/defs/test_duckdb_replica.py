"""Any master DuckDB file as an entry: published by its sensor, audited by rules, with purposes."""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import duckdb
import pytest

from replica_platform.components import DuckDBReplica
from replica_platform.io_managers.published_replica import PublishedReplicaIOManager
from replica_platform.metadata import changes_table
from replica_platform.replica import GenerationDiff, Master, ReplicaReader, TableDiff
from replica_platform.resources.platform import PlatformConfig

RULES = {
    "every order has a price": "select id from orders where price is null",
    "prices are positive": "select id, price from orders where price <= 0;",
}
PURPOSE = {"tables": {"orders": {"columns": ["id"], "left_out": ["price"]}}}


class Shop:
    """A master that no asset writes, and the entries that publish it."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        self.folder = folder
        self.master = Master(folder / "shop" / "master.duckdb")
        self._instance = instance
        self.write("create table orders as select 1 as id, 10.0 as price")

    def write(self, statement: str) -> None:
        with self.master.write() as connection:
            connection.execute(statement)

    def entry(self, **attributes: object) -> None:
        """Load an entry with these attributes."""
        given = {"name": "shop", "master": "shop/master.duckdb", "rules": RULES, **attributes}

        class Context:
            path = self.folder

        made = DuckDBReplica(**given).build_defs(Context)  # type: ignore[arg-type]
        platform = PlatformConfig(
            data_dir=str(self.folder), backup_dir=str(self.folder), keep_generations=2
        )
        self._resources = {
            "platform": platform,
            "published_replica": PublishedReplicaIOManager(platform=platform),
        }
        self.definitions = dg.Definitions.merge(made, dg.Definitions(resources=self._resources))

    def tick(self, sensor: str = "shop_repair") -> list[dg.RunRequest]:
        """Return what the sensor requests."""
        repository = self.definitions.get_repository_def()
        with dg.build_sensor_context(
            instance=self._instance, repository_def=repository, resources=self._resources
        ) as context:
            return list(repository.get_sensor_def(sensor).evaluate_tick(context).run_requests or [])

    def run(self, *keys: dg.AssetKey) -> dg.ExecuteInProcessResult:
        """Run assets with their checks."""
        job = dg.define_asset_job("selected", selection=dg.AssetSelection.assets(*keys))
        both = dg.Definitions.merge(self.definitions, dg.Definitions(jobs=[job]))
        return both.resolve_job_def("selected").execute_in_process(
            instance=self._instance, raise_on_error=False
        )

    def published(self) -> list[tuple[object, ...]]:
        with ReplicaReader(self.folder / "replica" / "shop") as reader:
            return reader.query("select id, price from orders order by id")


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Shop(tmp_path, instance)


KEY = dg.AssetKey("shop")


def test_a_master_that_no_asset_writes_is_published_by_the_sensor(shop: Shop) -> None:
    shop.entry(link="shop.db", as_of="select timestamp '2026-01-02 03:04:05'", fresh_within_s=3600)
    (request,) = shop.tick()
    assert request.asset_selection == [KEY]
    result = shop.run(KEY)
    assert result.success
    checks = {one.check_name: one.passed for one in result.get_asset_check_evaluations()}
    assert checks == dict.fromkeys(
        [
            *("candidate_is_sound", "published_bytes_are_intact", "kept_bytes_are_intact"),
            *("replica_is_in_sync", "publication_is_fresh"),
        ],
        True,
    )
    assert shop.published() == [(1, 10)]
    assert shop.tick() == []
    store = shop.folder / "replica" / "shop"
    links = {path.name for path in store.iterdir() if path.is_symlink()}
    assert links == {"shop.db", "master.duckdb"}
    with duckdb.connect(str(store / "shop.db"), read_only=True) as reader:
        assert reader.execute("select count(*) from orders").fetchone() == (1,)
    shop.write("insert into orders values (2, 20)")
    assert len(shop.tick()) == 1
    assert shop.run(KEY).success
    assert shop.published() == [(1, 10), (2, 20)]


def test_a_link_that_is_renamed_leaves_no_other_behind(shop: Shop) -> None:
    shop.entry(link="old.db")
    assert shop.run(KEY).success
    shop.entry(link="new.db")
    assert shop.run(KEY).success  # the master has nothing new
    store = shop.folder / "replica" / "shop"
    links = {path.name for path in store.iterdir() if path.is_symlink()}
    assert links == {"new.db", "master.duckdb"}


def test_a_candidate_that_breaks_a_rule_is_not_published(shop: Shop) -> None:
    shop.entry()
    assert shop.run(KEY).success
    shop.write("insert into orders values (2, -20)")
    result = shop.run(KEY)
    assert not result.success
    (audit,) = result.get_asset_check_evaluations()
    assert "breaks “prices are positive”; readers stay on" in str(audit.description)
    table = audit.metadata["prices are positive"].value
    assert "| id | price |" in table and "| 2 | -20" in table
    assert shop.published() == [(1, 10)]
    shop.write("update orders set price = 20 where id = 2")
    assert shop.run(KEY).success
    assert shop.published() == [(1, 10), (2, 20)]


@pytest.mark.parametrize(
    ("attributes", "cause"),
    [
        ({"rules": {"it is right": "selec 1"}}, "The rule “it is right” cannot be run"),
        ({"as_of": "select max(day) from orders"}, "The query for the age of the data cannot"),
        ({"required": ["customers"]}, "customers"),
        ({"master": "nowhere.duckdb"}, "nowhere.duckdb"),
    ],
)
def test_a_wrong_entry_is_one_sentence_and_publishes_nothing(
    shop: Shop, attributes: dict[str, object], cause: str
) -> None:
    shop.entry(**attributes)
    result = shop.run(KEY)
    assert not result.success
    (failure,) = (event for event in result.all_events if event.is_step_failure)
    sentence = failure.step_failure_data.user_failure_data.description
    assert cause in sentence
    assert not (shop.folder / "replica" / "shop" / "current.json").exists()
    candidates = shop.folder / "replica" / "shop" / "candidates"
    assert not candidates.exists() or list(candidates.iterdir()) == []


def test_purposes_and_retention(shop: Shop) -> None:
    shop.entry(purposes={"ids": PURPOSE}, min_age_s=0)
    part = dg.AssetKey(["shop", "ids"])
    assert len(shop.tick("shop_purposes_repair")) == 1
    for n in range(4):
        shop.write(f"insert into orders values ({n + 2}, 1)")
        assert shop.run(KEY, part).success
    store = shop.folder / "replica" / "shop"
    assert len(list((store / "generations").glob("*.duckdb"))) == 2
    with ReplicaReader(store / "purposes" / "ids") as reader:
        assert reader.query("select * from orders order by id") == [(n,) for n in range(1, 6)]
    assert shop.tick("shop_purposes_repair") == []


@pytest.fixture
def lose(shop: Shop) -> Callable[[], None]:
    def remove() -> None:
        for file in (shop.folder / "replica" / "shop" / "generations").glob("*.duckdb"):
            file.unlink()

    return remove


def test_a_lost_generation_comes_back_from_the_block_store(
    shop: Shop, lose: Callable[[], None]
) -> None:
    shop.entry(blocks="blocks/of/shop")
    assert shop.run(KEY).success
    assert (shop.folder / "blocks" / "of" / "shop").is_dir()
    lose()
    assert len(shop.tick()) == 1
    assert shop.run(KEY).success
    assert shop.published() == [(1, 10)]
    with ReplicaReader(shop.folder / "replica" / "shop") as reader:
        reader.query("select 1")
        assert reader.generation == 1


def test_links_are_called_after_the_replica_and_its_purposes(shop: Shop) -> None:
    shop.master.path.rename(shop.master.path.with_name("shop.db"))
    shop.entry(master="shop/shop.db", purposes={"support": PURPOSE})
    assert shop.run(KEY, dg.AssetKey(["shop", "support"])).success
    store = shop.folder / "replica" / "shop"
    for folder, name in ((store, "shop.db"), (store / "purposes" / "support", "support.db")):
        assert (folder / name).is_symlink()
        assert not (folder / "stock_data_replica.db").exists()
        with duckdb.connect(str(folder / name), read_only=True) as reader:
            assert reader.execute("select count(*) from orders").fetchone() == (1,)


def test_a_publication_shows_what_it_changed(shop: Shop) -> None:
    """By the generation before it, table by table; never a value of a row."""
    shop.entry(rules={})
    assert "changes" not in metadata_of(shop.run(KEY))
    shop.write(
        "insert into orders values (2, 20); delete from orders where id = 1;"
        "create table secrets as select 'hidden' word"
    )
    found = metadata_of(shop.run(KEY))
    assert [found[name].value for name in ("rows_added", "rows_removed", "rows_changed")] == [
        *(2, 1, 0)
    ]
    assert found["compared_with"].value == 1
    text = str(found["changes"].value)
    assert "| orders | 1 | 1 | 0 | no key" in text
    assert "| secrets | 1 | 0 | 0 | table added |" in text
    assert "hidden" not in text
    assert "changes" not in metadata_of(shop.run(KEY))


def test_changes_can_be_left_out(shop: Shop) -> None:
    shop.entry(rules={}, changes=False)
    shop.run(KEY)
    shop.write("insert into orders values (2, 20)")
    assert "changes" not in metadata_of(shop.run(KEY))


def metadata_of(result: dg.ExecuteInProcessResult) -> Mapping[str, dg.MetadataValue]:
    (event,) = result.asset_materializations_for_node("shop")
    return event.metadata


def test_a_table_of_changes_is_bounded() -> None:
    """An event keeps it; the numbers are of all tables."""
    tables = [
        TableDiff(f"table_{number}", rows_added=1, changed_columns={"c" * 60: 1, "d" * 400: 1})
        for number in range(1000)
    ]
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    shown = changes_table(GenerationDiff(1, 2, moment, moment, tables, 0, 0, 1.0))
    assert shown["rows_added"] == 1000
    text = str(shown["changes"].value)
    assert "| and 940 more |" in text
    assert len(text) < 25_000
