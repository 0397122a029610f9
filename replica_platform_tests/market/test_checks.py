"""Every rule holds for sound tables and breaks for its damage, in the days that were written."""

from datetime import date, timedelta
from pathlib import Path

import pandas as pd
import pytest

from replica_platform.market.checks import (
    RULES,
    TABLES,
    audit_rules,
    broken_rules,
    rules_of,
)
from replica_platform.market.tables import load_bars, update_indicators, write_symbols
from replica_platform.replica import Master, audit, prepare, publish
from replica_platform_tests.market.conftest import Changeable, run_batch
from replica_platform_tests.market.test_bars import add_days

CASES = [
    ("insert into symbols from symbols limit 1", "symbols", "symbol is unique"),
    ("update symbols set name = null", "symbols", "every symbol is named"),
    ("delete from ohlcv", "ohlcv", "there are bars"),
    ("insert into ohlcv from ohlcv limit 1", "ohlcv", "one bar a symbol and day"),
    ("update ohlcv set low = high + 1", "ohlcv", "prices are sane"),
    ("update ohlcv set close = 'nan'", "ohlcv", "prices are sane"),
    ("update ohlcv set open = null", "ohlcv", "prices are sane"),
    ("update ohlcv set volume = -1", "ohlcv", "volume is not negative"),
    ("delete from symbols where symbol = 'B'", "ohlcv", "every symbol is known"),
    (
        "update ohlcv set day = '2099-01-02' where day = '2025-10-10'",
        "ohlcv",
        "no bar is of a day that is not over",
    ),
    (
        "update ohlcv set day = '2025-10-05' where day = '2025-10-06'",  # a Sunday
        "ohlcv",
        "no bar is of a day without a session",
    ),
    (
        "delete from ohlcv where day = '2025-10-08' and symbol = 'B'",
        "ohlcv",
        "no session lacks more than 1% of its bars",
    ),
    ("delete from ohlcv where day = '2025-10-08'", "ohlcv", "as many bars as were written"),
    ("delete from indicators where symbol = 'B'", "indicators", "one row a bar"),
    ("delete from indicators where symbol = 'B'", "indicators", "as many rows as bars"),
    (
        "update bar_coverage set indicators_from = last_day",
        "indicators",
        "none are behind their bars",
    ),
    ("update indicators set rsi_14 = 101", "indicators", "RSI lies between 0 and 100"),
    ("update indicators set bollinger_upper = -1", "indicators", "bands enclose their middle"),
    (
        "update indicators set macd = macd * 1.0001",
        "indicators",
        "20 symbols have the values of TA-Lib",
    ),
    ("delete from watchlist", "watchlist", "something is watched"),
    ("update watchlist set last_price = 0", "watchlist", "every watched symbol has a price"),
    (
        "update watchlist set as_of = '2001-01-01'",
        "watchlist",
        "prices are those of the newest bar",
    ),
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A master on which every rule holds; tests damage it in a transaction that they undo."""
    from replica_platform.market.sessions import sessions
    from replica_platform_tests.market.conftest import walk

    master = Master(tmp_path_factory.mktemp("sound") / "stock_data.duckdb")
    names = ["A", "B", "C"]
    days = sessions(date(2025, 1, 2), date(2025, 10, 10))
    run_batch(master, Changeable(walk(names, days), names))
    return master.path


def test_every_rule_holds_for_sound_tables(sound: Path) -> None:
    with Master(sound).read() as connection:
        assert {table: broken_rules(connection, table) for table in TABLES} == {
            table: [] for table in TABLES
        }


@pytest.mark.parametrize(("damage", "table", "rule"), CASES)
def test_damage_breaks_the_rule_for_it(sound: Path, damage: str, table: str, rule: str) -> None:
    with pytest.raises(ZeroDivisionError), Master(sound).write() as connection:
        connection.execute(damage)
        broken = [one.rule for one in broken_rules(connection, table)]
        raise ZeroDivisionError  # rolls the damage back
    assert rule in broken


def test_every_rule_has_a_case() -> None:
    covered = {rule for _, _, rule in CASES}
    delisted = "at most 5% of the symbols are delisted at once"  # has its own test
    assert covered | {delisted} == {rule for table in RULES for rule in rules_of(table)}


def test_a_listing_cut_short_is_noticed_until_it_is_accepted(
    master: Master, source: Changeable
) -> None:
    run_batch(master, source)
    source.names = source.names[:2]
    run_batch(master, source)
    with master.read() as connection:
        (broken,) = broken_rules(connection, "symbols")
    assert broken.rule == "at most 5% of the symbols are delisted at once"
    assert broken.rows == [(2, 4)]
    write_symbols(master, source)  # a run later it is still the same
    with master.read() as connection:
        assert broken_rules(connection, "symbols") == [broken]
    write_symbols(master, source, accept_delistings=True)
    with master.read() as connection:
        assert broken_rules(connection, "symbols") == []


def test_a_candidate_is_audited_in_the_days_that_readers_lack(
    master: Master, source: Changeable, tmp_path: Path
) -> None:
    def broken(day: str | None = None) -> list[str]:
        if day:
            with master.write() as connection:
                connection.execute(f"update ohlcv set low = high + 1 where day = '{day}'")
        candidate = prepare(master.path, tmp_path / "store")
        found = [one.rule for one in audit(candidate, audit_rules())]
        candidate.discard()
        return found

    run_batch(master, source)
    assert broken() == []
    assert broken("2023-05-02") == ["ohlcv: prices are sane"]  # nothing is published: all days
    with master.write() as connection:
        connection.execute("delete from ohlcv where day = '2023-05-02'")
    load_bars(master, source, start=date(2023, 5, 2), end=date(2023, 5, 2))
    update_indicators(master)
    assert broken() == []
    publish(master.path, tmp_path / "store")
    add_days(source, 1)
    source.frame.loc[source.frame["day"] >= pd.Timestamp("2025-10-09"), "volume"] += 1
    run_batch(master, source)
    assert broken() == []
    assert broken("2025-10-08") == []  # readers have this day
    assert broken("2025-10-09") == ["ohlcv: prices are sane"]


def test_an_audit_finds_what_was_deleted_by_hand(
    master: Master, source: Changeable, tmp_path: Path
) -> None:
    run_batch(master, source)
    publish(master.path, tmp_path / "store")
    with master.write() as connection:
        connection.execute("delete from ohlcv where day = '2023-01-03'")
    candidate = prepare(master.path, tmp_path / "store")
    assert [one.rule for one in audit(candidate, audit_rules())] == [
        "ohlcv: as many bars as were written",
        "indicators: as many rows as bars",
    ]


def test_rules_look_at_the_days_since(master: Master, source: Changeable) -> None:
    run_batch(master, source)
    with master.write() as connection:
        connection.execute("update ohlcv set low = high + 1 where day = '2024-05-06'")
    with master.read() as connection:
        day = date(2024, 5, 6)
        assert [one.rule for one in broken_rules(connection, "ohlcv", day)] == ["prices are sane"]
        assert broken_rules(connection, "ohlcv", day + timedelta(days=1)) == []


def test_a_symbol_of_a_few_days_has_no_indicators_yet(master: Master, source: Changeable) -> None:
    source.frame = source.frame[source.frame["day"] >= "2025-10-06"]
    run_batch(master, source)
    with master.read() as connection:
        assert broken_rules(connection, "indicators") == []


def test_a_master_of_an_earlier_version_is_no_crash(master: Master) -> None:
    with master.write() as connection:
        connection.execute("create table symbols as select 'A' as symbol, 'A' as name")
    with master.read() as connection:
        (broken,) = broken_rules(connection, "ohlcv")
    assert broken.rule == "the tables of this version are there"
