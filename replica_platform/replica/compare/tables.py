"""The tables of two attached generations: their columns, their keys, and what both have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb

from replica_platform.replica.copy.file_format import quoted

_COLUMNS = """
select schema_name, table_name, column_name, data_type, coalesce(column_default, '')
from duckdb_columns() join duckdb_tables() using (database_name, schema_name, table_name)
where database_name = ? order by schema_name, table_name, column_index
"""
# A primary key first, then unique constraints in the order in which they were written.
_KEYS = """
select schema_name, table_name, constraint_column_names from duckdb_constraints()
where database_name = ? and constraint_type in ('PRIMARY KEY', 'UNIQUE')
order by schema_name, table_name, constraint_type, constraint_index
"""
_INDEXES = """
select schema_name, table_name, string_split(trim(expressions, '[]'), ', ') from duckdb_indexes()
where database_name = ? and is_unique and not is_primary
order by schema_name, table_name, index_name
"""


@dataclass(frozen=True)
class Table:
    """A table of one generation.

    Attributes:
        catalog: The name under which the generation is attached.
        schema: Its schema.
        name: Its name.
        columns: The type of each column.
        defaults: The expression of each column's default, or of a generated column.
        keys: The columns of each key, the primary key first.
    """

    catalog: str
    schema: str
    name: str
    columns: Mapping[str, str]
    defaults: Mapping[str, str]
    keys: Sequence[Sequence[str]] = ()

    @property
    def label(self) -> str:
        """Its name, with its schema unless that is `main`."""
        return self.name if self.schema == "main" else f"{self.schema}.{self.name}"

    @property
    def source(self) -> str:
        """Its quoted name."""
        return ".".join(quoted(part) for part in (self.catalog, self.schema, self.name))


@dataclass(frozen=True)
class Pair:
    """A table that both generations have.

    Attributes:
        before: The table in the first generation.
        after: The table in the other one.
    """

    before: Table
    after: Table

    @property
    def shared(self) -> list[str]:
        """The columns of one name and type, by which rows are compared."""
        after = self.after.columns
        return [name for name, kind in self.before.columns.items() if after.get(name) == kind]

    @property
    def same_columns(self) -> bool:
        """Whether both have the same columns, in one order and with the same expressions."""
        ours, theirs = self.before, self.after
        return [*ours.columns.items()] == [*theirs.columns.items()] and (
            ours.defaults == theirs.defaults
        )

    @property
    def key(self) -> list[str]:
        """The first key that both have; empty for none."""
        others = [set(key) for key in self.after.keys]
        shared = set(self.shared)
        for key in self.before.keys:
            if set(key) in others and set(key) <= shared:
                return list(key)
        return []


def tables_of(connection: duckdb.DuckDBPyConnection, catalog: str) -> dict[str, Table]:
    """Return the tables of an attached generation, by their labels."""
    columns: dict[tuple[str, str], dict[str, str]] = {}
    defaults: dict[tuple[str, str], dict[str, str]] = {}
    for schema, name, column, kind, default in connection.execute(_COLUMNS, [catalog]).fetchall():
        columns.setdefault((schema, name), {})[column] = kind
        defaults.setdefault((schema, name), {})[column] = default
    keys: dict[tuple[str, str], list[list[str]]] = {}
    for query in (_KEYS, _INDEXES):
        for schema, name, key in connection.execute(query, [catalog]).fetchall():
            bare = [one.strip("'").strip('"') for one in key] if query is _INDEXES else key
            if set(bare) <= set(columns[schema, name]):  # else it is of an expression
                keys.setdefault((schema, name), []).append(bare)
    found = (
        Table(catalog, *place, columns[place], defaults[place], keys.get(place, []))
        for place in columns
    )
    return {table.label: table for table in found}
