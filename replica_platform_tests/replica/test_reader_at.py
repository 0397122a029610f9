"""`ReplicaReader(store, at=…)`: a kept generation, by its number or by a time."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from replica_platform.replica import (
    Publication,
    ReplicaReader,
    ReplicaUnavailable,
    publish,
    rollback,
    status,
)
from replica_platform_tests.replica.conftest import damage

COUNT = "select count(*) from bars"


@pytest.fixture
def three(publish_next: Callable[..., Publication]) -> list[Publication]:
    """Generations 1, 2 and 3 with 4, 5 and 6 bars."""
    return [publish_next(day) for day in (3, 4, 5)]


def test_a_generation_is_read_by_its_number(three: list[Publication], store: Path) -> None:
    for generation, rows in ((1, 4), (2, 5), (3, 6)):
        with ReplicaReader(store, at=generation) as reader:
            assert reader.query(COUNT) == [(rows,)]
            found = reader.status()
            assert (found.ok, found.served_from, found.generation) == (True, "kept", generation)
            assert f"generation {generation}, " in found.sentence


def test_a_generation_is_read_by_a_time(three: list[Publication], store: Path) -> None:
    """What readers saw then: the last one that was published by that time."""
    moments = [publication.manifest.published_at for publication in three]
    second = timedelta(microseconds=1)
    for at, rows in (
        (moments[0], 4),
        (moments[1] - second, 4),
        (moments[1], 5),
        (datetime.now(UTC), 6),
    ):
        with ReplicaReader(store, at=at) as reader:
            assert reader.query(COUNT) == [(rows,)]
    with (
        ReplicaReader(store, at=moments[0] - second) as reader,
        pytest.raises(ReplicaUnavailable, match="kept are 3, 2, 1"),
    ):
        reader.query(COUNT)
    with pytest.raises(ValueError, match="time zone"):
        ReplicaReader(store, at=datetime(2026, 1, 1))


def test_it_stays_and_is_leased(
    three: list[Publication], publish_next: Callable[..., Publication], store: Path
) -> None:
    with ReplicaReader(store, poll_s=0.01, at=1) as reader:
        assert reader.query(COUNT) == [(4,)]
        publish_next(6, keep=1)
        reader._server.refresh()
        assert reader.query(COUNT) == [(4,)]
        assert status(store).kept == [4, 1]
        assert 1 in {one.generation for one in status(store).readers}
    publish_next(7, keep=1)
    assert status(store).kept == [5]


def test_no_other_generation_stands_in_for_it(three: list[Publication], store: Path) -> None:
    damage(three[1].file, 300_000, b"\xff\x00\xff")
    with ReplicaReader(store, at=2) as reader:
        assert reader.query(COUNT, default=[(0,)]) == [(0,)]
        with pytest.raises(ReplicaUnavailable, match="not what was published"):
            reader.query(COUNT)
    with (
        ReplicaReader(store, at=9) as reader,
        pytest.raises(ReplicaUnavailable, match="Generation 9 is not kept"),
    ):
        reader.query(COUNT)


def test_a_withheld_generation_can_be_read(three: list[Publication], store: Path) -> None:
    rollback(store)
    with ReplicaReader(store, at=3) as reader:
        assert reader.query(COUNT) == [(6,)]
    assert publish(store.parent / "master" / "stock_data.duckdb", store).how == "unchanged"
