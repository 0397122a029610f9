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
    "symbols": ["source/daily_bars"],
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
            "source", "market", "replica", "warehouse", "outbox", "backups", "readers",
        }, spec.key  # fmt: skip
        if spec.group_name not in {"source", "readers"}:
            assert spec.owners, spec.key
            assert spec.freshness_policy, spec.key


def test_every_asset_leads_to_its_line_of_code(definitions: dg.Definitions) -> None:
    for spec in definitions.resolve_all_asset_specs():
        if spec.group_name == "source" or spec.group_name == "readers":
            continue
        found = spec.metadata["dagster/code_references"].code_references
        file, line = found[0].file_path, found[0].line_number
        text = Path(file).read_text().splitlines()
        assert "attributes" in "".join(text) or "def " in "".join(text[line - 1 : line + 20]), spec


def test_what_others_read_and_write_is_in_the_graph(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    outside = {
        key.to_user_string(): {one.to_user_string() for one in graph.get(key).parent_keys}
        for key in graph.external_asset_keys
    }
    assert outside["readers/market_readers"] == {"market_replica"}
    assert outside["readers/quote_producer"] == {"purposes/quotes"}
    assert outside["source/daily_bars"] == set()


def test_each_schedule_and_sensor_that_starts_assets_has_a_named_job(
    definitions: dg.Definitions,
) -> None:
    repository = definitions.get_repository_def()
    jobs = {one.job_name for one in repository.schedule_defs}
    jobs |= {
        target.job_name
        for sensor in repository.sensor_defs
        if not isinstance(sensor, dg.AutomationConditionSensorDefinition)
        for target in sensor.targets
    }
    assert {"nasdaq_daily_pipeline", "fds_sync", "outbox_drain", "nightly_backups"} <= jobs
    # Dagster's names of jobs without one.
    assert [job for job in jobs if job.startswith("__")] == []


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
            "purpose_repair", "outbox_repair", "backups_repair",
            "alerts", "housekeeping", "history",
            "declarative_automation",
        ],
        "RUNNING",
    )  # fmt: skip


# Dagster's own code reads a property that it deprecates.
@pytest.mark.filterwarnings("ignore:Property `ScheduleDefinition.environment_vars`")
def test_no_password_reaches_a_page(tmp_path: Path) -> None:
    dsn = "postgresql://someone:open-sesame@h/d"
    settings = Settings(
        data_dir=tmp_path,
        source_dsn=dsn,
        target_dsn=dsn,
        alert_webhook="https://hooks.example.com/open-sesame",
        alert_mail_server="smtps://ops@mail.example.com",
        alert_mail_to="ops@example.com",
        alert_mail_password="open-sesame",
        _env_file=None,
    )
    platform = build_defs(settings)
    # Everything that the pages and the event log know of a code location.
    known = RepositorySnap.from_def(platform.get_repository_def())
    names = {resource.name for resource in known.resources}
    assert {"source", "target", "xmin_merge", "platform", "alert_receivers"} <= names
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
