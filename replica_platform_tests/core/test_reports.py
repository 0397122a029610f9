"""Reports as JSON, and sizes and ages as text."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from replica_platform.core.reports import Report, ReportFields, format_age, format_bytes, plain


@dataclass(frozen=True)
class Inner(ReportFields):
    rows: int

    @property
    def doubled(self) -> int:
        return 2 * self.rows


@dataclass(frozen=True)
class Outer(ReportFields):
    file: Path
    at: datetime
    inner: tuple[Inner, ...]
    ok: bool = True

    @property
    def sentence(self) -> str:
        return "All is well."

    @property
    def _private(self) -> str:
        raise AssertionError("private properties are not part of a report")


OUTER = Outer(Path("a/b.db"), datetime(2026, 1, 2, tzinfo=UTC), (Inner(1), Inner(2)))


def test_a_report_includes_fields_and_properties_at_every_level() -> None:
    report: Report = OUTER
    assert report.as_dict() == {
        "file": "a/b.db",
        "at": "2026-01-02T00:00:00+00:00",
        "inner": [{"rows": 1, "doubled": 2}, {"rows": 2, "doubled": 4}],
        "ok": True,
        "sentence": "All is well.",
    }
    assert json.loads(json.dumps(plain([report]))) == [report.as_dict()]


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (3 << 40, "3.0 TiB")],
)
def test_sizes(size: int, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "never"),
        (-1, "0 s"),
        (119, "119 s"),
        (120, "2 minutes"),
        (7200, "2 hours"),
        (2 * 86400, "2 days"),
    ],
)
def test_ages(seconds: float | None, text: str) -> None:
    assert format_age(seconds) == text
