"""Names of tables, as psql reads them; how they are quoted belongs here and nowhere else."""

import re
from dataclasses import dataclass

from psycopg import sql

from replica_platform.xmin.errors import BadTableName

_PART = r'"(?:[^"]|"")+"|[^\W\d][\w$]*'
_NAME = re.compile(rf"\s*(?:({_PART})\.)?({_PART})\s*")
_PLAIN = re.compile(r"[a-z_][a-z0-9_$]*")


@dataclass(frozen=True, order=True)
class TableName:
    """A schema and a table in it, as the catalog spells them."""

    schema: str
    table: str

    @classmethod
    def parse(cls, text: str) -> "TableName":
        """Read `table`, `schema.table` or `schema."Odd ""name"`; the schema is else `public`.

        Parts without quotes are folded to lower case, as Postgres does. Errors: `BadTableName`.
        """
        match = _NAME.fullmatch(text)
        if match is None:
            raise BadTableName(
                f"{text!r} is not a table's name; write schema.table, and put a part with other "
                'signs than letters, digits and _ in double quotes, as in public."Odd name".'
            )
        schema, table = match.groups()
        return cls(_fold(schema) if schema else "public", _fold(table))

    @property
    def sql(self) -> sql.Identifier:
        """The quoted name, to be composed into a statement."""
        return sql.Identifier(self.schema, self.table)

    def __str__(self) -> str:
        return ".".join(_show(part) for part in (self.schema, self.table))


def parse_schema(text: str) -> str:
    """The name of a schema by the same rules."""
    name = TableName.parse(text)
    if name.schema != "public" or "." in text.replace(f'"{name.table}"', ""):
        raise BadTableName(f"{text!r} is not the name of a schema; write one name without a dot.")
    return name.table


def _fold(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part.lower()


def _show(part: str) -> str:
    return part if _PLAIN.fullmatch(part) else '"' + part.replace('"', '""') + '"'


def columns_sql(names: list[str] | tuple[str, ...], alias: str | None = None) -> sql.Composed:
    """`"a", "b"`, or `t."a", t."b"`."""
    return sql.SQL(", ").join(
        sql.Identifier(alias, name) if alias else sql.Identifier(name) for name in names
    )
