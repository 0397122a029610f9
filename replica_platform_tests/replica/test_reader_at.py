"""`ReplicaReader(store, at=…)`: a kept generation, by its number or by a time."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from replica_platform.core.files import write_atomically
from replica_platform.replica import (
    BlockStore,
    NothingPublished,
    Publication,
    ReplicaReader,
    ReplicaUnavailable,
    publish,
    rollback,
    status,
)
from replica_platform.replica.store.layout import Layout
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
        pytest.raises(ReplicaUnavailable, match=r"kept are 3 \(20.* UTC\), 2 .*, 1 \("),
    ):
        reader.query(COUNT)
    with pytest.raises(ValueError, match="time zone"):
        ReplicaReader(store, at=datetime(2026, 1, 1))


def date_generations(store: Path, *moments: str) -> None:
    """Give the generations of a store these times of publication, the first one first."""
    layout = Layout(store)
    for manifest, moment in zip(reversed(layout.kept()), moments, strict=True):
        dated = replace(manifest, published_at=datetime.fromisoformat(moment))
        write_atomically(layout.manifest_path(manifest), dated.to_json())


def test_a_day_or_a_time_is_written_as_text(three: list[Publication], store: Path) -> None:
    """A day is meant up to its end, in UTC."""
    date_generations(
        store, "2026-11-18T23:00:00+00:00", "2026-11-20T18:00:00+00:00", "2026-11-21T00:00:00+00:00"
    )
    for at, generation in (
        ("2026-11-20", 2), (date(2026, 11, 20), 2), ("2026-11-19", 1), ("2026-11-23", 3),
        ("2026-11-20T19:00Z", 2), ("2026-11-20T19:00+01:00", 2), ("2026-11-20T18:59:59+01:00", 1),
        ("2026-11-20 18:00:00+00:00", 2), ("3", 3), (" 2 ", 2), (1, 1),
    ):  # fmt: skip
        with ReplicaReader(store, at=at) as reader:
            assert reader.generation == generation, at


@pytest.mark.parametrize(
    ("at", "advice"),
    [
        ("2026-11-20T18:00", "no time zone; give one, such as 2026-11-20T18:00:00Z"),
        ("yesterday", r"write 12, 2026-01-31 \(its end, in UTC\) or 2026-01-31T18:00\+01:00"),
        ("2026-02-30", "is no generation's number, day or time"),
        ("", "is no generation's number, day or time"),
    ],
)
def test_what_is_no_time_is_refused_with_what_to_write(
    tmp_path: Path, at: str, advice: str
) -> None:
    with pytest.raises(ValueError, match=advice):
        ReplicaReader(tmp_path, at=at)
    with pytest.raises(ValueError, match=advice):
        BlockStore(tmp_path).pull(tmp_path, at)


def test_the_block_store_takes_the_same_words(three: list[Publication], store: Path) -> None:
    """What the error of a reader advises: pull it from a block store that has it."""
    date_generations(
        store, "2026-11-18T23:00:00+00:00", "2026-11-20T18:00:00+00:00", "2026-11-21T00:00:00+00:00"
    )
    blocks = BlockStore(store.parent / "blocks")
    for generation in (1, 2, 3):
        blocks.push(store, generation)
    elsewhere = store.parent / "elsewhere"
    blocks.pull(elsewhere)
    with (
        ReplicaReader(elsewhere, at="2026-11-20") as reader,
        pytest.raises(ReplicaUnavailable, match=r"published by 2026-11-20T23:59:59\+00:00 is not "
                      "kept; kept are 3 .* or pull this one from a block store"),
    ):  # fmt: skip
        reader.query(COUNT)
    assert blocks.pull(elsewhere, "2026-11-20").generation == 2
    with ReplicaReader(elsewhere, at="2026-11-20") as reader:
        assert reader.query(COUNT) == [(5,)]
    with pytest.raises(NothingPublished, match=r"published by 2026-11-01.*; kept are 3, 2, 1"):
        blocks.pull(elsewhere, "2026-11-01")


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
