"""The method `query`: move the rows that differ from the copy of the last pull.

The agent copies the file on its host, in one short transaction, and reads the rows from that copy.
A long read transaction would keep the remote WAL from being reset. Where there is no space for a
copy, every read is short, and what was read counts if no commit happened meanwhile.
"""

import os
from collections.abc import Iterator
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

# How often a file may change while it is read before the pull gives up.
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
    agent: RemoteAgent, previous: Path, copy: Path, progress: Progress
) -> tuple[Comparison, int]:
    """Make `copy` equal to the remote database; return the comparison and the rows moved.

    Args:
        agent: The other host.
        previous: The copy of the last pull, from which `copy` starts; it need not exist.
        copy: The file to make.
        progress: Called with the rows that were moved.

    Raises:
        Busy: The remote disk has no space for a copy, and the file changes too fast.
        Damaged: The sides differ.
        Unreadable: There are virtual tables, or the remote file cannot be read.
    """
    # Without space for a copy there, the file itself is read.
    is_one_state = bool(agent.ask("has_space"))
    if is_one_state:
        agent.ask("take_snapshot")
    tables, _ = agent.ask("count_tables")
    moved = _Moved(sum(count or 0 for count in tables.values()), progress)
    schema = read_schema(agent)
    with _local_copy(previous, copy, schema) as db:
        if is_one_state:
            comparison = _synchronise_all(agent, db, schema, moved)
        else:
            comparison = _synchronise_until_unchanged(agent, db, schema, moved)
        comparison.require_equal()
        create_indexes_views_and_triggers(db, schema)
    moved.finish()
    return comparison, moved.rows


def _synchronise_until_unchanged(
    agent: RemoteAgent, db: sqlite3.Connection, schema: Schema, moved: _Moved
) -> Comparison:
    """Read the remote file in short transactions until no commit happened during a round."""
    for _ in range(ROUNDS):
        before = agent.ask("data_version")
        if read_schema(agent) != schema:
            raise Busy("The remote tables were changed during the pull; try again.")
        comparison = _synchronise_all(agent, db, schema, moved)
        if agent.ask("data_version") == before:
            return comparison
    raise Busy(
        "The remote database changes faster than it can be read, and its disk has no space for a "
        "copy of it; make room there, or pull when it changes less."
    )


def _synchronise_all(
    agent: RemoteAgent, db: sqlite3.Connection, schema: Schema, moved: _Moved
) -> Comparison:
    for table in schema.tables:
        synchronise(db, agent, table, moved.count)
    return compare(agent, db, schema)


@contextmanager
def _local_copy(previous: Path, copy: Path, schema: Schema) -> Iterator[sqlite3.Connection]:
    """Open `copy`, made from the previous pull or empty, in one transaction."""
    if previous.exists():
        take_snapshot(previous.resolve(), copy, checkpoint=True, is_kept=False)
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
