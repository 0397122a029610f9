"""The asset graph as people see it: complete, described, and running by itself."""

import dagster as dg
import pytest

from replica_platform.definitions import defs

GRAPH = {
    "symbols": [],
    "ohlcv": ["symbols"],
    "indicators": ["ohlcv"],
    "watchlist": ["ohlcv", "symbols"],
    "market_replica": ["indicators", "ohlcv", "symbols", "watchlist"],
    "watchlist_prices": ["market_replica"],
    "purposes/quotes": ["indicators", "ohlcv", "symbols", "watchlist"],
    "raw_data/sym_v1_sym_ticker_exchange": ["source/fds/sym_v1_sym_ticker_exchange"],
    "raw_data/prices": ["source/fds/prices"],
    "conversations": ["worker_outboxes"],
    "backups/gym_system": [],
}


@pytest.fixture(scope="module")
def definitions() -> dg.Definitions:
    return defs()


def test_the_graph(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    assert {
        key.to_user_string(): sorted(
            parent.to_user_string() for parent in graph.get(key).parent_keys
        )
        for key in graph.materializable_asset_keys
    } == GRAPH


def test_every_asset_says_what_it_is(definitions: dg.Definitions) -> None:
    for spec in definitions.resolve_all_asset_specs():
        assert spec.description, spec.key
        assert spec.kinds, spec.key
        assert spec.group_name in {
            "source", "market", "replica", "warehouse", "outbox", "backups",
        }, spec.key  # fmt: skip
        if spec.group_name != "source":
            assert spec.owners, spec.key
            assert spec.freshness_policy, spec.key


def test_every_pillar_has_a_blocking_check_and_a_freshness_check(
    definitions: dg.Definitions,
) -> None:
    graph = definitions.resolve_asset_graph()
    checks = {
        key.to_user_string(): {
            check.name: graph.get_check_spec(check).blocking
            for check in graph.get_check_keys_for_assets({key})
        }
        for key in graph.materializable_asset_keys
    }
    for asset in ("ohlcv", "market_replica", "raw_data/prices", "conversations"):
        assert any(checks[asset].values()), asset
        assert any("fresh" in name for name in checks[asset]), asset
    assert checks["backups/gym_system"] == {"is_intact": True, "is_fresh": False}


def test_schedules_and_sensors_run_by_default(definitions: dg.Definitions) -> None:
    repository = definitions.get_repository_def()
    status = {s.name: s.default_status.value for s in repository.schedule_defs}
    status |= {s.name: s.default_status.value for s in repository.sensor_defs}
    assert status == dict.fromkeys(
        [
            "nasdaq_daily_pipeline", "fds_sync", "outbox_drain", "nightly_backups",
            "outbox_backlog", "replica_repair", "failed_runs", "declarative_automation",
        ],
        "RUNNING",
    )  # fmt: skip


def test_no_password_reaches_a_page(
    definitions: dg.Definitions, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("source", "target"):
        resource = definitions.resources[key]
        assert isinstance(resource.dsn, dg.EnvVar)
