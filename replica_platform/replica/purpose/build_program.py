"""A program that builds a purpose replica's file in its own process.

    python build_program.py MASTER TARGET STORAGE < [{"schema": …, "table": …, "select": …}, …]

Each table is created by its SELECT in a new file, so that no deleted, omitted or masked value is
left in a free block.

It runs by its path and must not import this package, so its NICENESS repeats `priority.NICENESS`.
"""

import json
import os
import sys

import duckdb

NICENESS = 15


def build(master: str, target: str, storage: str, tables: list[dict[str, str]]) -> None:
    """Create `target` from the master, which is opened read-only.

    Raises:
        duckdb.Error: A SELECT is wrong, or a file cannot be read or written.
    """
    with duckdb.connect() as connection:
        connection.execute(f"attach {_text(master)} as master (read_only)")
        connection.execute(f"attach {_text(target)} as target (storage_version {_text(storage)})")
        connection.execute("use master")
        for table in tables:
            connection.execute(f"create schema if not exists target.{table['schema']}")
            connection.execute(f"create table target.{table['table']} as {table['select']}")
        connection.execute("checkpoint target")
        connection.execute("use memory")
        connection.execute("detach target")


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


if __name__ == "__main__":
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    try:
        build(sys.argv[1], sys.argv[2], sys.argv[3], json.load(sys.stdin))
    except duckdb.Error as problem:
        sys.exit(" ".join(str(problem).split()))
