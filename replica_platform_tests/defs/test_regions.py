"""Regions of a replica: pulled by each host from the block store, checked, and read there."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from replica_platform.app.entries import DuckDBReplicaEntry, RegionEntry
from replica_platform.app.entries.base import HOST_TAG
from replica_platform.components import DuckDBReplica
from replica_platform.io_managers.published_replica import PublishedReplicaIOManager
from replica_platform.replica import Master, ReplicaReader
from replica_platform.resources.platform import PlatformConfig

SHOP = dg.AssetKey("shop")


def region(host: str) -> dg.AssetKey:
    return dg.AssetKey(["regions", host, "shop"])


class Shop:
    """A master on one machine, and its regions on others; each machine has its data folder."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        self.folder = folder
        self.instance = instance
        self.master = Master(folder / "home" / "shop.duckdb")

    def write(self, statement: str) -> None:
        with self.master.write() as connection:
            connection.execute(statement)

    def definitions(
        self, *hosts: str, machine: str = "home", blocks: bool = True
    ) -> dg.Definitions:
        entry = {
            "name": "shop",
            "master": "shop.duckdb",
            "host": "home",
            "blocks": str(self.folder / "blocks") if blocks else None,
            "regions": [RegionEntry(host=host) for host in hosts],
        }

        class Context:
            path = self.folder

        folder = str(self.folder / machine)
        platform = PlatformConfig(data_dir=folder, backup_dir=folder)
        made = DuckDBReplica(**entry).build_defs(Context)  # type: ignore[arg-type]
        resources = {
            "platform": platform,
            "published_replica": PublishedReplicaIOManager(platform=platform),
        }
        return dg.Definitions.merge(
            made, dg.Definitions(resources=resources, executor=dg.in_process_executor)
        )

    def run(self, key: dg.AssetKey, *hosts: str, **given: object) -> dg.ExecuteInProcessResult:
        """Materialise one asset, on the machine where it lives."""
        machine = "home" if key == SHOP else key.path[1]
        job = dg.define_asset_job("selected", selection=dg.AssetSelection.assets(key))
        both = dg.Definitions.merge(
            self.definitions(*hosts, machine=machine, **given),  # type: ignore[arg-type]
            dg.Definitions(jobs=[job]),
        )
        return both.resolve_job_def("selected").execute_in_process(
            instance=self.instance, raise_on_error=False
        )

    def read(self, host: str) -> list[tuple[object, ...]]:
        with ReplicaReader(self.folder / host / "regions" / host / "shop") as reader:
            return reader.query("select id from orders order by id")


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with dg.DagsterInstance.ephemeral() as instance:
        made = Shop(tmp_path, instance)
        made.write("create table orders as select 1 as id")
        yield made


