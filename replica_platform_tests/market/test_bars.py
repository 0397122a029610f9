"""Bars are merged by symbol and day: what is new, corrected, restated, missed or listed since."""

from dataclasses import replace
from datetime import date, timedelta

import pandas as pd
import pytest

from replica_platform.market.errors import BadBars, SourceFailed
from replica_platform.market.sessions import sessions
from replica_platform.market.tables import load_bars, write_symbols
from replica_platform.market.tables.bars import LOOK_BACK_DAYS
from replica_platform.replica import Master
from replica_platform_tests.market.conftest import Changeable, walk

LAST = date(2025, 10, 10)


def load(master: Master, source: Changeable, **days: date):  # type: ignore[no-untyped-def]
    write_symbols(master, source)
    return load_bars(master, source, pause=lambda _: None, **days)


def add_days(source: Changeable, days: int) -> None:
    """Let the source go on for some sessions."""
    later = sessions(LAST + timedelta(days=1), LAST + timedelta(days=days * 2 + 7))[:days]
    source.frame = pd.concat([source.frame, walk(source.names, later, seed=2)], ignore_index=True)


def rows(master: Master, query: str) -> list[tuple[object, ...]]:
    with master.read() as connection:
        return connection.execute(query).fetchall()


def test_the_first_load_takes_everything_and_the_second_nothing(
    master: Master, source: Changeable
) -> None:
    first = load(master, source)
    assert (first.inserted, first.updated) == (len(source.frame), 0)
    assert first.first_day == source.first_day
    header = master.path.read_bytes()
    second = load(master, source)
    assert not second.changed
    assert master.path.read_bytes() == header


def test_one_more_day_asks_for_the_look_back_and_writes_the_day(
    master: Master, source: Changeable
) -> None:
    load(master, source)
    add_days(source, 1)
    source.asked.clear()
    loaded = load(master, source)
    assert (loaded.inserted, loaded.updated) == (4, 0)
    ((symbols, start, _),) = source.asked
    assert symbols == ("A", "B", "C", "D")
    assert start == LAST - timedelta(days=LOOK_BACK_DAYS)


def test_a_correction_in_the_window_is_written_and_one_before_it_is_not(
    master: Master, source: Changeable
) -> None:
    load(master, source)
    of_b = source.frame[source.frame["symbol"] == "B"].index
    source.frame.loc[of_b[-3], "volume"] += 1
    source.frame.loc[of_b[-200], "volume"] += 1
    loaded = load(master, source)
    assert (loaded.inserted, loaded.updated, loaded.restated) == (0, 1, ())
    # The older one comes with a range of days, as of a backfill.
    old = source.frame.loc[of_b[-200], "day"].date()
    loaded = load(master, source, start=old, end=old)
    assert (loaded.inserted, loaded.updated, loaded.first_day) == (0, 1, old)


def test_a_split_restates_the_whole_history_of_its_symbol(
    master: Master, source: Changeable
) -> None:
    load(master, source)
    split = source.frame["symbol"] == "C"
    for column in ("open", "high", "low", "close"):
        source.frame.loc[split, column] /= 2
    loaded = load(master, source)
    assert loaded.restated == ("C",)
    assert (loaded.inserted, loaded.updated) == (0, int(split.sum()))
    (found,) = rows(master, "select sum(close), count(*) from ohlcv where symbol = 'C'")
    assert found == (pytest.approx(source.frame.loc[split, "close"].sum()), int(split.sum()))


