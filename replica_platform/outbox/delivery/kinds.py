"""A kind's own table: which of a record's values go into which column, as data.

`outbox.record` takes everything; beside it a mapped kind fills a typed table in the same
transaction. Reading a mapping and making its statements belong here; when they run does not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from replica_platform.outbox.errors import BadMapping

# What a column can be filled from beside the keys of the record itself.
OWN_VALUES = {
    "$id": sql.SQL("r.id"),
    "$created_at": sql.SQL("r.created_at"),
    "$seq": sql.SQL("r.seq"),
    "$kind": sql.SQL("r.kind"),
}


@dataclass(frozen=True)
class KindTable:
    """Records of `kind` fill `table`; `columns` says from which key of the record.

    `key` is the unique column by which a row that is there already is recognised.
    """

    kind: str
    table: tuple[str, str]  # schema, name
    key: str
    columns: tuple[tuple[str, str], ...]  # column, key in the record or one of OWN_VALUES

    def insert(self) -> sql.Composed:
        """Fill the table from the records `%(ids)s`; a key that is there is left as it is."""
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
        """Of the records `%(ids)s`: those whose row in the table has other content.

        Compared as jsonb, which has an equality for every type, and only for records that land
        in this transaction: later the table's owner may change its rows as they like.
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
        """The records as rows of the table: Postgres itself turns values into its types.

        So a value that does not fit is an error of that row, and never silently another value.
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
    """Kind → table, from what YAML loads: `{kind: {table, key, columns}}`. Errors: `BadMapping`.

    `columns` is {column: key in the record}, or a list of names that are both.
    """
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        return {mapping.kind: mapping for mapping in data}
    return {kind: _read(kind, value) for kind, value in data.items()}


def _read(kind: str, data: Any) -> KindTable:
    if not isinstance(data, Mapping) or set(data) - {"table", "key", "columns"}:
        raise BadMapping(f"The mapping of {kind!r} has table, key and columns, not {data!r}.")
    columns = data.get("columns")
    if isinstance(columns, (list, tuple)):
        columns = {column: column for column in columns}
    if not isinstance(columns, Mapping) or not columns:
        raise BadMapping(f"The mapping of {kind!r} needs columns: {{column: key in the record}}.")
    for column, key in columns.items():
        if not isinstance(column, str) or not isinstance(key, str):
            raise BadMapping(f"The mapping of {kind!r}: {column!r}: {key!r} are not both text.")
        if key.startswith("$") and key not in OWN_VALUES:
            raise BadMapping(f"The mapping of {kind!r}: {key} is none of {', '.join(OWN_VALUES)}.")
    table = data.get("table")
    if not isinstance(table, str) or not all(table.split(".")) or table.count(".") > 1:
        raise BadMapping(f"The mapping of {kind!r} needs a table written as schema.table.")
    schema, _, name = table.rpartition(".")
    key = data.get("key", "id")
    if key not in columns:
        raise BadMapping(f"The mapping of {kind!r}: its key {key!r} is none of its columns.")
    return KindTable(kind, (schema or "public", name), key, tuple(columns.items()))