def checks_of(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    return {one.check_name: one.passed for one in result.get_asset_check_evaluations()}


@pytest.mark.parametrize("hosts", [(), ("eu",), ("eu", "us"), ("eu", "us", "asia", "africa")])
def test_each_region_is_an_asset_of_its_host(shop: Shop, hosts: tuple[str, ...]) -> None:
    repository = shop.definitions(*hosts).get_repository_def()
    keys = {key for key in repository.asset_graph.materializable_asset_keys if key != SHOP}
    assert keys == {region(host) for host in hosts}
    for host in hosts:
        node = repository.asset_graph.get(region(host))
        assert node.tags[HOST_TAG] == host
        assert node.parent_keys == {SHOP}
        assert node.pools == {f"shop_pull_{host}"}
    names = {schedule.name for schedule in repository.schedule_defs}
    assert names == {"shop_scrub", "shop_repair"} | {f"regions_{host}_shop_pull" for host in hosts}
    # A sensor would look at the files of the wrong machine.
    assert [sensor.name for sensor in repository.sensor_defs] == [
        "default_automation_condition_sensor"
    ][: len(hosts)]


def test_a_region_is_pulled_and_read_there(shop: Shop) -> None:
    hosts = ("eu", "us")
    assert shop.run(SHOP, *hosts).success
    pulled = shop.run(region("eu"), *hosts)
    assert pulled.success
    assert checks_of(pulled) == {"pulled_bytes_are_intact": True, "region_is_in_sync": True}
    assert shop.read("eu") == [(1,)]
    shop.write("insert into orders values (2)")
    assert shop.run(SHOP, *hosts).success
    # That us never pulled does not hold eu back.
    assert shop.run(region("eu"), *hosts).success
    assert shop.read("eu") == [(1,), (2,)]
    assert not (shop.folder / "us").exists()


def test_a_region_that_missed_a_generation_says_so(shop: Shop) -> None:
    assert shop.run(SHOP, "eu").success
    assert shop.run(region("eu"), "eu").success
    shop.write("insert into orders values (2)")
    assert shop.run(SHOP, "eu").success
    definitions = shop.definitions("eu", machine="eu")
    (checks,) = [one for one in definitions.asset_checks or () if "regions" in one.node_def.name]  # type: ignore[union-attr]
    late = dg.Definitions(
        asset_checks=[checks], resources=definitions.resources, executor=dg.in_process_executor
    )
    result = late.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=shop.instance, raise_on_error=False
    )
    found = {one.check_name: one for one in result.get_asset_check_evaluations()}
    assert found["pulled_bytes_are_intact"].passed
    assert not found["region_is_in_sync"].passed
    described = str(found["region_is_in_sync"].description)
    assert described == (
        "Readers see generation 1, the block store has 2; materialise regions/eu/shop."
    )
    assert checks_of(shop.run(region("eu"), "eu"))["region_is_in_sync"]  # the remedy


def test_damage_in_a_region_is_healed_by_its_next_pull(shop: Shop) -> None:
    assert shop.run(SHOP, "eu").success
    assert shop.run(region("eu"), "eu").success
    store = shop.folder / "eu" / "regions" / "eu" / "shop"
    (file,) = (path for path in (store / "generations").glob("*.duckdb"))
    file.chmod(0o644)
    content = file.read_bytes()
    file.write_bytes(content[:20_000] + b"damage" + content[20_006:])
    file.chmod(0o444)
    result = shop.run(region("eu"), "eu")
    assert result.success
    assert checks_of(result)["pulled_bytes_are_intact"]
    assert shop.read("eu") == [(1,)]


def test_without_a_block_store_it_says_what_to_set(shop: Shop) -> None:
    result = shop.run(region("eu"), "eu", blocks=False)
    (failure,) = (event for event in result.all_events if event.is_step_failure)
    described = str(failure.step_failure_data.user_failure_data.description)
    assert described == (
        "shop has no block store that eu could pull from; set `blocks` of its entry, or "
        "REPLICA_BLOCK_STORE on every host."
    )
    assert shop.run(SHOP, "eu").success
    assert shop.run(region("eu"), "eu").success  # the remedy


def test_a_host_that_is_away_finds_one_run_in_its_queue(shop: Shop) -> None:
    repository = shop.definitions("eu").get_repository_def()
    schedule = repository.get_schedule_def("regions_eu_shop_pull")
    job = repository.get_job("regions_eu_shop_pull")
    with dg.instance_for_test() as instance:

        def tick() -> object:
            with dg.build_schedule_context(instance=instance) as context:
                return schedule(context)

        assert isinstance(tick(), dg.RunRequest)
        waiting = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
        assert tick() == dg.SkipReason(
            "An earlier run of regions_eu_shop_pull still waits for eu, or runs there."
        )
        instance.delete_run(waiting.run_id)
        assert isinstance(tick(), dg.RunRequest)


@pytest.mark.parametrize(
    ("regions", "cause"),
    [
        ([{"host": "e u"}], "'e u' is not a name"),
        ([{"host": "eu"}, {"host": "eu"}], "eu is listed twice"),
        ([{"host": "eu", "cron_schedule": "often"}], "often"),
        ([{"host": "eu", "fresh_within_s": 0}], "greater than 0"),
        ([{"store": "x"}], "Field required"),
    ],
)
def test_a_wrong_region_is_refused(regions: list[dict[str, object]], cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        DuckDBReplicaEntry.model_validate({"name": "shop", "regions": regions})
