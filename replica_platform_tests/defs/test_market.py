"""The market through Dagster: the daily pipeline, backfills by days, freshness by the calendar."""

from datetime import UTC, date, datetime
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from replica_platform.defs.sample.market import checks as market_checks
from replica_platform.market import sessions as calendar
from replica_platform.market.sessions import last_delivered_session, sessions
from replica_platform.market.sources import folder as folder_source
from replica_platform.replica import Master, ReplicaReader
from replica_platform_tests.defs.conftest import MakePlatform, Platform
from replica_platform_tests.market.conftest import walk

LAST = date(2025, 10, 9)
# mplfinance and matplotlib under pandas 3.1.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def bars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of bars of three symbols up to LAST, the last session that has closed."""
    monkeypatch.setattr(folder_source, "last_closed_session", lambda: LAST)
    monkeypatch.setattr(market_checks, "last_delivered_session", lambda: LAST)
    path = tmp_path / "bars.csv"
    walk(["A", "B", "C"], sessions(date(2025, 6, 2), LAST)).to_csv(path, index=False)
    return path


@pytest.fixture
def market(make_platform: MakePlatform, bars: Path) -> Platform:
    return make_platform(bars=bars)


def run_job(platform: Platform, **keywords: object) -> dg.ExecuteInProcessResult:
    job = platform.definitions.resolve_job_def("nasdaq_daily_pipeline")
    return job.execute_in_process(instance=platform.instance, raise_on_error=False, **keywords)


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, object]:
    event, *_ = result.asset_materializations_for_node(asset)  # one for each day of a range
    return {name: value.value for name, value in event.metadata.items()}


def test_the_pipeline_is_one_run_from_symbols_to_the_publication(market: Platform) -> None:
    result = run_job(market, partition_key="2025-10-09")
    assert result.success
    assert all(one.passed for one in result.get_asset_check_evaluations())
    made = [e.asset_key.to_user_string() for e in result.get_asset_materialization_events()]
    assert made[:4] == ["symbols", "ohlcv", "indicators", "watchlist"]
    assert "market_replica" in made
    assert str(metadata(result, "watchlist")["chart"]).startswith("![A](data:image/png;base64,")
    with ReplicaReader(market.settings.store) as reader:
        assert reader.query("select max(day) from ohlcv") == [(LAST,)]
    config = {"ops": {"watchlist": {"config": {"symbol": "B"}}}}
    again = run_job(market, partition_key="2025-10-09", run_config=config)
    assert again.success
    assert metadata(again, "ohlcv")["done"] == "unchanged"
    # Who names a symbol wants its picture, whether or not there is news.
    assert str(metadata(again, "watchlist")["chart"]).startswith("![B]")


def test_a_backfill_of_days_reads_these_days_again(market: Platform, bars: Path) -> None:
    assert run_job(market, partition_key="2025-10-09").success
    frame = pd.read_csv(bars)
    frame.loc[frame["day"].between("2025-07-01", "2025-07-03"), "volume"] += 1
    frame.loc[frame["day"] == "2025-07-08", "volume"] += 1  # not asked for
    frame.to_csv(bars, index=False)
    result = run_job(
        market,
        tags={
            "dagster/asset_partition_range_start": "2025-07-01",
            "dagster/asset_partition_range_end": "2025-07-03",
        },
    )
    assert result.success
    found = metadata(result, "ohlcv")
    assert found["done"] == "0 rows new, 9 corrected"
    assert found["first_day_changed"] == "2025-07-01"
    checks = {(o.asset_key.path[-1], o.check_name): o for o in result.get_asset_check_evaluations()}
    assert checks["ohlcv", "rules_hold"].metadata["checked_since"].value == "2025-07-01"


def test_a_broken_rule_ends_the_pipeline_before_the_publication(
    market: Platform, bars: Path
) -> None:
    frame = pd.read_csv(bars)
    sunday = frame.tail(3).assign(day="2025-10-05")
    pd.concat([frame, sunday]).to_csv(bars, index=False)
    result = run_job(market, partition_key="2025-10-09")
    assert not result.success
    (broken,) = [one for one in result.get_asset_check_evaluations() if not one.passed]
    assert "“no bar is of a day without a session”" in str(broken.description)
    assert not (market.settings.store / "current.json").exists()


def test_a_check_reads_what_its_run_wrote_and_alone_everything(market: Platform) -> None:
    result = run_job(market, partition_key="2025-10-09")
    again = run_job(market, partition_key="2025-10-09")

    def since(one: dg.AssetCheckEvaluation) -> object:
        return one.metadata["checked_since"].value

    def rules(result: dg.ExecuteInProcessResult) -> dg.AssetCheckEvaluation:
        (found,) = [
            one for one in result.get_asset_check_evaluations()
            if one.asset_key.path[-1] == "ohlcv" and one.check_name == "rules_hold"
        ]  # fmt: skip
        return found

    assert since(rules(result)) == "2025-06-02"
    assert since(rules(again)) == "9999-12-31"
    assert since(market.check("ohlcv", "rules_hold")) == "the beginning"
    with Master(market.master).write() as connection:
        connection.execute("update ohlcv set low = high + 1 where day = '2025-06-03'")
    assert not market.check("ohlcv", "rules_hold").passed


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ("2026-11-23 12:00", "2026-11-20"),  # Monday morning: Friday
        ("2026-11-23 21:30", "2026-11-20"),  # half an hour after the close: not yet
        ("2026-11-23 23:30", "2026-11-23"),
        ("2026-11-26 23:30", "2026-11-25"),  # Thanksgiving
        ("2026-11-27 20:30", "2026-11-27"),  # closed at 13:00 in New York
    ],
)
def test_bars_are_expected_by_the_exchange_s_calendar(now: str, expected: str) -> None:
    moment = datetime.fromisoformat(now).replace(tzinfo=UTC)
    assert last_delivered_session(moment) == date.fromisoformat(expected)


def test_bars_of_friday_are_fresh_on_monday_morning(
    market: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert market.materialise("ohlcv").success
    real = calendar.last_delivered_session

    def on(now: str) -> dg.AssetCheckEvaluation:
        moment = datetime.fromisoformat(now).replace(tzinfo=UTC)
        monkeypatch.setattr(market_checks, "last_delivered_session", lambda: real(moment))
        monkeypatch.setattr(folder_source, "last_closed_session", lambda: real(moment))
        return market.check("ohlcv", "newest_bar_is_fresh")

    assert on("2025-10-10 12:00").passed  # Friday: bars reach Thursday
    late = on("2025-10-13 12:00")  # Monday morning: Friday's are missing
    assert not late.passed
    assert "should reach 2025-10-10; see whether its delivery is late" in str(late.description)


def test_a_partition_is_a_weekday_and_today_has_one() -> None:
    from replica_platform.defs.sample.market.partitions import TRADING_DAYS

    keys = TRADING_DAYS.get_partition_keys(current_time=datetime(2026, 11, 23, 21, 30, tzinfo=UTC))
    assert keys[-3:] == ["2026-11-19", "2026-11-20", "2026-11-23"]