def test_a_new_listing_gets_its_history_and_a_delisted_symbol_keeps_its_bars(
    master: Master, source: Changeable
) -> None:
    load(master, source)
    days = sessions(date(2024, 1, 1), LAST)
    source.frame = pd.concat([source.frame, walk(["NEW"], days)], ignore_index=True)
    source.names = ["A", "B", "C", "NEW"]
    loaded = load(master, source)
    assert (loaded.inserted, loaded.updated) == (len(days), 0)
    assert rows(
        master, "select symbol, delisted_on from symbols where delisted_on is not null"
    ) == [("D", LAST)]
    assert rows(master, "select count(*) from ohlcv where symbol = 'D'") != [(0,)]
    assert all("D" not in symbols for symbols, _, _ in source.asked[1:])
    source.names = ["A", "B", "C", "D", "NEW"]
    load(master, source)
    assert rows(master, "from symbols where delisted_on is not null") == []


def test_a_symbol_that_fails_is_lost_by_name_and_caught_up_the_next_time(
    master: Master, source: Changeable
) -> None:
    source.failing = {"B": 99}
    loaded = load(master, source)
    assert dict(loaded.failed) == {"B": "no answer for B"}
    assert loaded.inserted == len(source.frame) * 3 // 4
    source.failing = {}
    assert load(master, source).inserted == len(source.frame) // 4


def test_a_symbol_that_fails_once_is_asked_again(master: Master, source: Changeable) -> None:
    source.failing = {"B": 1}
    loaded = load(master, source)
    assert not loaded.failed
    assert loaded.inserted == len(source.frame)


def test_a_source_that_is_down_changes_nothing_and_says_so(
    master: Master, source: Changeable
) -> None:
    load(master, source)
    before = master.path.read_bytes()
    source.failing = dict.fromkeys(source.names, 99)
    add_days(source, 1)
    with pytest.raises(SourceFailed, match="failed for all 4 symbols, A for example: no answer"):
        load(master, source)
    assert master.path.read_bytes() == before
    source.failing = {}
    assert load(master, source).inserted == 4


def test_a_key_that_comes_twice_is_refused_by_name(master: Master, source: Changeable) -> None:
    source.frame = pd.concat([source.frame, source.frame.tail(1)], ignore_index=True)
    with pytest.raises((BadBars, SourceFailed), match="bars twice, the first of D on 2025-10-10"):
        write_symbols(master, source)
        load_bars(master, replace(source, names=["D"]), pause=lambda _: None)


def test_bars_deleted_by_hand_come_back_with_their_days(master: Master, source: Changeable) -> None:
    load(master, source)
    with master.write() as connection:
        connection.execute("delete from ohlcv where day between '2024-03-01' and '2024-03-31'")
    loaded = load(master, source, start=date(2024, 3, 1), end=date(2024, 3, 31))
    assert loaded.inserted == len(sessions(date(2024, 3, 1), date(2024, 3, 31))) * 4
    assert rows(master, "select sum(bars) from bar_coverage") == [(len(source.frame),)]


def test_a_master_of_an_earlier_version_is_taken_over(master: Master, source: Changeable) -> None:
    """Before 0.3: symbols with first_day and last_day, bars by symbol, no coverage."""
    old = source.frame.sort_values(["symbol", "day"])  # noqa: F841  (DuckDB reads it by name)
    with master.write() as connection:
        connection.execute(
            "create table symbols as select symbol, symbol as name, min(day)::date as first_day,"
            " max(day)::date as last_day from old group by symbol"
        )
        connection.execute(
            "create table ohlcv as select symbol, day::date as day, open, high, low, close, volume"
            " from old"
        )
    add_days(source, 1)
    loaded = load(master, source)
    assert (loaded.inserted, loaded.updated) == (4, 0)
    assert rows(master, "select sum(bars) from bar_coverage") == [(len(source.frame),)]
    assert rows(master, "select min(listed_on) from symbols") == [(source.first_day,)]


def test_a_writer_that_holds_the_master_is_named(master: Master, source: Changeable) -> None:
    from replica_platform.replica import MasterBusy

    load(master, source)
    add_days(source, 1)
    impatient = Master(master.path, patience_s=0.2)
    with master.write(), pytest.raises(MasterBusy, match="is being written or read by"):
        load_bars(impatient, source)
    assert load_bars(impatient, source).inserted == 4
