"""A target table once its rows are written: what it must be, and how rows are written to it.

What is committed with them is `commit`'s.
"""

from dataclasses import dataclass

import psycopg
from psycopg import sql

from replica_platform.xmin.errors import CannotSync
from replica_platform.xmin.reports import ContentProof, WriteMethod
from replica_platform.xmin.stage import StagedTable
from replica_platform.xmin.target import write
from replica_platform.xmin.target.columns import writable_columns
from replica_platform.xmin.target.tables import TargetTable, staging_name
from replica_platform.xmin.target.write import WriteSpec, WrittenRows

# The staged rows are all that the table, or the scope of a repair, has to hold.
_REPLACING = (WriteMethod.REPLACE, WriteMethod.REPAIR, WriteMethod.MULTISET)


class Diverged(Exception):
    """The target is proven not to hold what its watermark, or the ledger of a copy, says."""


@dataclass(frozen=True)
class Committed:
    """The target table once its rows are written.

    Attributes:
        oid: Its oid.
        written: The rows that were written.
        rows: How many rows it has.
        proof: The part of its content that was proven.
    """

    oid: int
    written: WrittenRows
    rows: int
    proof: ContentProof | None = None


def write_spec(staged: StagedTable, found: TargetTable) -> WriteSpec:
    """Return how staged rows are written to a target table."""
    planned = staged.planned
    columns = writable_columns(planned.table, found, locations=planned.locations)
    # Not where the delete would take more than the insert brings back.
    kept = set(found.columns) - found.generated - set(columns)
    delete_changed = found.has_constraints_beside(planned.key) and not found.acted_upon and not kept
    return WriteSpec(
        staged.target,
        staging_name(staged.target),
        columns,
        planned.key,
        found.always_identity,
        planned.casts,
        delete_changed,
        staged.scope,
        planned.locations,
    )


def check_triggers(target: psycopg.Connection, staged: StagedTable, found: TargetTable) -> None:
    """Check that the user's triggers have let every row through as it is.

    Deletes that a trigger suppresses after a scan show in the counts; the repair comes here.

    Raises:
        CannotSync: They have not.
    """
    if staged.method is WriteMethod.BLOCKS and not staged.planned.key:
        return  # the counts of the changed blocks were compared
    spec, replaced = write_spec(staged, found), staged.method in _REPLACING
    if staged.has_rows and write.differs_from_staged(target, spec, replaced=replaced):
        names = [sql.Identifier(name).as_string() for name in found.row_triggers]
        disable = ", ".join(f"DISABLE TRIGGER {name}" for name in names)
        raise CannotSync(
            f"{staged.target} is not what the source is after it was written; its triggers "
            f"({', '.join(names)}) suppress or change rows. Nothing was changed. Run in the "
            f"target: ALTER TABLE {staged.target.sql.as_string()} {disable};"
        )


def check_counts(staged: StagedTable, rows: int) -> None:
    """Compare the counts after a scan: the target has at least the source's rows.

    Raises:
        Diverged: It has fewer, or with deletes other than as many.
    """
    deletes, source_rows = staged.planned.request.spec.deletes, staged.source_rows
    if source_rows is None or rows == source_rows or (deletes == "never" and rows > source_rows):
        return
    raise Diverged(
        f"The target has {rows:,} rows where the source has {source_rows:,}, though its watermark "
        "says that all were delivered; somebody has written to it."
    )
