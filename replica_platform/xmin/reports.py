"""What a sync answers: frozen and plain, so that `.as_dict()` is fit for JSON.

Integrity and tuning answer with reports of their own, beside the code that measures.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class TableSpec:
    """One table of a group, with the same words as `sync` has."""

    table: str
    into: str | None = None
    mode: str = "auto"
    timestamp_column: str | None = None
    deletes: str = "auto"
    key: tuple[str, ...] | None = None
    timestamp_zone: str | None = None
    """The time zone of the writers, for a timestamp column that has none."""


@dataclass(frozen=True)
class SyncReport:
    """What one sync of one table did."""

    table: str
    target_table: str
    mode: str
    """`full`, `scan`, `timestamp` or `none` (known to be idle, not read)."""
    why: str
    """One sentence: why this mode."""
    rows_read: int = 0
    rows_inserted: int = 0
    rows_updated: int = 0
    rows_deleted: int = 0
    bytes: int = 0
    """Bytes of COPY that came from the source."""
    seconds: float = 0.0
    rows: int | None = None
    """Rows in the target after the sync."""
    w: int | None = None
    """W of the new mark: every transaction below it has been delivered."""
    lag_xids: int = 0
    """How many xids W lies behind the source's next one."""
    columns: tuple[tuple[str, str], ...] = ()
    """The data columns, each with its type."""
    notes: tuple[str, ...] = ()
    """What else is worth knowing: columns added or kept, who holds W back."""
    seconds_by_step: Mapping[str, float] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        """Whether the target's rows are others than before."""
        return bool(self.rows_inserted or self.rows_updated or self.rows_deleted)

    def as_dict(self) -> dict[str, Any]:
        """The same, plain, with `changed`."""
        return {**asdict(self), "changed": self.changed}


@dataclass(frozen=True)
class GroupReport:
    """What one sync of a group did: a report a table, and a sentence a failure.

    Both go by the target table, as `schema.table`: two sources may have tables of one name.
    """

    reports: Mapping[str, SyncReport]
    failures: Mapping[str, str]
    seconds: float
    atomic: bool = False

    @property
    def ok(self) -> bool:
        """Whether no table failed."""
        return not self.failures

    def as_dict(self) -> dict[str, Any]:
        """The same, plain."""
        return {
            "reports": {name: report.as_dict() for name, report in self.reports.items()},
            "failures": dict(self.failures),
            "seconds": self.seconds,
            "atomic": self.atomic,
            "ok": self.ok,
        }
