"""A kind's own table: which value of a record fills which column.

`outbox.record` takes every record; a mapped kind also fills a typed table in the same
transaction. Reading a mapping and composing its statements belong here; running them does not
(see `statements`).
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psycopg import sql

from replica_platform.outbox.errors import BadMapping

# Sources of a column besides the keys of the record itself.
OWN_VALUES = {
    "$id": sql.SQL("r.id"),
    "$created_at": sql.SQL("r.created_at"),
    "$seq": sql.SQL("r.seq"),
    "$kind": sql.SQL("r.kind"),
}


@dataclass(frozen=True)
class KindTable:
    """The table that records of a kind fill.

    Attributes:
        kind: The kind.
        table: Schema and name of the table.
        key: The unique column that identifies a row that exists already.
        columns: Each column with the key of the record that fills it, or one of `OWN_VALUES`.
    """

    kind: str
    table: tuple[str, str]
    key: str
    columns: tuple[tuple[str, str], ...]

    def insert(self) -> sql.Composed:
        """Return the statement that fills the table from the records `%(ids)s`.

        A row whose key exists already stays as it is.
        """
        return sql.SQL(
            "insert into {table} ({columns}) select {values} from {records} "
            "on conflict ({key}) do nothing"
        ).format(
            table=self._table(),
            columns=sql.SQL(", ").join(sql.Identifier(column) for column, _ in self.columns),
            values=self._columns_of("typed"),
            records=self._records(),
            key=sql.Identifier(self.key),
        )

    def differing(self) -> sql.Composed:
        """Return the query for those of the records `%(ids)s` whose row has other content.

        Rows are compared as jsonb, which has an equality for every type, and only for records
        inserted in this transaction: later, the table's owner may change its rows.
        """
        return sql.SQL(
            "select r.id::text from {records} and r.landed_at = now() "
            "and not exists (select from {table} as there where {their_key} = {our_key} "
            "and jsonb_build_array({theirs}) = jsonb_build_array({ours}))"
        ).format(
            records=self._records(),
            table=self._table(),
            their_key=sql.Identifier("there", self.key),
            our_key=sql.Identifier("typed", self.key),
            theirs=self._columns_of("there"),
            ours=self._columns_of("typed"),
        )

    def _records(self) -> sql.Composed:
        """Return the records as rows of the table, with values converted by Postgres.

        A value that does not fit is therefore an error of that row, never another value.
        """
        values = sql.SQL(", ").join(
            sql.SQL("{}::text, {}").format(
                sql.Literal(column),
                sql.SQL("to_jsonb({})").format(OWN_VALUES[key])
                if key in OWN_VALUES
                else sql.SQL("r.payload -> {}").format(sql.Literal(key)),
            )
            for column, key in self.columns
        )
        return sql.SQL(
            "outbox.record as r, "
            "jsonb_populate_record(null::{table}, jsonb_build_object({values})) as typed "
            "where r.id = any(%(ids)s::uuid[])"
        ).format(table=self._table(), values=values)

    def _table(self) -> sql.Identifier:
        return sql.Identifier(*self.table)

    def _columns_of(self, alias: str) -> sql.Composed:
        return sql.SQL(", ").join(sql.Identifier(alias, column) for column, _ in self.columns)


def read_mappings(
    data: Mapping[str, Any] | Sequence[KindTable] | None,
) -> dict[str, KindTable]:
    """Return each kind's table from what YAML loads.

    Args:
        data: `{kind: {table, key, columns}}`. `columns` is {column: key in the record}, or a list
            of names that are both; `key` is "id" if left out.

    Returns:
        Kind → table.

    Raises:
        BadMapping: A mapping is incomplete or contradictory.
    """
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        return {mapping.kind: mapping for mapping in data}
    return {kind: _read_mapping(kind, value) for kind, value in data.items()}


def _read_mapping(kind: str, data: Any) -> KindTable:
    if not isinstance(data, Mapping) or set(data) - {"table", "key", "columns"}:
        raise BadMapping(f"The mapping of {kind!r} needs table, key and columns, not {data!r}.")
    columns = _read_columns(kind, data.get("columns"))
    table = _read_table(kind, data.get("table"))
    key = data.get("key", "id")
    if key not in columns:
        raise BadMapping(f"The mapping of {kind!r}: its key {key!r} is not one of its columns.")
    return KindTable(kind, table, key, tuple(columns.items()))


def _read_columns(kind: str, data: Any) -> dict[str, str]:
    """Return {column: key in the record}."""
    if isinstance(data, (list, tuple)):
        data = {column: column for column in data}
    if not isinstance(data, Mapping) or not data:
        raise BadMapping(f"The mapping of {kind!r} needs columns: {{column: key in the record}}.")
    for column, key in data.items():
        if not isinstance(column, str) or not isinstance(key, str):
            raise BadMapping(f"The mapping of {kind!r}: {column!r}: {key!r} are not both text.")
        if key.startswith("$") and key not in OWN_VALUES:
            known = ", ".join(OWN_VALUES)
            raise BadMapping(f"The mapping of {kind!r}: {key} is not one of {known}.")
    return dict(data)


def _read_table(kind: str, data: Any) -> tuple[str, str]:
    """Return schema and name."""
    if not isinstance(data, str) or not all(data.split(".")) or data.count(".") > 1:
        raise BadMapping(f"The mapping of {kind!r} needs a table written as schema.table.")
    schema, _, name = data.rpartition(".")
    return schema or "public", name


def version_of(code: str | None, tables: Mapping[str, KindTable]) -> str:
    """Return the version of the code and of the mappings, by which a dead row was refused.

    Args:
        code: The version of the code; a digest of this package's source if None.
        tables: Each mapped kind's own table.
    """
    return f"{code or _source_version()}-{_digest(repr(tables).encode())}"


@functools.cache
def _source_version() -> str:
    """Return a digest of this package's source: another digest may bring a fix."""
    sources = sorted(Path(__file__).parent.parent.rglob("*.py"))
    return _digest(b"".join(source.read_bytes() for source in sources))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]
