"""The watchlist is chosen by rules, from a file that says what is wrong with it."""

from pathlib import Path

import pandas as pd
import pytest

from replica_platform.market.errors import BadWatchlist
from replica_platform.market.tables import load_bars, write_symbols, write_watchlist
from replica_platform.market.watch import WatchRules, load_rules
from replica_platform.replica import Master
from replica_platform_tests.market.conftest import Changeable


@pytest.fixture
def filled(master: Master, source: Changeable) -> Master:
    """Four symbols: A trades 100 a day, B 200, C 300, D 400; each costs 10 dollars."""
    frame = source.frame
    for number, symbol in enumerate("ABCD", 1):
        mine = frame["symbol"] == symbol
        frame.loc[mine, "volume"] = 100 * number
        frame.loc[mine, ["open", "high", "low", "close"]] = 10.0
    write_symbols(master, source)
    load_bars(master, source)
    return master


def watched(master: Master, **rules: object) -> str:
    write_watchlist(master, WatchRules(**rules))
    with master.read() as connection:
        rows = connection.execute("select symbol from watchlist order by symbol").fetchall()
    return "".join(row[0] for row in rows)


@pytest.mark.parametrize(
    ("rules", "symbols"),
    [
        ({}, "ABCD"),
        ({"top": 2}, "CD"),
        ({"top": 1, "include": ["A"]}, "AD"),
        ({"exclude": ["D"], "top": 1}, "C"),
        ({"include": ["B"], "only_included": True}, "B"),
        ({"min_average_volume": 250}, "CD"),
        ({"min_average_turnover": 4000}, "D"),
        ({"min_price": 11}, ""),
        ({"include": ["NONE"], "only_included": True}, ""),
        ({"top": None}, "ABCD"),
    ],
)
def test_the_rules_choose(filled: Master, rules: dict[str, object], symbols: str) -> None:
    assert watched(filled, **rules) == symbols


def test_a_delisted_symbol_is_not_watched(filled: Master, source: Changeable) -> None:
    source.names = ["A", "B", "C"]
    write_symbols(filled, source)
    assert watched(filled) == "ABC"


def test_prices_and_changes_are_those_of_the_last_two_bars(
    filled: Master, source: Changeable
) -> None:
    newest = source.frame["day"] == source.frame["day"].max()
    source.frame.loc[newest & (source.frame["symbol"] == "B"), "close"] = 11.0
    load_bars(filled, source)
    write_watchlist(filled, WatchRules())
    with filled.read() as connection:
        rows = connection.execute("select last_price, change, as_of from watchlist").fetchall()
    assert rows[1] == (11.0, pytest.approx(0.1), pd.Timestamp("2025-10-10").date())
    assert rows[0][1] == 0


def test_an_unchanged_watchlist_is_not_written(filled: Master) -> None:
    assert write_watchlist(filled, WatchRules()).changed
    before = filled.path.read_bytes()
    assert not write_watchlist(filled, WatchRules()).changed
    assert filled.path.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tops: 3", "tops: Extra inputs are not permitted. The rules are include, exclude"),
        ("top: -1", "top: Input should be greater than or equal to 1"),
        ("include: [", "is no YAML"),
        ("- A", "the file: Input should be a valid dictionary"),
    ],
)
def test_a_wrong_file_is_refused_by_its_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "watchlist.yaml"
    path.write_text(text)
    with pytest.raises(BadWatchlist, match=message):
        load_rules(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadWatchlist, match="REPLICA_WATCH_RULES"):
        load_rules(tmp_path / "absent.yaml")


def test_the_documented_file_is_accepted(tmp_path: Path) -> None:
    from replica_platform.market import watch

    assert watch.__doc__ is not None
    path = tmp_path / "watchlist.yaml"
    path.write_text(watch.__doc__.split("```yaml\n")[1].split("```")[0])
    rules = load_rules(path)
    assert rules.include == ("AAPL", "MSFT")
    assert rules.min_average_turnover == 1_000_000
