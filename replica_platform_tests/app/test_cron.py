"""The next tick of a cron schedule."""

from datetime import UTC, datetime, timedelta

import pytest

from replica_platform.app.cron import tick_after, tick_before

NOW = datetime(2026, 3, 2, 12, 10, 30, tzinfo=UTC)  # a Monday


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("*/5 * * * *", datetime(2026, 3, 2, 12, 15)),
        ("10 12 * * *", datetime(2026, 3, 3, 12, 10)),
        ("11 12 * * *", datetime(2026, 3, 2, 12, 11)),
        ("@weekly", datetime(2026, 3, 8)),
        ("0 3 1 * *", datetime(2026, 4, 1, 3)),
        ("0 3 29 2 *", None),
        ("0 3 * * mon-fri", datetime(2026, 3, 3, 3)),
    ],
)
def test_the_next_tick(cron: str, expected: datetime | None) -> None:
    assert tick_after(cron, NOW) == (expected.replace(tzinfo=UTC) if expected else None)


@pytest.mark.parametrize("cron", ["*/7 * * * *", "0 */5 * * *", "30 4 13 * 5", "@daily"])
def test_no_tick_lies_between_now_and_the_next(cron: str) -> None:
    following = tick_after(cron, NOW)
    assert following is not None and following > NOW
    assert tick_before(cron, following - timedelta(seconds=1), 0) == tick_before(cron, NOW, 0)
    assert tick_before(cron, following, 0) == following
