"""What runs by itself asks for the right thing, once, and says why when it does not."""

from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from replica_platform.defs.automation import nasdaq_daily_pipeline, replica_repair
from replica_platform.replica import status
from replica_platform.resources.master import MasterDuckDB
from replica_platform.resources.store import ReplicaStore
from replica_platform_tests.pillars.conftest import Platform


def test_the_pipeline_runs_on_trading_days_only() -> None:
    def on(day: int) -> dg.RunRequest | dg.SkipReason:
        moment = datetime(2026, 11, day, 21, 30, tzinfo=UTC)
        answer = nasdaq_daily_pipeline(dg.build_schedule_context(scheduled_execution_time=moment))
        assert isinstance(answer, dg.RunRequest | dg.SkipReason)
        return answer

    assert isinstance(on(25), dg.RunRequest)
    assert on(26) == dg.SkipReason("2026-11-26 is not a trading day.")  # Thanksgiving


@pytest.mark.parametrize("with_blocks", [False, True])
def test_a_replica_that_is_gone_is_repaired(
    platform: Platform, tmp_path: Path, with_blocks: bool
) -> None:
    master = MasterDuckDB(database=str(platform.settings.master))
    store = ReplicaStore(
        folder=str(platform.settings.store),
        blocks=str(tmp_path / "blocks") if with_blocks else None,
    )
    platform.set_store(store)

    def tick() -> dg.RunRequest | dg.SkipReason:
        (answer,) = replica_repair(dg.build_sensor_context(), master=master, store=store)
        return answer

    assert tick() == dg.SkipReason("There is no master yet.")
    assert platform.materialise("market_replica").success
    assert isinstance(tick(), dg.SkipReason)
    (platform.settings.store / "stock_data_replica.db").resolve().unlink()
    assert isinstance(tick(), dg.RunRequest)
    assert platform.run_only("market_replica").success
    assert isinstance(tick(), dg.SkipReason)
    # From the block store the same generation comes back; from the master a new one.
    assert status(store.path).generation == (1 if with_blocks else 2)
