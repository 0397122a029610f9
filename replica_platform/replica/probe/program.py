"""A program that reads database files in its own process, because a corrupt file can kill DuckDB.

    python program.py    with one request a line on its standard input:
                         {"path": …, "catalog": …, "scan": ["TABLE", …] or null}

Opens the file read-only, under the catalog's name that its views may contain, and prints JSON, one
line for each request: the answer, and whether it is the last one. With `scan`, each table's rows
and schema, and why views do not open: the tables named are read to the end (`*` for all), of the
largest others the first rows. Without, the columns. It ends with its standard input, when nothing
was asked for a while, after an error, and after it has lowered its priority, which it cannot raise
again.

It runs by its path and must not import this package. Only reading a large file to the end has the
lowest priority: with all of it at that priority, a file with many tables was not published for
minutes while the machine was busy.
"""

import hashlib
import json
import os
import select
import sys
from collections.abc import Iterator

try:
    # Half of the processor time of `import duckdb`, which also loads what only a caller needs.
    import _duckdb as duckdb
except ImportError:
    import duckdb  # type: ignore[no-redef]

# Longer than most publishers wait between two publications.
IDLE_S = 120.0
NICENESS = 5
NICENESS_TO_THE_END = 15
# Enough to open each column of a table, and fast.
FIRST_ROWS = 16_384
# A file of this size is read to the end in about the time that it takes to open it.
READ_TO_THE_END_BYTES = 32 * 1024 * 1024
FIRST_ROWS_OF_TABLES = 1_000
# Planning takes longer than counting a small table; larger statements are planned more slowly.
TABLES_A_QUERY = 20
COLUMNS_A_QUERY = 200

Columns = list[tuple[str, str, str, str]]


class Table:
    """A table of the file.

    Attributes:
        source: Its quoted name.
        size: About how many rows it has.
        columns: The name and type of each column.
    """

    def __init__(self, source: str, size: int) -> None:
        self.source = source
        self.size = size
        self.columns: list[tuple[str, str]] = []

    @property
    def column_names(self) -> str:
        """Its columns, quoted."""
        return ", ".join(_quoted(column) for column, _ in self.columns)

    @property
    def digest(self) -> str:
        """A digest of the names and types of its columns."""
        return hashlib.sha256(json.dumps(self.columns).encode()).hexdigest()[:32]


def list_columns(connection: duckdb.DuckDBPyConnection) -> Columns:
    """Return schema, table, name and type of every column of the tables, in their order."""
    return _columns_of(connection, set(_sizes(connection)))


def _columns_of(connection: duckdb.DuckDBPyConnection, tables: set[tuple[str, str]]) -> Columns:
    # Views have columns too. A join with the tables takes longer than reading all.
    columns = connection.execute(
        "select schema_name, table_name, column_name, data_type from duckdb_columns() "
        "where not internal and database_name = current_database() "
        "order by schema_name, table_name, column_index"
    ).fetchall()
    return [column for column in columns if column[:2] in tables]


def _sizes(connection: duckdb.DuckDBPyConnection) -> dict[tuple[str, str], int]:
    """Return about how many rows each table has, by schema and name."""
    return {
        (schema, table): size
        for schema, table, size in connection.execute(
            "select schema_name, table_name, estimated_size from duckdb_tables() "
            "where not internal and database_name = current_database()"
        ).fetchall()
    }


def read_tables(
    connection: duckdb.DuckDBPyConnection, scan: list[str], *, lower: bool = False
) -> dict[str, dict[str, object]]:
    """Return the rows and the schema's digest of each table; `scan` names those to read fully.

    With `lower`, that is done at the lowest priority.

    Raises:
        LookupError: A table in `scan` is missing.
        duckdb.Error: The file is damaged.
    """
    tables: dict[str, Table] = {}
    sizes = _sizes(connection)
    for schema, name, column, kind in _columns_of(connection, set(sizes)):
        source = f"{_quoted(schema)}.{_quoted(name)}"
        table = Table(source, sizes.get((schema, name), 0))
        key = name if schema == "main" else f"{schema}.{name}"
        tables.setdefault(key, table).columns.append((column, kind))
    if missing := sorted(set(scan) - {"*"} - set(tables)):
        raise LookupError(f"the required table {missing[0]} is not in it")
    counted = _count_rows(connection, list(tables.values()))
    others = [] if "*" in scan else [table for name, table in tables.items() if name not in scan]
    largest = sorted(others, key=lambda table: table.size, reverse=True)[:FIRST_ROWS_OF_TABLES]
    # Several threads would read more than these rows.
    connection.execute("set threads = 1")
    _read(connection, largest, f" limit {FIRST_ROWS}")
    connection.execute("reset threads")
    if lower:
        _lower_priority(NICENESS_TO_THE_END - NICENESS)
    _read(connection, [one for name, one in tables.items() if "*" in scan or name in scan])
    return {
        name: {"rows": rows, "schema": table.digest}
        for (name, table), rows in zip(tables.items(), counted, strict=True)
    }


def _count_rows(connection: duckdb.DuckDBPyConnection, tables: list[Table]) -> list[int]:
    rows: list[int] = []
    for group in _groups(tables):
        counts = " union all ".join(
            f"select {at}, count(*) from {table.source}" for at, table in enumerate(group)
        )
        rows += [count for _, count in sorted(connection.execute(counts).fetchall())]
    return rows


def _read(connection: duckdb.DuckDBPyConnection, tables: list[Table], limit: str = "") -> None:
    # count(*) and statistics are answered without reading a block; a hash of each value is not.
    for group in _groups(tables):
        hashes = " union all ".join(
            f"select bit_xor(hash({table.column_names})) from (from {table.source}{limit})"
            for table in group
        )
        connection.execute(hashes).fetchall()


def _groups(tables: list[Table]) -> Iterator[list[Table]]:
    group: list[Table] = []
    for table in tables:
        columns = sum(len(one.columns) for one in group) + len(table.columns)
        if group and (len(group) == TABLES_A_QUERY or columns > COLUMNS_A_QUERY):
            yield group
            group = []
        group.append(table)
    if group:
        yield group


def _lower_priority(by: int) -> None:
    if hasattr(os, "nice"):
        os.nice(by)


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


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def answer(request: dict[str, object], *, lower: bool) -> object:
    """Return the answer to one request."""
    with _open(str(request["path"]), str(request["catalog"])) as connection:
        if request["scan"] is None:
            return list_columns(connection)
        scan = request["scan"]
        assert isinstance(scan, list)
        tables = read_tables(connection, scan, lower=lower)
        return {"tables": tables, "broken_views": find_broken_views(connection)}


def main() -> None:
    """Answer requests, one a line."""
    _lower_priority(NICENESS)
    waiting = sys.stdin
    while select.select([waiting], [], [], IDLE_S)[0] and (line := waiting.readline()):
        request = json.loads(line)
        large = os.path.getsize(request["path"]) > READ_TO_THE_END_BYTES  # noqa: PTH202
        lower = bool(request["scan"]) and large
        print(json.dumps([answer(request, lower=lower), lower]), flush=True)  # noqa: T201
        if lower:
            return


if __name__ == "__main__":
    try:
        main()
    except (duckdb.Error, LookupError) as problem:
        sys.exit(" ".join(str(problem).split()))
