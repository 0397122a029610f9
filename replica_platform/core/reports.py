"""Reports and progress: the form of results that all engines share.

The format of a report belongs here (its fields as JSON, sizes and ages as text); its content
belongs to the engine.
"""

import dataclasses
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

Unit = Literal["bytes", "rows", "blocks", "pages", "tables", "steps"]


class Progress(Protocol):
    """A callback for the progress of a long operation."""

    def __call__(self, done: int, total: int, unit: Unit) -> None:
        """Accept that `done` of `total` units are done; `total` may grow between two calls."""


class Report(Protocol):
    """A result that a command, an asset check or `--json` can show."""

    @property
    def ok(self) -> bool:
        """Whether all is well."""

    @property
    def sentence(self) -> str:
        """What was done or found and, if something is wrong, what to do next."""

    def as_dict(self) -> dict[str, Any]:
        """Return the report as values that JSON can hold."""


class ReportFields:
    """A base class for dataclasses that gives them `as_dict`."""

    def as_dict(self) -> dict[str, Any]:
        """Return every field and public property by name, as values that JSON can hold."""
        names = [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        for kind in type(self).__mro__:
            for name, member in vars(kind).items():
                if isinstance(member, property) and not name.startswith("_") and name not in names:
                    names.append(name)
        return {name: plain(getattr(self, name)) for name in names}


class DoneReport(ReportFields):
    """A base for reports of a call that raises an error when it fails: what is reported is well."""

    @property
    def ok(self) -> bool:
        """True: a call that fails raises an error and has no report."""
        return True


def plain(value: Any) -> Any:
    """Return `value` in types of JSON: dates in ISO 8601, paths as text, sets as lists."""
    if hasattr(value, "as_dict"):
        return value.as_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    return value


def format_bytes(size: float) -> str:
    """Return a size in bytes with a suitable unit, in powers of 1024: `1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def format_age(seconds: float | None) -> str:
    """Return a duration in seconds with a suitable unit: `3 days`, `8 s`; `never` for None."""
    if seconds is None:
        return "never"
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
