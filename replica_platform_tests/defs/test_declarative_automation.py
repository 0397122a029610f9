"""Automation over several days: every chain of the graph runs each day, its checks included."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import dagster as dg
import pytest
from dagster._core.definitions.asset_daemon_cursor import AssetDaemonCursor
from dagster._core.definitions.asset_key import EntityKey

from replica_platform.components import duckdb_replica
from replica_platform.replica import Master
from replica_platform_tests.defs.conftest import Platform

# `dg.evaluate_automation_conditions` uses a beta parameter.
pytestmark = pytest.mark.filterwarnings("ignore:Parameter `include_sources` of function")

TICKS_A_DAY = 5
CHAINS = ["market_replica", "watchlist_prices", "purposes/quotes"]
CHECKS = {
    "market_replica:published_bytes_are_intact",
    "market_replica:replica_is_in_sync",
    "market_replica:publication_is_fresh",
    "market_replica:published_since_the_last_session",
    "purposes/quotes:published_bytes_are_intact",
    "purposes/quotes:replica_is_fresh",
    "purposes/quotes:every_column_is_listed",
    "watchlist_prices:prices_are_the_replicas",
}


@dataclass
class Automation:
    """The automation sensor's ticks, each followed by the run that it requests."""

    platform: Platform
    cursor: AssetDaemonCursor | None = None
    asked: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    passed: dict[str, bool] = field(default_factory=dict)

    def run(self, assets: set[dg.AssetKey], checks: set[dg.AssetCheckKey]) -> None:
        """Run exactly these assets and checks, as the daemon does."""
        job = self.platform.definitions.resolve_implicit_global_asset_job_def()
        result = job.get_subset(
            asset_selection=assets, asset_check_selection=checks
        ).execute_in_process(instance=self.platform.instance, raise_on_error=False)
        self.made += [
            event.asset_key.to_user_string()
            for event in result.get_asset_materialization_events()
            if event.asset_key
        ]
        self.passed |= {
            one.asset_check_key.to_user_string(): one.passed
            for one in result.get_asset_check_evaluations()
        }

    def run_market(self) -> None:
        """Run the tables of the market with their checks, as the schedule does."""
        graph = self.platform.definitions.resolve_asset_graph()
        market = dg.AssetSelection.groups("market")
        self.run(set(market.resolve(graph)), set(market.resolve_checks(graph)))

    def tick(self) -> list[str]:
        """Evaluate every condition once, run what is requested, and return its names."""
        graph = self.platform.definitions.resolve_asset_graph()
        result = dg.evaluate_automation_conditions(
            self.platform.definitions, instance=self.platform.instance, cursor=self.cursor
        )
        self.cursor = result.cursor
        # `get_num_requested` knows only assets; the results know checks too.
        entities: set[EntityKey] = {one.key for one in result.results if one.true_subset.size}
        for key in list(entities):
            # A step that cannot be split runs as a whole.
            entities |= graph.get_execution_set_asset_and_check_keys(key)
        assets = {key for key in entities if isinstance(key, dg.AssetKey)}
        checks = {key for key in entities if isinstance(key, dg.AssetCheckKey)}
        if entities:
            self.run(assets, checks)
        names = sorted(key.to_user_string() for key in entities)
        self.asked += names
        return names

    def day(self, after_market: Callable[[], None] = lambda: None) -> list[str]:
        """Run the market and the ticks after it; return what the ticks requested."""
        self.asked, self.made, self.passed = [], [], {}
        self.run_market()
        after_market()
        for _ in range(TICKS_A_DAY):
            last = self.tick()
        assert last == [], "the day does not come to rest"
        return self.asked


@pytest.fixture
def automation(platform: Platform) -> Automation:
    """The automation of a platform that was materialised once, at rest."""
    assert platform.materialise().success
    found = Automation(platform)
    found.tick()
    assert found.tick() == []
    return found


def test_every_chain_runs_once_a_day_with_every_check(automation: Automation) -> None:
    for day in range(3):
        asked = automation.day()
        assert [asked.count(asset) for asset in CHAINS] == [1, 1, 1], (day, asked)
        assert [automation.made.count(asset) for asset in CHAINS] == [1, 1, 1], day
        assert set(asked) >= CHECKS, (day, CHECKS - set(asked))
        assert all(automation.passed.values()), automation.passed


def test_every_check_of_an_automated_asset_is_automated(automation: Automation) -> None:
    graph = automation.platform.definitions.resolve_asset_graph()
    automated = {
        key for key in graph.materializable_asset_keys if graph.get(key).automation_condition
    }
    assert {key.to_user_string() for key in automated} == set(CHAINS)
    without = {
        check.to_user_string()
        for check in graph.get_check_keys_for_assets(automated)
        if not graph.get(check).automation_condition
    }
    # The first is part of the asset's own step, the others run by schedules.
    assert without == {
        "market_replica:candidate_is_sound",
        "market_replica:kept_bytes_are_intact",
        "purposes/quotes:kept_bytes_are_intact",
    }


def test_nothing_is_published_while_a_rule_of_the_master_is_broken(
    automation: Automation,
) -> None:
    def break_a_rule() -> None:
        with Master(automation.platform.master).write() as connection:
            connection.execute("update watchlist set last_price = -1")
        graph = automation.platform.definitions.resolve_asset_graph()
        automation.run(set(), set(graph.get_check_keys_for_assets({dg.AssetKey("watchlist")})))

    assert automation.day(after_market=break_a_rule) == []
    assert not automation.passed["watchlist:rules_hold"]
    asked = automation.day()
    assert [asked.count(asset) for asset in CHAINS] == [1, 1, 1]


def test_a_damaged_replica_reaches_no_table_of_the_target(
    automation: Automation, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = SimpleNamespace(ok=False, sentence="A byte differs.")
    with monkeypatch.context() as patch:
        patch.setattr(duckdb_replica, "verify", lambda _: damaged)
        automation.day()
    assert automation.made.count("market_replica") == 1
    assert not automation.passed["market_replica:published_bytes_are_intact"]
    assert "watchlist_prices" not in automation.made
    automation.day()
    assert automation.made.count("watchlist_prices") == 1
