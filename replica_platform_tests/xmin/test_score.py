"""Every term of the score moves when what it stands for does, and comes back with the remedy."""

from collections.abc import Callable

import psycopg
import pytest

from replica_platform.xmin import Integrity, Proving, sync, validate
from replica_platform_tests.faults.xmin_servers import burn
from replica_platform_tests.xmin.helpers import execute
from replica_platform_tests.xmin.test_repair import PROMOTED

ROWS = 100
Change = Callable[[str, str], None]


def in_target(*statements: str) -> Change:
    return lambda source, target: execute(target, *statements)


def read_by_time(source: str, target: str) -> None:
    sync(source, target, "t", mode="timestamp", timestamp_column="at")


# What moves the term, what it is then, and what brings it back.
CASES: dict[str, tuple[Change, float, dict[str, str]]] = {
    "proven equal": (in_target("delete from t where id = 7"), 0.0, {"mode": "full"}),
    "extra rows": (in_target("insert into t values (0)"), 1 - 1 / (ROWS + 1), {"mode": "full"}),
    "gap in xids": (lambda source, target: burn(source, 5_000), 1 - 5_000 / 50_000_000, {}),
    "gap in seconds": (
        in_target("update replica_platform.mark set synced_at = synced_at - interval '1 day'"),
        0.9,
        {},
    ),
    "xmin ages": (
        in_target("update t set source_xmin = source_xmin - 100000 where id <= 50"),
        0.5,
        {"mode": "full"},
    ),
    "mode": (read_by_time, 0.9, {}),
    "content": (
        in_target("update replica_platform.proof set proven_at = proven_at - interval '5 days'"),
        0.9997,
        {},
    ),
    "history": (in_target(PROMOTED), 0.5, {}),
}


@pytest.fixture
def table(source: str, target: str) -> None:
    execute(
        source,
        "create table t (id int primary key, at timestamptz default now())",
        f"insert into t select generate_series(1, {ROWS})",
    )
    sync(source, target, "t")


def test_there_is_a_case_for_every_term(source: str, target: str, table: None) -> None:
    terms = validate(source, target, "t").terms
    assert terms.keys() == CASES.keys()
    assert {name for name, term in terms.items() if term < 0.9999} == {"content"}


@pytest.mark.parametrize("name", CASES)
def test_a_term_moves_and_comes_back(name: str, source: str, target: str, table: None) -> None:
    change, moved, remedy = CASES[name]
    before = validate(source, target, "t", content=name == "content")
    change(source, target)
    damaged = validate(source, target, "t")
    assert damaged.terms[name] == pytest.approx(moved, abs=2e-5)
    assert damaged.terms[name] < before.terms[name]
    assert damaged.score < before.score
    sync(source, target, "t", prove=Proving(within_s=0), **remedy)  # type: ignore[arg-type]
    sync(source, target, "t", prove=Proving(within_s=0))
    assert validate(source, target, "t").terms[name] > damaged.terms[name]


def test_what_holds_w_back_is_named_while_it_does(source: str, target: str, table: None) -> None:
    def state() -> Integrity:
        return validate(source, target, "t")

    assert state().held_back_by is None
    with psycopg.connect(source, application_name="nightly batch") as open_one:
        open_one.execute("insert into t values (1000)")
        execute(source, "insert into t values (1001)")
        sync(source, target, "t")
        again = sync(source, target, "t")
        held = state()
        assert "nightly batch), idle in transaction holds W back" in str(held.held_back_by)
        assert (held.in_sync, held.pending_count) == (True, 0)
        assert any("nightly batch" in note for note in again.notes)
        assert again.lag_xids > 1
        gap = held.gap_xids
    sync(source, target, "t")
    released = state()
    assert released.held_back_by is None
    assert released.gap_xids < gap


def test_the_rows_that_differ_are_counted_by_kind(source: str, target: str, table: None) -> None:
    execute(source, "insert into t values (500)", "update t set at = now() where id = 1")
    execute(target, "delete from t where id = 2", "insert into t values (0)")
    execute(target, "update t set source_xmin = source_xmin - 1 where id in (3, 4, 5)")
    found = validate(source, target, "t")
    assert (found.pending_count, found.missing_count) == (2, 1)
    assert (found.stale_count, found.extra_count) == (3, 1)
    assert (found.source_rows, found.target_rows) == (ROWS + 1, ROWS)
