"""Candidates: no reader sees one before it is audited and released."""

from pathlib import Path

import duckdb
import pytest

from replica_platform.replica import Candidate, Master, prepare, publish, status
from replica_platform.replica.errors import CandidateDamaged, CandidateGone
from replica_platform_tests.replica.conftest import damage


def test_readers_see_a_candidate_only_when_released(master: Master, store: Path) -> None:
    candidate = prepare(master.path, store)
    assert status(store).generation is None
    with candidate.read() as connection:
        assert connection.execute("select count(*) from bars").fetchone() == (3,)
        with pytest.raises(duckdb.Error, match="read-only"):
            connection.execute("delete from bars")
    assert candidate.release().generation == 1
    assert status(store).generation == 1


def test_another_process_can_load_it(master: Master, store: Path) -> None:
    path = prepare(master.path, store).path
    assert Candidate.load(store).path == path
    assert Candidate.load(store, path).release().generation == 1
    with pytest.raises(CandidateGone, match="publish again"):
        Candidate.load(store)


def test_a_discarded_candidate_does_not_affect_readers(master: Master, store: Path) -> None:
    publish(master.path, store)
    with master.write() as connection:
        connection.execute("delete from bars")
    candidate = prepare(master.path, store)
    candidate.discard()
    assert not candidate.path.exists()
    assert status(store).generation == 1
    with pytest.raises(CandidateGone):
        candidate.release()


def test_an_overtaken_candidate_is_not_released(master: Master, store: Path) -> None:
    late = prepare(master.path, store)
    publish(master.path, store)
    with pytest.raises(CandidateGone):
        late.release()


def test_a_candidate_changed_after_verification_is_not_released(
    master: Master, store: Path
) -> None:
    candidate = prepare(master.path, store)
    damage(candidate.path, 300_000, b"\xff")
    with pytest.raises(CandidateDamaged, match="readers keep"):
        candidate.release()
    assert status(store).generation is None


def test_an_unchanged_master_makes_a_candidate_too(master: Master, store: Path) -> None:
    publish(master.path, store)
    prepare(master.path, store)
    candidate = Candidate.load(store)
    assert candidate.unchanged
    assert candidate.release().how == "unchanged"


def test_a_candidate_with_a_damaged_description_is_not_loaded(master: Master, store: Path) -> None:
    path = prepare(master.path, store).path
    description = path.with_suffix(".candidate")
    whole = description.read_text()
    for damaged in ("", whole[:-9], whole.replace("generation", "generatiom"), "[]", "{}"):
        description.write_text(damaged)
        with pytest.raises(CandidateGone):
            Candidate.load(store)
    description.write_text(whole)
    assert Candidate.load(store).release().generation == 1
