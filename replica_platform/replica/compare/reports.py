"""The report of a comparison: for each table that differs its columns, its rows and samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from replica_platform.core.reports import ReportFields

Values = Mapping[str, str | None]


@dataclass(frozen=True)
class RowChange:
    """A row that differs; each value as DuckDB writes it as text, None for NULL.

    Attributes:
        before: The values in the older generation, of a changed row the key and what changed;
            None for an added row.
        after: The values in the newer generation; None for a removed row.
    """

    before: Values | None
    after: Values | None


@dataclass(frozen=True)
class TableDiff:
    """What differs between two generations of a table.

    Attributes:
        table: Its name, with its schema unless that is `main`.
        presence: `both`, `added` or `removed`.
        rows_before: Its rows in the older generation.
        rows_after: Its rows in the newer one.
        rows_added: The rows that only the newer one has; None where they were not compared.
        rows_removed: The rows that only the older one has; None as above.
        rows_changed: The rows of one key with other values; None as above.
        key: The columns that tell which rows belong together; empty for a table without a key,
            whose changed rows count as removed and added.
        columns_added: Columns that only the newer one has, with their types.
        columns_removed: Columns that only the older one has, with their types.
        columns_retyped: Columns with another type: the earlier and the later one.
        changed_columns: Of each column that differs, in how many changed rows it does.
        rows_read: How many rows of both generations were read.
        samples: Some rows that differ.
        problem: Why its rows were not compared; empty if they were.
    """

    table: str
    presence: str = "both"
    rows_before: int = 0
    rows_after: int = 0
    rows_added: int | None = 0
    rows_removed: int | None = 0
    rows_changed: int | None = 0
    key: Sequence[str] = ()
    columns_added: Mapping[str, str] = field(default_factory=dict)
    columns_removed: Mapping[str, str] = field(default_factory=dict)
    columns_retyped: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    changed_columns: Mapping[str, int] = field(default_factory=dict)
    rows_read: int = 0
    samples: Sequence[RowChange] = ()
    problem: str = ""

    @property
    def differs(self) -> bool:
        """Whether something differs, or may."""
        columns = self.columns_added or self.columns_removed or self.columns_retyped
        rows = (self.rows_added, self.rows_removed, self.rows_changed)
        return bool(self.presence != "both" or columns or self.problem or any(rows))

    @property
    def notes(self) -> str:
        """What a person should know beside the numbers of rows; empty if nothing."""
        if self.presence != "both":
            return f"table {self.presence}"
        found = [
            *(f"column {name} added ({kind})" for name, kind in self.columns_added.items()),
            *(f"column {name} removed ({kind})" for name, kind in self.columns_removed.items()),
            *(
                f"column {name}: {before} became {after}"
                for name, (before, after) in self.columns_retyped.items()
            ),
        ]
        if self.changed_columns:
            changed = (f"{name} ({rows:,})" for name, rows in self.changed_columns.items())
            found.append(f"changed: {', '.join(changed)}")
        if self.problem:
            found.append(f"rows not compared: {self.problem}")
        elif not self.key and self.rows_added and self.rows_removed:
            found.append("no key: a changed row is a removed and an added one")
        return "; ".join(found)


@dataclass(frozen=True)
class GenerationDiff(ReportFields):
    """What differs between two generations.

    Attributes:
        before: The older generation, or the first of the two that were named.
        after: The other one.
        published_before: When the first was published.
        published_after: When the other one was.
        tables: The tables that differ.
        same: How many tables are the same.
        rows_read: How many rows of both were read to find that out.
        seconds: How long it took.
    """

    before: int
    after: int
    published_before: datetime
    published_after: datetime
    tables: Sequence[TableDiff]
    same: int
    rows_read: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the rows of every table were compared; differences are no problem."""
        return not any(one.problem for one in self.tables)

    @property
    def rows_added(self) -> int:
        """The added rows of all tables that were compared."""
        return sum(one.rows_added or 0 for one in self.tables)

    @property
    def rows_removed(self) -> int:
        """The removed rows of all tables that were compared."""
        return sum(one.rows_removed or 0 for one in self.tables)

    @property
    def rows_changed(self) -> int:
        """The changed rows of all tables that were compared."""
        return sum(one.rows_changed or 0 for one in self.tables)

    @property
    def sentence(self) -> str:
        """How many tables and rows differ, and which tables were not compared."""
        spans = f"Between generations {self.before} and {self.after}"
        if not self.tables:
            return f"{spans} nothing differs: {self.same} tables are the same."
        text = (
            f"{spans} {len(self.tables)} of {len(self.tables) + self.same} tables differ: "
            f"{self.rows_added:,} rows added, {self.rows_removed:,} removed, "
            f"{self.rows_changed:,} changed."
        )
        if missing := [one.table for one in self.tables if one.problem]:
            text += f" The rows of {', '.join(missing)} were not compared."
        return text
