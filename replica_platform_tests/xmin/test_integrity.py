"""`validate` names what is wrong, and a healthy table has the score 1."""

import json
import threading

import psycopg

from replica_platform.xmin import sync, validate
from replica_platform_tests.xmin.helpers import execute


def test_a_synced_table_is_proven_equal(source: str, target: str) -> None:
    execute(source, "create table t (id int primary key)", "insert into t values (1), (2)")
    sync(source, target, "t")
    integrity = validate(source, target, "t")
    assert integrity.in_sync
    assert integrity.score > 0.999
    assert (integrity.source_rows, integrity.target_rows) == (2, 2)
    assert integrity.sentence == "public.t is in sync: nothing to do."
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


def test_what_came_after_the_mark_is_a_gap_and_no_divergence(source: str, target: str) -> None:
    execute(source, "create table t (id int primary key)", "insert into t values (1)")
    sync(source, target, "t")
    execute(source, "insert into t values (2)")
    integrity = validate(source, target, "t")
    assert (integrity.pending_count, integrity.missing_count) == (1, 0)
    assert 0 < integrity.score < 1
    assert integrity.terms["proven equal"] == 1.0
    assert not integrity.in_sync
    assert integrity.gap_xids >= 1


def test_ages_agree_though_the_source_never_rests(source: str, target: str) -> None:
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
