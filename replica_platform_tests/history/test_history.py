"""The history in the target: how values are combined, how much is kept, who may write."""

import threading
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from replica_platform.history import HistoryNotWritten, Sample, Span, read, record

NOON = datetime(2026, 3, 2, 12, 10, tzinfo=UTC)


def values(target: str, series: str, span: Span = Span.HOUR, count: int = 3) -> list[float | None]:
    (found,) = read(target, [series], span, count, at=NOON)[series].values.values()
    return list(found)


@pytest.mark.parametrize(
    ("series", "expected"),
    [("rows_moved", 12), ("lag_s", 7), ("integrity", 5), ("proven_age_s", 5)],
)
def test_values_of_one_hour_become_one(target: str, series: str, expected: float) -> None:
    record(target, [Sample(series, "raw.t", 7)], at=NOON)
    record(target, [Sample(series, "raw.t", 5)], at=NOON + timedelta(minutes=20))
    assert values(target, series) == [None, None, expected]
    assert values(target, series, Span.DAY, 2) == [None, expected]


def test_each_hour_and_each_day_has_its_own_value(target: str) -> None:
    for hours in (26, 2, 1):
        record(target, [Sample("rows_moved", "raw.t", hours)], at=NOON - timedelta(hours=hours))
    assert values(target, "rows_moved") == [2, 1, None]
    assert values(target, "rows_moved", Span.DAY, 2) == [26, 3]


def test_its_size_is_bounded(target: str) -> None:
    for day in range(100):
        record(target, [Sample("lag_s", "raw.t", day)], at=NOON - timedelta(days=99 - day))
    with psycopg.connect(target) as connection:
        rows = connection.execute(
            "select span, count(*), max(at) - min(at) from replica_platform.history group by 1"
        ).fetchall()
    found = {span: (count, length) for span, count, length in rows}
    assert found["day"] == (Span.DAY.kept, timedelta(days=Span.DAY.kept - 1))
    assert found["hour"][0] == 8
    assert found["hour"][1] < timedelta(hours=Span.HOUR.kept)


def test_nothing_recorded_is_an_empty_past_and_creates_nothing(target: str) -> None:
    assert record(target, [Sample("lag_s", "raw.t", None)]) == 0
    assert read(target, ["lag_s"], Span.DAY, 2)["lag_s"].values == {}
    with psycopg.connect(target) as connection:
        assert connection.execute("select to_regnamespace('replica_platform')").fetchone() == (
            None,
        )


def test_writers_side_by_side_lose_nothing(target: str) -> None:
    names = [f"raw.t{number}" for number in range(20)]
    errors: list[BaseException] = []

    def write(order: list[str]) -> None:
        try:
            for _ in range(10):
                record(target, [Sample("rows_moved", name, 1) for name in order], at=NOON)
        except BaseException as error:
            errors.append(error)

    orders = (names, names[::-1], names[10:] + names[:10])
    threads = [threading.Thread(target=write, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    found = read(target, ["rows_moved"], Span.DAY, 1, at=NOON)["rows_moved"].values
    assert found == {name: [30] for name in sorted(names)}


def test_counts_and_ages_are_recorded_together(target: str) -> None:
    record(target, [Sample("rows_moved", "raw.t", 7), Sample("lag_s", "raw.t", 0.5)], at=NOON)
    assert values(target, "rows_moved", count=1) == [7]
    assert values(target, "lag_s", count=1) == [0.5]


def test_an_unknown_series_is_refused(target: str) -> None:
    with pytest.raises(KeyError, match="speed"):
        record(target, [Sample("speed", "raw.t", 1)])


def test_a_role_without_rights_is_told_what_it_lacks(target: str) -> None:
    with psycopg.connect(target, autocommit=True) as connection:
        connection.execute("drop role if exists poor")
        connection.execute("create role poor login")
        try:
            poor = psycopg.conninfo.make_conninfo(target, user="poor")
            with pytest.raises(HistoryNotWritten, match="let its role create and write tables"):
                record(poor, [Sample("lag_s", "raw.t", 1)])
            # The remedy that it names.
            connection.execute("create schema replica_platform authorization poor")
            assert record(poor, [Sample("lag_s", "raw.t", 1)]) == 1
        finally:
            connection.execute("drop owned by poor cascade")
            connection.execute("drop role poor")
