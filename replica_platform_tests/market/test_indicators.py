"""Indicators: TA-Lib's values, computed where closes changed, the same as a rebuild to the bit."""

from datetime import date

import numpy as np
import pytest
import talib

from replica_platform.market.indicators import COLUMNS
from replica_platform.market.tables import indicators as table
from replica_platform.market.tables import load_bars, update_indicators, write_symbols
from replica_platform.replica import Master
from replica_platform_tests.market.conftest import Changeable, run_batch
from replica_platform_tests.market.test_bars import add_days


def all_rows(master: Master) -> list[tuple[object, ...]]:
    """Every row, with its floats as bits: NaN equals NaN, and 0.1 + 0.2 is not 0.3."""
    bits = ", ".join(f"hash({name})" for name in COLUMNS)
    with master.read() as connection:
        return connection.execute(
            f"select symbol, day, {bits} from indicators order by symbol, day"
        ).fetchall()


def rebuilt(master: Master) -> list[tuple[object, ...]]:
    with master.write() as connection:
        connection.execute("drop table indicators")
        connection.execute("update bar_coverage set indicators_from = first_day")
    update_indicators(master)
    return all_rows(master)


def test_a_moving_average_is_the_mean_of_its_window(sample: Master) -> None:
    with sample.read() as connection:
        row = connection.execute(
            "select sma_20, mean from indicators join (select symbol, day, avg(close) over"
            " (partition by symbol order by day rows 19 preceding) mean from ohlcv)"
            " using (symbol, day) where symbol = 'IBM' and day = '2012-06-01'"
        ).fetchone()
    assert row is not None
    assert row[0] == pytest.approx(row[1])


def test_values_are_those_of_talib_over_the_whole_history(sample: Master) -> None:
    """A window of two to three years forgets nothing that a float can show."""
    with sample.read() as connection:
        rows = connection.execute(
            "select close, ema_20, rsi_14, macd, macd_signal, sma_50, bollinger_upper from ohlcv"
            " join indicators using (symbol, day) where symbol = 'IBM' order by day"
        ).fetchnumpy()
    closes = np.asarray(rows["close"])
    whole = {
        "ema_20": talib.EMA(closes, 20),
        "rsi_14": talib.RSI(closes, 14),
        "macd": talib.MACD(closes)[0],
        "macd_signal": talib.MACD(closes)[1],
        "sma_50": talib.SMA(closes, 50),
        "bollinger_upper": talib.BBANDS(closes, 20)[0],
    }
    for name, expected in whole.items():
        found = np.ma.filled(rows[name], np.nan)
        assert np.array_equal(np.isnan(found), np.isnan(expected)), name
        assert np.nanmax(np.abs(found / expected - 1)) < 1e-9, name


def test_days_one_by_one_equal_a_rebuild(master: Master, source: Changeable) -> None:
    run_batch(master, source)
    add_days(source, 4)
    later = source.frame
    for day in sorted(later["day"].unique())[-4:]:
        source.frame = later[later["day"] <= day]
        load_bars(master, source)
        update_indicators(master)
    assert len(all_rows(master)) == len(later)
    assert all_rows(master) == rebuilt(master)


def test_one_more_day_computes_that_day_alone(
    master: Master, source: Changeable, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_batch(master, source)
    add_days(source, 1)
    load_bars(master, source)
    wanted = []
    compute = table.compute_many
    monkeypatch.setattr(
        table, "compute_many", lambda c, v, w: wanted.append((len(w), w.sum())) or compute(c, v, w)
    )
    written = update_indicators(master)
    assert (written.inserted, written.updated) == (4, 0)
    ((read, computed),) = wanted
    assert computed == 4
    assert read < 4 * 3 * 262  # three years of closes at most
    assert not update_indicators(master).changed


def test_a_corrected_close_changes_what_follows_and_equals_a_rebuild(
    master: Master, source: Changeable
) -> None:
    run_batch(master, source)
    at = source.frame[source.frame["symbol"] == "B"].index[-5]
    source.frame.loc[at, "close"] = round(source.frame.loc[at, "close"] * 1.005, 2)
    load_bars(master, source)
    written = update_indicators(master)
    assert (written.inserted, written.updated) == (0, 5)
    assert all_rows(master) == rebuilt(master)


def test_an_older_correction_reaches_two_years_and_no_further(
    master: Master, source: Changeable
) -> None:
    run_batch(master, source)
    frame = source.frame
    at = frame[(frame["symbol"] == "B") & (frame["day"] < "2023-01-01")].index[-1]
    frame.loc[at, "close"] = round(frame.loc[at, "close"] * 1.005, 2)
    day = frame.loc[at, "day"].date()
    load_bars(master, source, start=day, end=day)
    update_indicators(master)
    assert all_rows(master) == rebuilt(master)
    with master.read() as connection:
        assert connection.execute(
            "select first_day from batches where table_name = 'indicators' order by batch"
        ).fetchall()[1] == (day,)


def test_a_volume_alone_computes_nothing(master: Master, source: Changeable) -> None:
    run_batch(master, source)
    source.frame.loc[source.frame.index[-1], "volume"] += 1
    assert load_bars(master, source).updated == 1
    assert not update_indicators(master).changed


@pytest.mark.parametrize(
    "damage",
    [
        "delete from indicators where day > '2025-01-01'",
        "drop table indicators",
        "alter table indicators drop column rsi_14",
        "delete from ohlcv where symbol = 'A' and day = '2025-03-03'",
        "drop table bar_coverage",
    ],
)
def test_what_was_changed_by_hand_is_computed_again(
    master: Master, source: Changeable, damage: str
) -> None:
    run_batch(master, source)
    with master.write() as connection:
        connection.execute(damage)
    update_indicators(master)
    assert all_rows(master) == rebuilt(master)
    with master.read() as connection:
        assert connection.execute(
            "select (select count(*) from ohlcv) = (select count(*) from indicators)"
        ).fetchone() == (True,)


def test_a_rebuild_that_is_interrupted_goes_on(
    master: Master, source: Changeable, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_symbols(master, source)
    load_bars(master, source)
    monkeypatch.setattr(table, "SYMBOL_YEARS", 1)  # a year at a time

    def interrupt(done: int, total: int, unit: str = "") -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update_indicators(master, progress=interrupt)
    with master.read() as connection:
        first, last = connection.execute("select min(day), max(day) from indicators").fetchone()
    assert (first, last.year) == (date(2022, 10, 10), 2023)
    update_indicators(master)
    assert all_rows(master) == rebuilt(master)


def test_bars_written_meanwhile_are_not_missed(
    master: Master, source: Changeable, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_batch(master, source)
    add_days(source, 2)
    both = source.frame
    source.frame = both[both["day"] < both["day"].max()]
    load_bars(master, source)
    compute, times = table._compute_year, []

    def slow(connection: object, year: int) -> object:
        times.append(year)
        return compute(connection, year)

    monkeypatch.setattr(table, "_compute_year", slow)
    real_write = master.write
    written = []

    def write_after_another() -> object:
        if not written:
            written.append(True)
            source.frame = both
            monkeypatch.setattr(master, "write", real_write)
            load_bars(master, source)
        return real_write()

    monkeypatch.setattr(master, "write", write_after_another)
    update_indicators(master)
    assert times == [2025, 2025]  # computed again from the newer bars
    assert all_rows(master) == rebuilt(master)
