"""Ask a database that no program writes to the queries of a restore drill."""

from contextlib import closing
from pathlib import Path

from replica_platform.backup.child.messages import Answers
from replica_platform.core.reports import Progress
from replica_platform.core.sqlite import sqlite3


def ask_queries(file: Path, queries: list[str], progress: Progress) -> Answers:
    """Return the first value of each query's first row, or the query's error.

    The file is open for reading only.
    """
    values: list[str | int | float | None] = []
    errors: list[str | None] = []
    uri = f"{file.resolve().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as db:
        for number, text in enumerate(queries, start=1):
            value, error = None, None
            try:
                row = db.execute(text).fetchone()
                value = row[0] if row else None
            except sqlite3.Error as raised:
                error = str(raised)
            values.append(value if isinstance(value, str | int | float) else None)
            errors.append(error)
            progress(number, len(queries), "steps")
    return Answers(values, errors)
