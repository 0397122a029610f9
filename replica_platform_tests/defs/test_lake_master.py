"""Lakes as entries: none, one, two; exported and published when there is a newer snapshot."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from replica_platform.app.configured import configured
from replica_platform.app.entries import LakeMasterEntry
from replica_platform.components import LakeMaster
from replica_platform.io_managers.published_replica import PublishedReplicaIOManager
from replica_platform.lake import Lake, LakeWriter
from replica_platform.replica import ReplicaReader
from replica_platform.resources.platform import PlatformConfig
from replica_platform.resources.postgres import PostgresDatabase


class Lakes:
    """Two lakes in one catalog, and their definitions."""

    def __init__(self, folder: Path, target: str, instance: dg.DagsterInstance) -> None:
        self.folder, self.target, self.instance = folder, target, instance
        platform = PlatformConfig(data_dir=str(folder), backup_dir=str(folder))
        self.resources = {
            "platform": platform,
            "target": PostgresDatabase(target),
            "published_replica": PublishedReplicaIOManager(platform=platform),
        }

        class Context:
            path = folder

        made = [
            LakeMaster(name=name).build_defs(Context)  # type: ignore[arg-type]
            for name in ("shop", "crm")
        ]
        self.definitions = dg.Definitions.merge(*made, dg.Definitions(resources=self.resources))

    def write(self, name: str, statement: str) -> None:
        lake = Lake(self.target, f"lake_{name}", str(self.folder / "lake" / name))
        with LakeWriter(lake) as writer:
            writer.write(lambda connection: connection.execute(statement))

    def tick(self, name: str) -> list[dg.RunRequest]:
        repository = self.definitions.get_repository_def()
        with dg.build_sensor_context(
            instance=self.instance, repository_def=repository, resources=self.resources
        ) as context:
            found = repository.get_sensor_def(f"{name}_snapshots").evaluate_tick(context)
            return list(found.run_requests or [])

    def run(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        assert request.asset_selection
        selection = dg.AssetSelection.assets(*request.asset_selection)
        job = dg.define_asset_job("selected", selection=selection)
        both = dg.Definitions.merge(self.definitions, dg.Definitions(jobs=[job]))
        return both.resolve_job_def("selected").execute_in_process(
            instance=self.instance, raise_on_error=False
        )

    def rows(self, name: str) -> list[tuple[object, ...]]:
        with ReplicaReader(self.folder / "replica" / name) as reader:
            return reader.query("from t order by i")


@pytest.fixture
def lakes(tmp_path: Path, target: str) -> Iterator[Lakes]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Lakes(tmp_path, target, instance)


def test_two_lakes_are_published_apart(lakes: Lakes) -> None:
    assert lakes.tick("shop") == lakes.tick("crm") == []  # nobody has made them yet
    lakes.write("shop", "create table t as select 1 as i")
    lakes.write("crm", "create table t as select 7 as i")
    for name, rows in (("shop", [(1,)]), ("crm", [(7,)])):
        (request,) = lakes.tick(name)
        result = lakes.run(request)
        assert result.success
        assert all(one.passed for one in result.get_asset_check_evaluations())
        assert lakes.rows(name) == rows
        assert lakes.tick(name) == []
    lakes.write("shop", "insert into t values (2)")
    assert lakes.tick("crm") == []
    (request,) = lakes.tick("shop")
    assert lakes.run(request).success
    assert lakes.rows("shop") == [(1,), (2,)]
    job = lakes.definitions.resolve_job_def("shop_maintenance")
    assert job.execute_in_process(instance=lakes.instance).success
    assert lakes.rows("crm") == [(7,)]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_entries(tmp_path: Path, count: int) -> None:
    for number in range(count):
        (tmp_path / f"l{number}").mkdir()
        (tmp_path / f"l{number}" / "defs.yaml").write_text(
            f"type: replica_platform.components.LakeMaster\nattributes: {{name: l{number}}}\n"
        )
    found = configured(tmp_path).of(LakeMasterEntry)
    assert [one.master for one in found] == [f"lake/l{number}.duckdb" for number in range(count)]
    assert len({one.schema_name for one in found}) == count


def test_the_default_platform_has_no_lake() -> None:
    assert configured().of(LakeMasterEntry) == []
