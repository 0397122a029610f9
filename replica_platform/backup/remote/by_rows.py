"""The method `query`: move the rows that differ from the copy of the last pull.

First most rows in short reads, then what changed meanwhile in one read transaction, in which both
sides are compared. The transaction keeps the remote WAL from being reset, so it is kept short.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from replica_platform.backup.child.process import take_snapshot
from replica_platform.backup.errors import Busy
from replica_platform.backup.remote.compare import Comparison, compare
from replica_platform.backup.remote.connection import RemoteAgent
from replica_platform.backup.remote.schema import (
    Schema,
    create_indexes_views_and_triggers,
    create_tables,
    drop_triggers,
    has_schema,
    read_schema,
    set_application_numbers,
)
from replica_platform.backup.remote.synchronise import synchronise
from replica_platform.core.reports import Progress
from replica_platform.core.sqlite import sqlite3

# How often a file without WAL may change during a read before the pull gives up.
ROUNDS = 5


class _Moved:
    """The number of rows moved so far, reported as progress."""

    def __init__(self, total: int, progress: Progress) -> None:
        self.rows = 0
        self.total = total
        self._progress = progress

    def count(self, rows: int) -> None:
        """Add the rows of a page."""
        self.rows += rows
        self._progress(min(self.rows, self.total), self.total, "rows")

    def finish(self) -> None:
        """Report that all rows are here, moved or equal before."""
        self._progress(self.total, self.total, "rows")


def copy_rows(
    agent: RemoteAgent, previous: Path, copy: Path, journal_mode: str, progress: Progress
) -> tuple[Comparison, int]:
    """Make `copy` equal to the remote database; return the comparison and the rows moved.

    Args:
        agent: The other host.
        previous: The copy of the last pull, from which `copy` starts; it need not exist.
        copy: The file to make.
        journal_mode: The journal mode of the remote database.
        progress: Called with the rows that were moved.

    Raises:
        Busy: The remote tables changed, or a file without WAL changes too fast.
        Damaged: The sides differ.
        Unreadable: There are virtual tables, or the remote file cannot be read.
    """
    tables, _ = agent.ask("count_tables")
    moved = _Moved(sum(count or 0 for count in tables.values()), progress)
    schema = read_schema(agent)
    with _local_copy(previous, copy, schema) as db:
        for table in schema.tables:
            synchronise(db, agent, table, moved.count)
        for _ in range(ROUNDS):
            with _one_moment(agent, journal_mode) as is_unchanged:
                comparison = _catch_up(agent, db, schema, moved)
                if is_unchanged():
                    comparison.require_equal()
                    break
        else:
            raise Busy(
                "The remote database is not in WAL mode and changes faster than it can be "
                "read; use --method scp."
            )
        create_indexes_views_and_triggers(db, schema)
    moved.finish()
    return comparison, moved.rows


def _catch_up(
    agent: RemoteAgent, db: sqlite3.Connection, schema: Schema, moved: _Moved
) -> Comparison:
    """Move what changed since the last read and compare again."""
    if read_schema(agent) != schema:
        raise Busy("The remote tables were changed during the pull; try again.")
    comparison = compare(agent, db, schema)
    if not comparison.differing:
        return comparison
    for table in schema.tables:
        synchronise(db, agent, table, moved.count)
    return compare(agent, db, schema)


@contextmanager
def _local_copy(previous: Path, copy: Path, schema: Schema) -> Iterator[sqlite3.Connection]:
    """Open `copy`, made from the previous pull or empty, in one transaction."""
    if previous.exists():
        take_snapshot(previous.resolve(), copy, checkpoint=True)
        with closing(sqlite3.connect(copy)) as db:
            is_usable = has_schema(db, schema)
        if not is_usable:
            os.truncate(copy, 0)  # not removed: it has the owner of the file that it replaces
    with closing(sqlite3.connect(copy, isolation_level=None)) as db:
        # The file is thrown away when anything fails, so it needs no journal.
        for setting in ("journal_mode=off", "synchronous=off", "ignore_check_constraints=on"):
            db.execute(f"pragma {setting}")
        if not db.execute("select count(*) from sqlite_master").fetchone()[0]:
            create_tables(db, schema)
        set_application_numbers(db, schema)
        db.execute("begin")
        drop_triggers(db)
        yield db
        db.execute("commit")
        db.execute("pragma journal_mode=delete")


@contextmanager
def _one_moment(agent: RemoteAgent, journal_mode: str) -> Iterator[Callable[[], bool]]:
    """Read one state of the remote database; yield a function that says whether it was one.

    In WAL mode a read transaction holds it and blocks no writer. Without WAL that would block the
    writer, so every read is short there and a commit in between is detected.
    """
    if journal_mode == "wal":
        agent.ask("begin_read")
        yield lambda: True
        agent.ask("end_read")
    else:
        before = agent.ask("data_version")
        yield lambda: bool(agent.ask("data_version") == before)
