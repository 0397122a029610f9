"""The master's tables: their content, and that an unchanged batch writes nothing."""

from datetime import date

import duckdb
import pandas as pd
import pytest
from replica_platform.market.bars import load_bars

from replica_platform.market.checks import RULES, broken_rules
from replica_platform.market.tables import (
    newest_day,
    write_indicators,
    write_ohlcv,
    write_symbols,
    write_watchlist,
)


@pytest.fixture(scope="module")
def bars() -> pd.DataFrame:
    return load_bars().frame


@pytest.fixture
def master(bars: pd.DataFrame) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    write_symbols(connection, bars)
    write_ohlcv(connection, bars)
    write_indicators(connection)
    write_watchlist(connection)
    return connection


def test_the_sample_is_12154_real_bars(master: duckdb.DuckDBPyConnection) -> None:
    assert master.execute("select count(*) from ohlcv").fetchone() == (12154,)
    assert newest_day(master) == date(2013, 3, 1)
    assert master.execute("from symbols where symbol = 'FB'").fetchone() == (
        "FB", "Facebook, Inc.", date(2012, 5, 18), date(2013, 3, 1),
    )  # fmt: skip


def test_a_moving_average_is_the_mean_of_its_window(master: duckdb.DuckDBPyConnection) -> None:
    row = master.execute(
        "select sma_20, mean from indicators join (select symbol, day, avg(close) over"
        " (partition by symbol order by day rows 19 preceding) mean from ohlcv)"
        " using (symbol, day) where symbol = 'IBM' and day = '2012-06-01'"
    ).fetchone()
    assert row is not None
    assert row[0] == pytest.approx(row[1])


def test_the_same_batch_again_changes_nothing(
    master: duckdb.DuckDBPyConnection, bars: pd.DataFrame
) -> None:
    assert not write_symbols(master, bars).changed
    assert not write_ohlcv(master, bars).changed
    assert not write_indicators(master).changed
    assert not write_watchlist(master).changed


def test_one_corrected_price_is_a_change(
    master: duckdb.DuckDBPyConnection, bars: pd.DataFrame
) -> None:
    corrected = bars.copy()
    corrected.loc[0, "close"] += 0.01
    written = write_ohlcv(master, corrected)
    assert written.changed
    assert written.rows == 12154
    assert write_indicators(master).changed


def test_every_rule_holds_for_the_sample(master: duckdb.DuckDBPyConnection) -> None:
    assert [broken_rules(master, table) for table in RULES] == [[], [], [], []]


@pytest.mark.parametrize(
    ("damage", "table", "rule"),
    [
        ("insert into symbols from symbols limit 1", "symbols", "symbol is unique"),
        ("update symbols set name = null", "symbols", "every symbol is named"),
        ("delete from ohlcv", "ohlcv", "there are bars"),
        ("insert into ohlcv from ohlcv limit 1", "ohlcv", "one bar a symbol and day"),
        ("update ohlcv set low = high + 1", "ohlcv", "prices are sane"),
        ("update ohlcv set close = 'nan'", "ohlcv", "prices are sane"),
        ("update ohlcv set open = null", "ohlcv", "prices are sane"),
        ("update ohlcv set volume = -1", "ohlcv", "volume is not negative"),
        ("delete from ohlcv where symbol = 'FB'", "ohlcv", "every symbol has bars"),
        ("delete from indicators where symbol = 'FB'", "indicators", "one row a bar"),
        ("update indicators set rsi_14 = 101", "indicators", "RSI lies between 0 and 100"),
        (
            "update indicators set bollinger_upper = -1",
            "indicators",
            "bands enclose their middle",
        ),
        ("delete from watchlist", "watchlist", "something is watched"),
        ("update watchlist set last_price = 0", "watchlist", "every watched symbol has a price"),
        (
            "update watchlist set as_of = '2001-01-01'",
            "watchlist",
            "prices are those of the newest bar",
        ),
    ],
)
def test_damage_breaks_the_rule_for_it(
    master: duckdb.DuckDBPyConnection, damage: str, table: str, rule: str
) -> None:
    master.execute(damage)
    assert rule in [broken.rule for broken in broken_rules(master, table)]
