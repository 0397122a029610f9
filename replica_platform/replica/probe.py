"""The look inside a candidate, run as a program of its own: a corrupt file can kill DuckDB.

    python probe.py FILE THREADS [TABLE…]

Opens FILE read-only, reads every column of every table (or of those named) to the end, and
prints the tables as JSON. It imports nothing of this package.
"""

import hashlib
import json
import sys

import duckdb


def probe(path: str, threads: int, required: list[str]) -> dict[str, dict[str, object]]:
    """Rows and the schema's digest of each table, every block of those to be scanned read."""
    connection = duckdb.connect(path, read_only=True, config={"threads": threads})
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
        if not required or name in required:
            rows = _scan(connection, source, [column for column, _ in fields])
        else:
            rows = _rows(connection, source)
        digest = hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:32]
        found[name] = {"rows": rows, "schema": digest}
    if missing := sorted(set(required) - set(found)):
        raise LookupError(f"the required table {missing[0]} is not in it")
    return found


def _rows(connection: duckdb.DuckDBPyConnection, source: str) -> int:
    row = connection.execute(f"select count(*) from {source}").fetchone()
    return int(row[0]) if row else 0


def _scan(connection: duckdb.DuckDBPyConnection, source: str, columns: list[str]) -> int:
    # count(*) and statistics are answered without touching a block; a hash of each value is not.
    touched = ", ".join(f"bit_xor(hash({_quoted(column)}))" for column in columns)
    row = connection.execute(f"select count(*), {touched} from {source}").fetchone()
    return int(row[0]) if row else 0


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


if __name__ == "__main__":
    try:
        json.dump(probe(sys.argv[1], int(sys.argv[2]), sys.argv[3:]), sys.stdout)
    except (duckdb.Error, LookupError) as problem:
        sys.exit(" ".join(str(problem).split()))
