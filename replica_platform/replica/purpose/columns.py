"""The master's columns, and those of a purpose's tables that the purpose does not mention."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from replica_platform.core.reports import ReportFields
from replica_platform.replica.errors import PurposeWrong
from replica_platform.replica.master import Master
from replica_platform.replica.probe.process import Probe, ProbeFailed
from replica_platform.replica.probe.program import list_columns
from replica_platform.replica.purpose.definition import Purpose
from replica_platform.replica.purpose.rules import ALL, schema_and_table

# The type of each column, by name, for each table, by its schema and name.
ColumnTypes = dict[tuple[str, str], dict[str, str]]


@dataclass(frozen=True)
class UnlistedColumns(ReportFields):
    """Columns of a purpose's tables that it neither lists nor leaves out.

    Attributes:
        purpose: The purpose.
        columns: The columns, as "table.column".
    """

    purpose: str
    columns: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there are none."""
        return not self.columns

    @property
    def sentence(self) -> str:
        """What is not published and what to do next, or that all is well."""
        if self.ok:
            return f"The purpose {self.purpose} lists or leaves out every column of its tables."
        return (
            f"The purpose {self.purpose} neither lists nor leaves out {', '.join(self.columns)} of "
            "the master, so it is not published. Add it to the table's columns (with a mask if it "
            "is personal), or to its left_out."
        )


def unlisted_columns(purpose: Purpose, master: Path | str) -> UnlistedColumns:
    """Find the master's columns that a purpose does not mention, such as new ones.

    Args:
        purpose: The purpose.
        master: The master's path.

    Returns:
        The columns.

    Raises:
        MasterBusy: Another process writes the master.
    """
    with Master(master).read() as connection:
        types = _by_table(list_columns(connection))
    unlisted = []
    for name, part in purpose.tables.items():
        if ALL in (part.columns, part.left_out):
            continue
        table = schema_and_table(name)
        known = {column.casefold() for column in (*part.columns, *part.left_out)}
        # A table that the master lacks is refused when the purpose is published.
        unlisted += [
            f"{table[1] if table[0] == 'main' else '.'.join(table)}.{column}"
            for column in types.get(table, {})
            if column.casefold() not in known
        ]
    return UnlistedColumns(purpose.name, tuple(sorted(unlisted)))


def read_column_types(master: Path) -> ColumnTypes:
    """Return the columns of a master at rest.

    In a child process: if DuckDB closed the master here, our lock on it would be dropped.

    Raises:
        PurposeWrong: The master cannot be read.
    """
    with Probe() as probe:
        try:
            return _by_table(probe.list_columns(master))
        except ProbeFailed as error:
            raise PurposeWrong(f"The master {master} cannot be read: {error}") from error


def _by_table(columns: Iterable[tuple[str, str, str, str]]) -> ColumnTypes:
    types: ColumnTypes = {}
    for schema, table, column, kind in columns:
        types.setdefault((schema, table), {})[column] = kind
    return types
