"""The rolling proof of one table, in the transaction that commits it.

Which parts are due and how they are compared is `integrity.prover`'s; here it is decided when the
target is what the snapshot sees, and what is done with a row that differs.
"""

from dataclasses import replace

import psycopg

from replica_platform.xmin.integrity.prover import Prover
from replica_platform.xmin.integrity.rolling import ContentOfBothSides
from replica_platform.xmin.reports import ContentProof, SyncReport, WriteMethod
from replica_platform.xmin.source.snapshot import SourceSnapshot
from replica_platform.xmin.stage import StagedTable
from replica_platform.xmin.target.tables import count_rows, staging_name
from replica_platform.xmin.target.write import WrittenRows
from replica_platform.xmin.writing.deletes import Deletes
from replica_platform.xmin.writing.written import Committed, Diverged, check_counts, write_spec


class Content:
    """Proves the content of target tables; called in a transaction on the target."""

    def __init__(
        self, source: SourceSnapshot, target: psycopg.Connection, prover: Prover, deletes: Deletes
    ) -> None:
        self._source = source
        self._target = target
        self._prover = prover
        self._deletes = deletes

    def prove_unchanged(self, staged: StagedTable, committed: Committed) -> SyncReport:
        """Prove a part of a table whose source is unchanged; its watermark stays."""
        planned = staged.planned
        committed = self.prove(staged, committed)
        written = committed.written
        report = replace(
            planned.report,
            rows_inserted=written.inserted,
            rows_updated=written.updated,
            rows_deleted=written.deleted,
            notes=planned.report.notes + proof_notes(committed.proof),
            seconds=planned.request.times.total,
            seconds_by_step=planned.request.times.by_step,
            proof=committed.proof,
        )
        return replace(report, written_by=WriteMethod.MERGE) if report.changed else report

    def prove(self, staged: StagedTable, committed: Committed) -> Committed:
        """Prove the part of the content that is due, now that the target is what the source was.

        Raises:
            Diverged: A row that is absent here cannot be written beside those that are.
            TooManyDeletes: Too many rows are only in the target.
        """
        planned, found = staged.planned, staged.planned.locked.found
        if found is None:
            self._prover.begin(planned.target, committed.oid)
            return committed
        if planned.plan.mode == "full":  # all rows were compared
            self._prover.proven_whole(planned.target, committed.oid, committed.rows)
            return committed
        # After a change of the definition, or where time is short, at the next sync.
        changed = any(change.statement for change in planned.changes)
        if planned.part is None or changed or not self._prover.has_time:
            return committed
        by_xmin = planned.plan.mode != "timestamp"
        both = ContentOfBothSides(
            self._source, planned.table, self._target, write_spec(staged, found), by_xmin
        )
        try:
            with planned.request.times.step("prove"):
                proof, repaired = self._prover.prove(
                    both, committed.oid, planned.part, staging_name(planned.target)
                )
        except psycopg.errors.IntegrityError as error:
            if not by_xmin:
                raise
            raise Diverged(
                "A row of the source is absent in the target, where another "
                "has its place; somebody has written to it."
            ) from error
        written = WrittenRows(
            committed.written.inserted + repaired.inserted,
            committed.written.updated + repaired.updated,
            committed.written.deleted,
        )
        committed = replace(committed, written=written, proof=proof)
        return self._delete_surplus(staged, committed) if proof.whole else committed

    def _delete_surplus(self, staged: StagedTable, committed: Committed) -> Committed:
        """Delete the rows that only the target has, which no part of the source shows."""
        rows = count_rows(self._target, staged.target)
        if rows == committed.rows:
            return committed
        deleted = self._deletes.delete(staged, rows)
        check_counts(staged, rows - deleted)
        written = replace(committed.written, deleted=committed.written.deleted + deleted)
        return replace(committed, written=written, rows=rows - deleted)


def proof_notes(proof: ContentProof | None) -> tuple[str, ...]:
    """Return what the report says of a proof: nothing, where all was equal."""
    return (proof.sentence,) if proof and proof.differing else ()
