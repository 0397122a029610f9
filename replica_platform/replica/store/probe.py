"""The look inside a candidate, run as a program of its own: a corrupt file can kill DuckDB.

    python probe.py    with ["FILE", ["TABLE", …]] on its standard input

Opens FILE read-only, reads the tables named to the end (`*` for all; the first rows of every
other), and prints all tables as JSON. It imports nothing of this package, and yields to others.
"""

import hashlib
import json
import os
import sys

import duckdb

NICENESS = 15
# Enough to open each column of a table, little enough to cost nothing.
FIRST_ROWS = 16_384


def probe(path: str, scan: list[str]) -> dict[str, dict[str, object]]:
    """Each table's rows and the digest of its schema. Errors: `duckdb.Error`, `LookupError`."""
    connection = duckdb.connect(path, read_only=True)
    columns = connection.execute(
        "select schema_name, table_name, column_name, data_type from duckdb_columns() "
        "where not internal and database_name = current_database() "
        "and (schema_name, table_name) in (select (schema_name, table_name) from duckdb_tables()) "
        "order by schema_name, table_name, column_index"
    ).fetchall()
    tables: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for schema, table, column, kind in columns:
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


def _read(
    connection: duckdb.DuckDBPyConnection, source: str, columns: list[str], limit: int | None
) -> None:
    # count(*) and statistics are answered without touching a block; a hash of each value is not.
    touched = ", ".join(f"bit_xor(hash({_quoted(column)}))" for column in columns)
    some = source if limit is None else f"(select * from {source} limit {limit})"
    connection.execute(f"select {touched} from {some}").fetchall()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


if __name__ == "__main__":
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    try:
        json.dump(probe(*json.load(sys.stdin)), sys.stdout)
    except (duckdb.Error, LookupError) as problem:
        sys.exit(" ".join(str(problem).split()))
