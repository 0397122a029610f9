"""Schedules and sensors request the right runs, once, and say why when they skip."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest

from replica_platform.defs.sample.market.schedules import nasdaq_daily_pipeline
from replica_platform.policies import repair_key
from replica_platform.replica import Master, status
from replica_platform_tests.defs.conftest import MakePlatform, Platform


def test_the_pipeline_runs_on_trading_days_only() -> None:
    def on(day: int) -> dg.RunRequest | dg.SkipReason:
        moment = datetime(2026, 11, day, 21, 30, tzinfo=UTC)
        answer = nasdaq_daily_pipeline(dg.build_schedule_context(scheduled_execution_time=moment))
        assert isinstance(answer, dg.RunRequest | dg.SkipReason)
        return answer

    assert isinstance(on(25), dg.RunRequest)
    assert on(26) == dg.SkipReason("2026-11-26 is not a trading day.")  # Thanksgiving


def lose(store: Path) -> None:
    (store / "stock_data_replica.db").resolve().unlink()


def corrupt(store: Path) -> None:
    path = (store / "stock_data_replica.db").resolve()
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(raw)


def outdate(store: Path) -> None:
    with Master(store.parent / "master" / "stock_data.duckdb").write() as connection:
        connection.execute("update symbols set name = name || ' Inc.' where symbol = 'IBM'")


@pytest.mark.parametrize("with_blocks", [False, True])
@pytest.mark.parametrize("damage", [lose, corrupt, outdate])
def test_a_missing_damaged_or_outdated_replica_is_repaired(
    make_platform: MakePlatform,
    tmp_path: Path,
    damage: Callable[[Path], None],
    with_blocks: bool,
) -> None:
    platform = make_platform(block_store=str(tmp_path / "blocks") if with_blocks else None)
    store = platform.settings.store

    def tick() -> list[dg.RunRequest]:
        return platform.tick("market_replica_repair")

    assert tick() == []
    assert platform.materialise("market_replica").success
    assert tick() == []
    damage(store)
    (request,) = tick()
    assert request.asset_selection == [dg.AssetKey("market_replica")]
    repaired = platform.run_only("market_replica")
    assert repaired.success
    assert tick() == []
    # The block store restores the same generation; the master gives a new one.
    generation = 1 if with_blocks and damage is not outdate else 2
    assert status(store).generation == generation
    (made,) = repaired.asset_materializations_for_node("market_replica")
    assert made.tags is not None
    assert made.tags["dagster/data_version"] == str(generation)


def test_nothing_is_published_of_a_master_that_is_not_complete_yet(platform: Platform) -> None:
    assert platform.materialise("symbols").success
    assert platform.master.exists()
    assert platform.tick("market_replica_repair") == platform.tick("purpose_repair") == []
    assert platform.materialise("watchlist").success
    assert platform.tick("market_replica_repair") == []  # indicators are missing
    assert platform.materialise("indicators").success
    assert len(platform.tick("market_replica_repair")) == len(platform.tick("purpose_repair")) == 1


@pytest.mark.parametrize("damage", [lose, corrupt])
def test_a_missing_or_damaged_purpose_is_repaired(
    platform: Platform, damage: Callable[[Path], None]
) -> None:
    assert platform.materialise("purposes/quotes").success

    def tick() -> list[dg.RunRequest]:
        return platform.tick("purpose_repair")

    assert tick() == []
    damage(platform.settings.store / "purposes" / "quotes")
    (request,) = tick()
    assert request.asset_selection == [dg.AssetKey(["purposes", "quotes"])]
    assert platform.run_only("purposes/quotes").success
    assert tick() == []


def test_the_first_two_ticks_ask_for_one_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first tick has no earlier one: it asked again a few seconds later."""
    monkeypatch.setattr("replica_platform.policies.time.time", lambda: 1_800_000_001.0)
    keys = [
        repair_key(SimpleNamespace(last_tick_completion_time=completed), 7)  # type: ignore[arg-type]
        for completed in (None, 1_800_000_006.0, 1_800_000_906.0)
    ]
    assert keys[0] == keys[1] != keys[2]
