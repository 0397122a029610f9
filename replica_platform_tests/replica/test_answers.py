"""Remembered answers: bounded in bytes, copied, and one for each question."""

from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from replica_platform.replica import Publication, ReplicaReader, ReplicaUnavailable


@pytest.fixture
def offline(publish_next: Callable[..., Publication], store: Path) -> Callable[..., Any]:
    """A function that asks a reader, and again after it lost its generation."""
    file = publish_next().file

    def ask(*questions: tuple[Any, ...], form: str = "query", **options: Any) -> list[Any]:
        with ReplicaReader(store, poll_s=600, **options) as reader:
            for question in questions:
                getattr(reader, form)(*question)
            hidden = file.rename(store / "hidden")
            try:
                reader._server._drop_attached()
                return [getattr(reader, form)(*question, default=None) for question in questions]
            finally:
                hidden.rename(file)

    return ask


def test_two_arrays_are_two_questions(offline: Callable[..., Any]) -> None:
    """Their `repr` is equal: numpy leaves out the middle."""
    first, second = np.zeros(5000, dtype="int64"), np.zeros(5000, dtype="int64")
    second[2500] = 7
    assert repr(first) == repr(second)
    sql = "select list_sum($1::bigint[])"
    assert offline((sql, [first]), (sql, [second])) == [[(0,)], [(7,)]]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        ("1", 1),
        (1.0, 1),
        (Decimal("1.0"), Decimal("1.00")),
        (date(2026, 1, 1), datetime(2026, 1, 1)),
        (datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC)),
        (b"1", "1"),
    ],
)
def test_values_of_other_types_are_other_questions(
    offline: Callable[..., Any], one: object, other: object
) -> None:
    sql = "select typeof($1) || $1::varchar"
    first, second = offline((sql, [one]), (sql, [other]))
    assert first is not None
    assert second is not None
    assert first != second


def test_equal_parameters_are_one_question(offline: Callable[..., Any], store: Path) -> None:
    sql = "select $1 || $2"
    same = "".join(["I", "BM"])
    with ReplicaReader(store) as reader:
        reader.query(sql, ["IBM", "IBM"])
        assert reader._answers.recall("rows", sql, [same, "".join(["IB", "M"])]) == [("IBMIBM",)]


def test_an_answer_is_a_copy(publish_next: Callable[..., Publication], store: Path) -> None:
    file = publish_next().file
    with ReplicaReader(store, poll_s=600) as reader:
        rows = "select [1, 2]"
        reader.query(rows)[0][0].append(3)
        frame = reader.df("select 1 i")
        frame.loc[0, "i"] = 9
        file.unlink()
        reader._server._drop_attached()
        for _ in range(2):
            answer = reader.query(rows)
            assert answer == [([1, 2],)]
            answer[0][0].append(3)
            frame = reader.df("select 1 i")
            assert frame.i.tolist() == [1]
            frame.loc[0, "i"] = 9
        assert reader.status().served_from == "memory"


def test_answers_are_bounded_in_bytes(
    publish_next: Callable[..., Publication], store: Path
) -> None:
    publish_next()
    large = "select repeat('x', 10000) || range from range({})"
    with ReplicaReader(store, poll_s=600, memory_bytes=4_000_000) as reader:
        for form in ("query", "df", "arrow"):
            for rows in range(20, 60):
                getattr(reader, form)(large.format(rows))
                assert 0 < reader._answers.size <= 4_000_000
        sizes = [size for _, size in reader._answers._answers.values()]
        assert sum(sizes) == reader._answers.size
        assert sum(sizes) > 2_000_000
        before = reader._answers.size
        reader.query(large.format(150))  # more than a quarter of all
        assert reader._answers.size == before


def test_nothing_is_remembered_with_zero_bytes(
    publish_next: Callable[..., Publication], store: Path
) -> None:
    file = publish_next().file
    with ReplicaReader(store, poll_s=600, memory_bytes=0) as reader:
        reader.query("select 1")
        file.unlink()
        reader._server._drop_attached()
        with pytest.raises(ReplicaUnavailable):
            reader.query("select 1")
