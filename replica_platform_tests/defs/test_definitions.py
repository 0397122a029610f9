"""The asset graph as people see it: complete, described, scheduled, and without secrets."""

import os
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.remote_representation.external_data import RepositorySnap
from dagster._serdes import serialize_value

from replica_platform.app.settings import Settings
from replica_platform.definitions import build_defs, defs

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


def test_every_asset_is_described_and_owned(definitions: dg.Definitions) -> None:
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
    assert checks["backups/gym_system"] == {
        "is_intact": True,
        "is_fresh": False,
        "is_restorable": False,
    }


def test_schedules_and_sensors_run_by_default(definitions: dg.Definitions) -> None:
    repository = definitions.get_repository_def()
    status = {s.name: s.default_status.value for s in repository.schedule_defs}
    status |= {s.name: s.default_status.value for s in repository.sensor_defs}
    assert status == dict.fromkeys(
        [
            "nasdaq_daily_pipeline", "fds_sync", "outbox_drain", "nightly_backups",
            "outbox_backlog", "market_replica_scrub", "purpose_scrub", "market_replica_repair",
            "purpose_repair",
            "failed_runs", "failed_ticks",
            "declarative_automation",
        ],
        "RUNNING",
    )  # fmt: skip


# Dagster's own code reads a property that it deprecates.
@pytest.mark.filterwarnings("ignore:Property `ScheduleDefinition.environment_vars`")
def test_no_password_reaches_a_page(tmp_path: Path) -> None:
    dsn = "postgresql://someone:open-sesame@h/d"
    platform = build_defs(Settings(data_dir=tmp_path, source_dsn=dsn, target_dsn=dsn))
    # Everything that the pages and the event log know of a code location.
    known = RepositorySnap.from_def(platform.get_repository_def())
    assert {"source", "target", "xmin_merge", "platform"} <= {r.name for r in known.resources}
    assert str(tmp_path) in serialize_value(known)
    assert "open-sesame" not in serialize_value(known)
    assert "open-sesame" not in repr(platform.resources)


def test_loading_leaves_the_environment_alone() -> None:
    before = dict(os.environ)
    defs()
    assert dict(os.environ) == before


def test_checks_of_one_step_are_one_definition(definitions: dg.Definitions) -> None:
    """Dagster would convert the checks of a step once for each: 14 s for 1,000 tables."""
    repository = definitions.get_repository_def()
    objects = {
        id(checks): checks.op.name for checks in repository.asset_checks_defs_by_key.values()
    }
    assert sorted(objects.values()) == sorted(set(objects.values()))
