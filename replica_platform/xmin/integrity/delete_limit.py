"""The limit on deletes, which keeps a wrong or empty source from emptying the target.

The caller has deleted already; its transaction takes the deletes back when the limit is exceeded.
"""

from dataclasses import dataclass

from replica_platform.xmin.errors import TooManyDeletes
from replica_platform.xmin.names import TableName
from replica_platform.xmin.source.catalog import SourceTable
from replica_platform.xmin.source.snapshot import Identity
from replica_platform.xmin.target.owner import moved
from replica_platform.xmin.target.watermark import Watermark

# Small tables may lose all rows: a limit there would only stop syncs that are right.
ALWAYS_ALLOWED = 1_000


@dataclass(frozen=True)
class DeleteLimit:
    """How many rows of one target table a sync may delete.

    Attributes:
        table: The source table.
        target: The target table.
        watermark: What the last sync remembers; None for a first one.
        now: The source's identity.
        max_fraction: The largest fraction of the rows.
        rewritten: Oids of the leaves that have another file since, and were not emptied.
    """

    table: SourceTable
    target: TableName
    watermark: Watermark | None
    now: Identity
    max_fraction: float
    rewritten: frozenset[int]

    def check(self, deleted: int, rows: int) -> None:
        """Refuse deletes that look like a wrong source.

        Args:
            deleted: How many rows were deleted.
            rows: How many rows there were.

        Raises:
            TooManyDeletes: More were deleted than is allowed.
        """
        self._refuse_emptying(deleted, rows)
        if self._leaf_emptied:
            return  # TRUNCATE gives a leaf a new filenode, DETACH takes it away: it was meant
        if deleted > self._always_allowed and deleted > self.max_fraction * rows:
            raise TooManyDeletes(
                f"{deleted:,} of {rows:,} rows of {self.target} are no longer in the source, more "
                f"than {self.max_fraction:.0%}; nothing was deleted. If that is right, sync once "
                "with max_delete_fraction=1."
            )

    def _refuse_emptying(self, deleted: int, rows: int) -> None:
        if self.watermark and not self._same_server and deleted and deleted == rows:
            raise TooManyDeletes(
                f"{self.table.name} has none of the {rows:,} rows of {self.target} any more, and "
                "its source is another server than at the last sync; nothing was deleted. "
                f"If that is right, drop {self.target} and sync again."
            )

    @property
    def _same_server(self) -> bool:
        return self.watermark is not None and self.watermark.identity == self.now

    @property
    def _leaf_emptied(self) -> bool:
        if self.watermark is None or not self._same_server:
            return False
        now = self.table.filenodes
        return any(
            now.get(oid) != filenode and int(oid) not in self.rewritten
            for oid, filenode in self.watermark.leaves.items()
        )

    @property
    def _always_allowed(self) -> int:
        # Another server may have another application's small table under the same names.
        if self.watermark is not None and moved(self.watermark.identity, self.now):
            return 0
        return ALWAYS_ALLOWED
