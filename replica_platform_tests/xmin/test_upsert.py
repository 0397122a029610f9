"""A data frame is merged by key; equal rows are not written."""

import pandas as pd
import pytest

from replica_platform.xmin import merge_frame
from replica_platform.xmin.errors import CannotSync
from replica_platform_tests.xmin.helpers import rows


def test_a_frame_arrives_once(target: str) -> None:
    frame = pd.DataFrame(
        {
            "k": ["a", "b"],
            "n": [1, 2],
            "x": [0.5, float("nan")],
            "at": pd.to_datetime(["2020-01-02", None]),
        }
    )
    first = merge_frame(target, "made.here", frame, ["k"])
    assert (first.rows_inserted, first.rows_updated) == (2, 0)
    again = merge_frame(target, "made.here", frame, ["k"])
    assert (again.rows_inserted, again.rows_updated) == (0, 0)

    frame.loc[1, "n"] = 3
    assert merge_frame(target, "made.here", frame, ["k"]).rows_updated == 1
    assert rows(target, "select k, n, x, at::text from made.here order by k") == [
        ("a", 1, 0.5, "2020-01-02 00:00:00"),
        ("b", 3, None, None),
    ]


def test_a_key_must_be_there_and_unique(target: str) -> None:
    frame = pd.DataFrame({"k": [1, 1]})
    with pytest.raises(CannotSync, match=r"the key \(1\) more than once"):
        merge_frame(target, "t", frame, ["k"])
    with pytest.raises(CannotSync, match="needs columns of the frame"):
        merge_frame(target, "t", frame, ["other"])
    assert rows(target, "select to_regclass('t') is null") == [(True,)]
