"""When an asset follows its parents: no update of a parent is passed over, none counts twice."""

import time
from collections.abc import Iterator

import dagster as dg
import pytest
from dagster._core.definitions.asset_daemon_cursor import AssetDaemonCursor

from replica_platform.policies import AFTER_PARENTS

pytestmark = pytest.mark.filterwarnings("ignore:Parameter `include_sources` of function")


@dg.asset
def stock() -> None:
    """A parent."""


@dg.asset(deps=[stock], automation_condition=AFTER_PARENTS)
def shop() -> None:
    """What follows it."""


@dg.asset(deps=[stock], automation_condition=dg.AutomationCondition.eager())
def eager_shop() -> None:
    """The control: what follows it by Dagster's own condition."""


DEFINITIONS = dg.Definitions([stock, shop, eager_shop])


class Daemon:
    """The ticks of an automation sensor over what is materialised by hand."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self._cursor: AssetDaemonCursor | None = None

    def materialise(self, *assets: dg.AssetsDefinition) -> None:
        time.sleep(0.01)  # timestamps tell which of two came first
        everything = [stock, shop, eager_shop]
        assert dg.materialize(everything, selection=[*assets], instance=self.instance).success

    def tick(self) -> set[str]:
        """Return the names of what a tick asks for."""
        time.sleep(0.01)
        result = dg.evaluate_automation_conditions(
            DEFINITIONS, instance=self.instance, cursor=self._cursor
        )
        self._cursor = result.cursor
        return {one.key.to_user_string() for one in result.results if one.true_subset.size}

    def begin(self, asset: dg.AssetsDefinition) -> dg.DagsterRun:
        """Begin a run of an asset that does not end."""
        job = DEFINITIONS.resolve_implicit_global_asset_job_def().get_subset(
            asset_selection={asset.key}
        )
        run = self.instance.create_run_for_job(job, asset_selection=frozenset({asset.key}))
        self.instance.report_dagster_event(
            dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, job.name), run.run_id
        )
        return run


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with dg.DagsterInstance.ephemeral() as instance:
        found = Daemon(instance)
        found.materialise(stock, shop, eager_shop)
        found.tick()
        assert found.tick() == set()
        yield found


def test_an_update_of_a_parent_is_followed_once(daemon: Daemon) -> None:
    daemon.materialise(stock)
    assert daemon.tick() == {"shop", "eager_shop"}
    daemon.materialise(shop, eager_shop)
    assert daemon.tick() == set()
    assert daemon.tick() == set()


def test_an_update_right_after_the_asset_is_followed(daemon: Daemon) -> None:
    daemon.materialise(stock)
    daemon.tick()
    daemon.materialise(shop, eager_shop)
    daemon.materialise(stock)
    # Dagster's own condition lets it go: in one tick, the asset's own update counts.
    assert daemon.tick() == {"shop"}
    daemon.materialise(shop)
    assert daemon.tick() == set()
    assert daemon.tick() == set()


def test_an_update_while_the_asset_is_made_is_followed(daemon: Daemon) -> None:
    daemon.materialise(stock)
    daemon.tick()
    runs = [daemon.begin(asset) for asset in (shop, eager_shop)]
    assert daemon.tick() == set()
    daemon.materialise(stock)
    assert daemon.tick() == set()  # both are in progress
    for run in runs:
        daemon.instance.report_run_canceled(run)
    daemon.materialise(shop, eager_shop)
    assert daemon.tick() == {"shop"}
    daemon.materialise(shop)
    assert daemon.tick() == set()


def test_what_is_made_with_its_parent_is_not_made_again(daemon: Daemon) -> None:
    for _ in range(3):
        daemon.materialise(stock, shop, eager_shop)
        assert daemon.tick() == set()
    assert daemon.tick() == set()


def test_what_was_asked_for_and_not_made_is_not_asked_for_again(daemon: Daemon) -> None:
    daemon.materialise(stock)
    assert "shop" in daemon.tick()
    # Its run failed: whoever retries it is Dagster, not the automation.
    assert daemon.tick() == set()
    assert daemon.tick() == set()
