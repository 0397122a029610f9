"""`validate` names what is wrong, and a healthy table has the score 1."""

import json
import re
import threading

import psycopg
import pytest

from replica_platform.xmin import sync, validate
from replica_platform.xmin.integrity.validate import GAP_BUDGET_S
from replica_platform_tests.xmin.helpers import execute


def test_a_synced_table_is_proven_equal(source: str, target: str) -> None:
    execute(source, "create table t (id int primary key)", "insert into t values (1), (2)")
    sync(source, target, "t")
    integrity = validate(source, target, "t")
    assert integrity.in_sync
    assert integrity.score > 0.999
    assert (integrity.source_rows, integrity.target_rows) == (2, 2)
    assert integrity.sentence == (
        "public.t is in sync: nothing to do. Its content was never compared; validate it once "
        "with --content (content=True)."
    )
    json.dumps(integrity.as_dict())


def test_damage_in_the_target_is_named(source: str, target: str) -> None:
    execute(
        source,
        "create table t (id int primary key, x text)",
        "insert into t select i, 'x' from generate_series(1, 50) i",
    )
    sync(source, target, "t")
    execute(
        target,
        "delete from t where id = 5",
        "update t set source_xmin = source_xmin - 1 where id = 6",
        "insert into t (id) values (99)",
    )
    integrity = validate(source, target, "t")
    assert integrity.score == 0.0
    assert (integrity.missing, integrity.stale, integrity.extra) == (("(5)",), ("(6)",), ("(99)",))
    assert not integrity.in_sync
    assert "run a sync with mode full" in integrity.sentence

    sync(source, target, "t", mode="full")
    assert validate(source, target, "t").in_sync


def test_rows_changed_after_the_watermark_are_a_gap_and_no_divergence(
    source: str, target: str
) -> None:
    execute(source, "create table t (id int primary key)", "insert into t values (1)")
    sync(source, target, "t")
    execute(source, "insert into t values (2)")
    integrity = validate(source, target, "t")
    assert (integrity.pending_count, integrity.missing_count) == (1, 0)
    assert 0 < integrity.score < 1
    assert integrity.terms["proven equal"] == 1.0
    assert not integrity.in_sync
    assert integrity.gap_xids >= 1


def test_ages_agree_while_the_source_uses_xids(source: str, target: str) -> None:
    execute(source, "create table t (id int primary key)")
    execute(source, "insert into t select generate_series(1, 10)")
    sync(source, target, "public.t")
    over = threading.Event()

    def burn() -> None:
        with psycopg.connect(source, autocommit=True) as connection:
            while not over.is_set():
                connection.execute("select pg_current_xact_id()")

    burner = threading.Thread(target=burn)
    burner.start()
    try:
        # The rows' one age passes several powers of two meanwhile.
        terms = [validate(source, target, "public.t").terms["xmin ages"] for _ in range(40)]
    finally:
        over.set()
        burner.join()
    assert terms == [1.0] * 40


def test_up_to_a_hundred_keys_are_named(source: str, target: str) -> None:
    execute(source, "create table t (a int, b text, primary key (a, b))")
    execute(source, "insert into t select i, 'x' from generate_series(1, 500) i")
    sync(source, target, "t")
    execute(target, "delete from t where a <= 150")
    integrity = validate(source, target, "t")
    assert (integrity.missing_count, len(integrity.missing)) == (150, 100)
    assert all(key in [f"({a},x)" for a in range(1, 151)] for key in integrity.missing)
    assert "150 missing" in integrity.sentence


def test_the_gap_in_seconds_is_reported_and_lowers_the_score(source: str, target: str) -> None:
    execute(source, "create table t (id int primary key)")
    sync(source, target, "t")
    fresh = validate(source, target, "t")
    assert fresh.gap_s is not None
    assert 0 <= fresh.gap_s < 60
    half = f"interval '{GAP_BUDGET_S / 2} seconds'"
    execute(target, f"update replica_platform.mark set synced_at = synced_at - {half}")
    stale = validate(source, target, "t")
    assert stale.gap_s is not None
    assert stale.gap_s > GAP_BUDGET_S / 2
    assert stale.terms["gap in seconds"] == pytest.approx(0.5, abs=0.01)
    assert stale.score < 0.6


