"""A process that writes to a lake until it is killed, and prints what was acknowledged.

    python -m replica_platform_tests.faults.lake_writer CATALOG SCHEMA DATA NAME append|count|plain

`append` inserts batches of ROWS rows, `count` adds 1 to a counter that all writers share, and
`plain` does that as a caller without retries: it reads, adds, and writes what it has.
"""

import sys
from contextlib import suppress

import duckdb

from replica_platform.lake import Lake, LakeConflict, LakeWriter

ROWS = 200


def main() -> None:
    catalog, schema, data, name, how = sys.argv[1:]
    with LakeWriter(Lake(catalog, schema, data)) as writer:
        number = 0
        while True:
            done = f"{name} {number}"

            def append(connection: duckdb.DuckDBPyConnection, number: int = number) -> None:
                connection.execute(
                    f"insert into batch select '{name}', {number}, range from range({ROWS})"
                )

            def count(connection: duckdb.DuckDBPyConnection) -> None:
                connection.execute("update counter set n = n + 1")

            try:
                if how == "plain":
                    plain_count(writer)
                else:
                    writer.write(append if how == "append" else count)
            except LakeConflict:
                continue
            sys.stdout.write(f"{done}\n")
            sys.stdout.flush()
            number += 1


def plain_count(writer: LakeWriter) -> None:
    """Add 1 without asking whether the commit went through."""
    with suppress(duckdb.Error):
        connection = writer._connection
        connection.execute("begin")
        connection.execute("update counter set n = n + 1")
        connection.execute("commit")


if __name__ == "__main__":
    main()
