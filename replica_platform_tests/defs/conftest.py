"""Whole platforms for tests, each with its own folders and databases."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest

from replica_platform.app.settings import Settings
from replica_platform.definitions import build_defs, build_resources
from replica_platform.defs.sample.input.gym_system import sample_gym_system
from replica_platform.defs.sample.input.source import append_conversations, fill_source
from replica_platform.defs.sample.resources import MASTER


@dataclass
class Platform:
    """A whole platform under test: its settings, definitions and Dagster instance."""

    settings: Settings
    definitions: dg.Definitions
    instance: dg.DagsterInstance

    @property
    def master(self) -> Path:
        """The market's master."""
        return self.settings.path(MASTER)

    def tick(self, sensor: str) -> list[dg.RunRequest]:
        """Return what a sensor requests."""
        repository = self.definitions.get_repository_def()
        with dg.build_sensor_context(
            instance=self.instance,
            repository_def=repository,
            resources=build_resources(self.settings),
        ) as context:
            found = repository.get_sensor_def(sensor).evaluate_tick(context)
            return list(found.run_requests or [])

    def materialise(self, asset: str | None = None) -> dg.ExecuteInProcessResult:
        """Materialise an asset and everything upstream of it, or all assets, with all checks."""
        selection = (
            dg.AssetSelection.assets(dg.AssetKey(asset.split("/"))).upstream()
            if asset
            else dg.AssetSelection.all()
        )
        return self._run(selection)

    def run_only(self, asset: str) -> dg.ExecuteInProcessResult:
        """Materialise an asset without its parents."""
        return self._run(dg.AssetSelection.assets(dg.AssetKey(asset.split("/"))))

    def check(self, asset: str, name: str) -> dg.AssetCheckEvaluation:
        """Run one check and return its evaluation."""
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


MakePlatform = Callable[..., Platform]


@pytest.fixture
def make_platform(database: Callable[[str], str], tmp_path: Path) -> Iterator[MakePlatform]:
    """A function that makes a platform with the sample's input, not materialised yet.

    Its arguments are a name, the folder of its data below `tmp_path`, and further settings.
    """
    with ExitStack() as instances:

        def make(name: str = ".", **settings: object) -> Platform:
            made = Settings(
                data_dir=tmp_path / name,
                source_dsn=database("source"),
                target_dsn=database("target"),
                _env_file=None,
                **settings,
            )
            fill_source(made.source)
            append_conversations(made.outbox_dir / "worker-1.db")
            sample_gym_system(made.data_dir / "sample" / "gym_system.db")
            instance = instances.enter_context(dg.DagsterInstance.ephemeral())
            return Platform(made, build_defs(made), instance)

        yield make


@pytest.fixture
def platform(make_platform: MakePlatform) -> Platform:
    """A platform with the sample's input, not materialised yet."""
    return make_platform()
