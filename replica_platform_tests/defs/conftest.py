"""The platform's real parts in folders and databases of their own."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest

from replica_platform.app.sample.gym_system import sample_gym_system
from replica_platform.app.sample.prepare import append_conversations, fill_source
from replica_platform.app.settings import Settings
from replica_platform.definitions import defs
from replica_platform.definitions import resources as resources_of
from replica_platform.io_managers.published_replica import PublishedReplicaIOManager
from replica_platform.resources.store import ReplicaStore


@dataclass
class Platform:
    """A whole platform under test: its settings, definitions and Dagster instance."""

    settings: Settings
    definitions: dg.Definitions
    instance: dg.DagsterInstance

    def materialise(self, asset: str | None = None) -> dg.ExecuteInProcessResult:
        """Materialise an asset and whatever it stands on, or everything, with all checks."""
        selection = (
            dg.AssetSelection.assets(dg.AssetKey(asset.split("/"))).upstream()
            if asset
            else dg.AssetSelection.all()
        )
        return self._run(selection)

    def set_store(self, store: ReplicaStore) -> None:
        """Publish to another store from now on."""
        resources = resources_of(self.settings) | {
            "store": store,
            "published_replica": PublishedReplicaIOManager(store=store),
        }
        self.definitions = dg.Definitions(
            assets=self.definitions.assets,
            asset_checks=self.definitions.asset_checks,
            resources=resources,
            executor=dg.in_process_executor,
        )

    def run_only(self, asset: str) -> dg.ExecuteInProcessResult:
        """Materialise an asset on what its parents are now."""
        return self._run(dg.AssetSelection.assets(dg.AssetKey(asset.split("/"))))

    def check(self, asset: str, name: str) -> dg.AssetCheckEvaluation:
        """Evaluate one check by itself and return its evaluation."""
        key = dg.AssetCheckKey(dg.AssetKey(asset.split("/")), name)
        result = self._run(dg.AssetSelection.checks(key))
        (evaluation,) = (
            one for one in result.get_asset_check_evaluations() if one.asset_check_key == key
        )
        return evaluation

    def _run(self, selection: dg.AssetSelection) -> dg.ExecuteInProcessResult:
        job = dg.define_asset_job("selected", selection=selection)
        definitions = dg.Definitions.merge(self.definitions, dg.Definitions(jobs=[job]))
        return definitions.resolve_job_def("selected").execute_in_process(
            instance=self.instance, raise_on_error=False
        )


@pytest.fixture
def platform(
    source: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Platform]:
    """A platform with the sample's input, nothing materialised yet."""
    monkeypatch.setenv("REPLICA_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("REPLICA_SOURCE_DSN", source)
    monkeypatch.setenv("REPLICA_TARGET_DSN", target)
    monkeypatch.chdir(tmp_path)  # no .env from elsewhere
    settings = Settings()
    fill_source(source)
    append_conversations(settings.outbox_dir / "worker-1.db")
    sample_gym_system(tmp_path / "sample" / "gym_system.db")
    with dg.DagsterInstance.ephemeral() as instance:
        yield Platform(settings, defs(), instance)
