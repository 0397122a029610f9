"""The proof that a local copy equals the remote database: counts, newest values, digests."""

from dataclasses import dataclass

from replica_platform.backup.child.contents import Newest, count_tables, range_digests
from replica_platform.backup.errors import Damaged
from replica_platform.backup.remote.connection import RemoteAgent
from replica_platform.backup.remote.schema import Schema
from replica_platform.backup.remote.synchronise import range_bounds
from replica_platform.core.sqlite import sqlite3


@dataclass(frozen=True)
class Comparison:
    """What was compared while the remote database did not change.

    Attributes:
        tables: Rows of each remote table.
        newest: The newest remote value of each column that holds a time.
        ranges: How many ranges of keys were compared by their digests.
        differing: What is not equal, in words.
    """

    tables: dict[str, int | None]
    newest: Newest
    ranges: int
    differing: list[str]

    def require_equal(self) -> None:
        """Raise `Damaged` unless both sides are equal."""
        if self.differing:
            raise Damaged(
                f"The copy is not equal to the remote database: {', '.join(self.differing)} "
                "differ; nothing was kept. Try again, or by the other method."
            )


def compare(agent: RemoteAgent, db: sqlite3.Connection, schema: Schema) -> Comparison:
    """Compare rows of each table, newest values and the digest of every range."""
    local, remote = list(count_tables(db)), agent.ask("count_tables")
    ranges, differing = 0, [] if local == remote else ["rows or newest values"]
    for table in schema.tables:
        bounds = range_bounds(db, table)
        remote_digests = agent.ask("digest_ranges", table=table, bounds=bounds)
        if range_digests(db, table, bounds) != remote_digests:
            differing.append(f"the rows of {table['name']}")
        ranges += len(bounds) + 1
    tables, newest = remote
    return Comparison(tables, newest, ranges, differing)
