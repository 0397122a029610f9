"""The columns of a published generation, to describe it."""

from dataclasses import dataclass
from pathlib import Path

from replica_platform.replica.serving.connect import connect

_COLUMNS = """
select schema_name, table_name, column_name, data_type, comment
from duckdb_columns() where not internal and database_name = current_database()
order by schema_name, table_name, column_index
"""


@dataclass(frozen=True)
class PublishedColumn:
    """A column of a table or view of a generation.

    Attributes:
        schema: Its schema.
        table: Its table or view.
        name: Its name.
        type: Its type, as DuckDB spells it.
        comment: Its comment; None without one.
    """

    schema: str
    table: str
    name: str
    type: str
    comment: str | None = None


def published_columns(store: Path | str) -> list[PublishedColumn]:
    """Return every column of the current generation, by schema and table.

    Args:
        store: The store's folder.

    Raises:
        ReplicaUnavailable: No generation can be read.
    """
    with connect(store) as connection:
        return [PublishedColumn(*row) for row in connection.execute(_COLUMNS).fetchall()]