def test_the_ages_of_rows_are_a_histogram(source: str, target: str) -> None:
    execute(source, "create table t (id int primary key)", "insert into t values (1), (2)")
    sync(source, target, "t")
    integrity = validate(source, target, "t")
    assert integrity.source_ages == integrity.target_ages
    assert sum((integrity.source_ages or {}).values()) == 2
    # Rows of a different age on one side only.
    execute(target, "update t set source_xmin = source_xmin - 1000000")
    assert validate(source, target, "t").terms["xmin ages"] == 0.0


def test_a_prepared_transaction_is_named_with_its_age(source: str, target: str) -> None:
    execute(source, "create table t (id int primary key)")
    with psycopg.connect(source) as connection:
        connection.execute("insert into t values (1)")
        connection.execute("prepare transaction 'left over'")
    try:
        execute(source, "insert into t values (2)")
        sync(source, target, "t")
        blocker = str(validate(source, target, "t").held_back_by)
    finally:
        execute(source, "rollback prepared 'left over'")
    found = r"prepared transaction 'left over' of postgres holds W back for \d+ s"
    assert re.search(found, blocker)
    assert "xids wait behind it" in blocker


def test_what_cannot_be_proven_is_capped(source: str, target: str) -> None:
    execute(
        source,
        "create table t (id int primary key, at timestamptz)",
        "insert into t values (1, now())",
        "create table bag (a int)",
        "insert into bag values (1), (1)",
    )
    sync(source, target, "t", mode="timestamp", timestamp_column="at")
    sync(source, target, "bag")
    by_time, bag = validate(source, target, "t"), validate(source, target, "bag")
    assert by_time.in_sync and bag.in_sync
    assert (by_time.terms["mode"], bag.terms["mode"]) == (0.9, 0.8)
    assert by_time.score <= 0.9
    assert bag.score <= 0.8


def test_content_changed_in_the_target_under_the_old_xmin_is_found(
    source: str, target: str
) -> None:
    execute(
        source,
        "create table t (id int primary key, amount numeric(9,2))",
        "insert into t select i, i from generate_series(1, 3000) i",
    )
    sync(source, target, "t")
    proven = validate(source, target, "t", content=True)
    assert (proven.score > 0.9999, proven.in_sync, proven.content_rows) == (True, True, 3000)
    assert proven.sentence.endswith("The content of 3,000 rows is equal.")
    execute(target, "update t set amount = 0")
    by_xmin = validate(source, target, "t")
    assert by_xmin.in_sync
    assert by_xmin.score < 1.0
    assert "last proven" in by_xmin.sentence
    assert "of 3,000 rows" in by_xmin.sentence
    found = validate(source, target, "t", content=True)
    assert (found.score, found.in_sync, found.stale_count) == (0.0, False, 3000)
    assert found.content_rows is None
    assert "run a sync with mode full" in found.sentence
    assert sync(source, target, "t", mode="full").rows_updated == 3000
    assert validate(source, target, "t", content=True).in_sync


def test_pending_rows_are_not_counted_as_proven(source: str, target: str) -> None:
    execute(
        source,
        "create table t (id int primary key, x int)",
        "insert into t select i, i from generate_series(1, 100) i",
    )
    sync(source, target, "t")
    execute(source, "update t set x = 0 where id <= 10")
    found = validate(source, target, "t", content=True)
    assert (found.pending_count, found.stale_count, found.content_rows) == (10, 0, 90)


def test_a_proof_is_forgotten_with_its_table(source: str, target: str) -> None:
    execute(source, "create table t (id int primary key)", "insert into t values (1)")
    sync(source, target, "t")
    validate(source, target, "t", content=True)
    assert validate(source, target, "t").content_rows == 1
    execute(target, "drop table t")
    sync(source, target, "t")
    assert validate(source, target, "t").content_rows is None
