"""Rules of a candidate may compare it with what readers have."""

from pathlib import Path

import pytest

from replica_platform.replica import Master, RuleWrong, audit, prepare, publish

GROWS = {
    "no row is lost": (
        "select here, there from (select (select count(*) from t) as here,"
        " (select count(*) from published.t) as there) where here < there"
    )
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def master(tmp_path: Path) -> Master:
    master = Master(tmp_path / "m.duckdb")
    with master.write() as connection:
        connection.execute("create table t as select 1 as a from range(3)")
        connection.execute('create schema "a b"; create table "a b"."c d" as select 1 as x')
    return master


def test_a_table_that_readers_do_not_have_is_empty(master: Master, store: Path) -> None:
    rules = {"all new": "select count(*) n from published.t having n <> 0"}
    rules |= {"other schemas": 'select 1 from published."a b"."c d"'}
    assert audit(prepare(master.path, store), rules) == []


def test_a_candidate_is_compared_with_the_current_generation(master: Master, store: Path) -> None:
    publish(master.path, store)
    with master.write() as connection:
        connection.execute("delete from t where rowid = 0")
        connection.execute("create table u as select 1 as a")
    candidate = prepare(master.path, store)
    (broken,) = audit(candidate, GROWS | {"u is new": "select 1 from published.u"})
    assert (broken.rule, broken.rows) == ("no row is lost", ((2, 3),))
    candidate.discard()
    with master.write() as connection:
        connection.execute("insert into t select 1 from range(5)")
    assert audit(prepare(master.path, store), GROWS) == []


def test_a_current_generation_that_cannot_be_opened_counts_as_none(
    master: Master, store: Path
) -> None:
    publication = publish(master.path, store)
    with master.write() as connection:
        connection.execute("delete from t")
    candidate = prepare(master.path, store)
    publication.file.unlink()
    assert audit(candidate, GROWS) == []


def test_a_rule_that_cannot_be_run_is_named(master: Master, store: Path) -> None:
    with pytest.raises(RuleWrong, match="The rule “typo” cannot be run"):
        audit(prepare(master.path, store), {"typo": "select 1 from published.nothing"})
