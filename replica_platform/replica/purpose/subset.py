"""Builds the file of a purpose replica, run as a program of its own: only what was asked for.

    python subset.py MASTER TARGET STORAGE < [{"schema": …, "table": …, "select": …}, …]

Each table is made anew by its SELECT, so that no deleted, left out or masked value comes along
in a free block. It imports nothing of this package, and yields to others.
"""

import json
import os
import sys

import duckdb

NICENESS = 15


def build(master: str, target: str, storage: str, tables: list[dict[str, str]]) -> None:
    """Make `target` from the read-only master. Errors: `duckdb.Error`."""
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
