"""The whole graph on real databases: all checks pass, and a second run moves no row."""

import duckdb
import psycopg
import pytest

from replica_platform_tests.defs.conftest import MakePlatform, Platform


def figures(result) -> dict[str, dict]:  # type: ignore[no-untyped-def,type-arg]
    return {
        event.asset_key.to_user_string(): {
            name: value.value for name, value in event.materialization.metadata.items()
        }
        for event in result.get_asset_materialization_events()
    }


def test_the_sync_takes_its_workers_from_the_settings(
    make_platform: MakePlatform, caplog: pytest.LogCaptureFixture
) -> None:
    platform = make_platform(xmin_workers=3, xmin_batch_bytes=65536)
    with caplog.at_level("INFO", "replica_platform.xmin.group"):
        assert platform.materialise("raw_data/prices").success
    assert "workers: 3 were asked for" in caplog.text
    assert "batch bytes: 65,536 were asked for" in caplog.text


def test_everything_once_and_again(platform: Platform) -> None:
    first = platform.materialise()
    assert first.success
    rows = {asset: metadata["dagster/row_count"] for asset, metadata in figures(first).items()}
    assert rows["symbols"] == 5
    assert rows["ohlcv"] == rows["indicators"] == 12154
    assert rows["watchlist"] == rows["watchlist_prices"] == 5
    assert rows["raw_data/prices"] == 12154
    assert rows["raw_data/sym_v1_sym_ticker_exchange"] == 5
    assert rows["conversations"] == 48
    assert all(evaluation.passed for evaluation in first.get_asset_check_evaluations())
    assert len(first.get_asset_check_evaluations()) == 27

    replica = platform.settings.store / "stock_data_replica.db"
    with duckdb.connect(str(replica), read_only=True) as reader:
        assert reader.execute("select count(*) from ohlcv").fetchone() == (12154,)
    with psycopg.connect(platform.settings.target) as target:
        arrived = target.execute("select count(*), min(source_xmin) > 0 from raw_data.prices")
        assert arrived.fetchone() == (12154, True)
        before = target.execute("select sum(xmin::text::bigint) from raw_data.prices").fetchone()

    second = platform.materialise()
    assert second.success
    done = {asset: metadata["done"] for asset, metadata in figures(second).items()}
    assert set(done.values()) == {"unchanged"}
    with psycopg.connect(platform.settings.target) as target:
        after = target.execute("select sum(xmin::text::bigint) from raw_data.prices").fetchone()
    assert after == before
