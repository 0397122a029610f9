"""A program that reads a database file in its own process, because a corrupt file can kill DuckDB.

    python probe.py    with {"path": …, "catalog": …, "scan": ["TABLE", …] or null} on its
                       standard input

Opens the file read-only, under the catalog's name that its views may contain, and prints JSON. With
`scan`, each table's rows and schema, and why views do not open: the tables named are read to the
end (`*` for all), of every other table the first rows. Without, the columns.

It runs by its path and must not import this package, so its NICENESS repeats `priority.NICENESS`.
"""

import hashlib
import json
import os
import sys

import duckdb

NICENESS = 15
# Enough to open each column of a table, and fast.
FIRST_ROWS = 16_384

Columns = list[tuple[str, str, str, str]]


def list_columns(connection: duckdb.DuckDBPyConnection) -> Columns:
    """Return schema, table, name and type of every column of the tables, in their order."""
    return connection.execute(
        "select schema_name, table_name, column_name, data_type from duckdb_columns() "
        "where not internal and database_name = current_database() "
        "and (schema_name, table_name) in (select (schema_name, table_name) from duckdb_tables()) "
        "order by schema_name, table_name, column_index"
    ).fetchall()


def read_tables(
    connection: duckdb.DuckDBPyConnection, scan: list[str]
) -> dict[str, dict[str, object]]:
    """Return the rows and the schema's digest of each table; `scan` names those to read fully.

    Raises:
        LookupError: A table in `scan` is missing.
        duckdb.Error: The file is damaged.
    """
    tables: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for schema, table, column, kind in list_columns(connection):
        tables.setdefault((schema, table), []).append((column, kind))
    found: dict[str, dict[str, object]] = {}
    for (schema, table), fields in tables.items():
        name = table if schema == "main" else f"{schema}.{table}"
        source = f"{_quoted(schema)}.{_quoted(table)}"
        limit = None if "*" in scan or name in scan else FIRST_ROWS
        _read(connection, source, [column for column, _ in fields], limit)
        row = connection.execute(f"select count(*) from {source}").fetchone()
        digest = hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:32]
        found[name] = {"rows": row[0] if row else 0, "schema": digest}
    if missing := sorted(set(scan) - {"*"} - set(found)):
        raise LookupError(f"the required table {missing[0]} is not in it")
    return found


def find_broken_views(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """Return why each view that cannot be opened fails, by name.

    A view that needs another file or an extension is not among them: readers may have it. No such
    file is opened here. Afterwards the connection opens no other file.
    """
    connection.execute("set enable_external_access = false")
    views = connection.execute(
        "select schema_name, view_name from duckdb_views() "
        "where not internal and database_name = current_database() order by all"
    ).fetchall()
    broken = {}
    for schema, view in views:
        try:
            connection.execute(f"describe select * from {_quoted(schema)}.{_quoted(view)}")
        except duckdb.PermissionException:
            continue
        except duckdb.Error as problem:
            reason = " ".join(str(problem).split("LINE ")[0].split())
            if " extension" not in reason:
                broken[view if schema == "main" else f"{schema}.{view}"] = reason
            if isinstance(problem, duckdb.InternalError | duckdb.FatalException):
                break  # the instance cannot be used any more
    return broken


def _open(path: str, catalog: str) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    quoted = path.replace("'", "''")
    connection.execute(f"attach '{quoted}' as {_quoted(catalog)} (read_only)")
    connection.execute(f"use {_quoted(catalog)}.main")
    return connection


def _read(
    connection: duckdb.DuckDBPyConnection, source: str, columns: list[str], limit: int | None
) -> None:
    # count(*) and statistics are answered without reading a block; a hash of each value is not.
    hashes = ", ".join(f"bit_xor(hash({_quoted(column)}))" for column in columns)
    rows = source if limit is None else f"(select * from {source} limit {limit})"
    connection.execute(f"select {hashes} from {rows}").fetchall()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    if request["scan"] is None:
        answer: object = list_columns(_open(request["path"], request["catalog"]))
    else:
        if hasattr(os, "nice"):
            os.nice(NICENESS)
        connection = _open(request["path"], request["catalog"])
        tables = read_tables(connection, request["scan"])
        answer = {"tables": tables, "broken_views": find_broken_views(connection)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    try:
        main()
    except (duckdb.Error, LookupError) as problem:
        sys.exit(" ".join(str(problem).split()))
