"""The rolling proof of a sync: which parts are due, and what is stored and reported of them.

How a part is cut is `parts`', how it is compared and repaired `rolling`'s.
"""

import time
from collections.abc import Mapping

import psycopg

from replica_platform.xmin.copy.ranges import BLOCK_BYTES
from replica_platform.xmin.integrity.parts import Part, Proving, next_part
from replica_platform.xmin.integrity.rolling import ContentOfBothSides
from replica_platform.xmin.names import TableName
from replica_platform.xmin.reports import ContentProof
from replica_platform.xmin.source.catalog import SourceTable
from replica_platform.xmin.target import proof
from replica_platform.xmin.target.proof import ProofRound
from replica_platform.xmin.target.write import WrittenRows


class Prover:
    """Proves parts of the target tables of one sync; without `proving` nothing is due.

    The bounds are those of the whole sync: the tables whose last part is the oldest come first.
    """

    def __init__(self, target: psycopg.Connection, proving: Proving | None) -> None:
        self._target = target
        self._proving = proving
        self._left_s = proving.most_s if proving else 0.0

    @property
    def has_time(self) -> bool:
        """Whether the seconds of this sync are not used up."""
        return self._left_s >= 0

    @property
    def proves(self) -> bool:
        """Whether content is to be proven at all."""
        return self._proving is not None

    def due(self, tables: Mapping[TableName, tuple[int, SourceTable]]) -> dict[TableName, Part]:
        """Return the parts that are due, by target table.

        Args:
            tables: The oid of each target table, and its source table, whose rows lie in heaps.
        """
        if self._proving is None or not tables:
            return {}
        rounds = proof.read_rounds(self._target, tables)
        current = {n: last for n, last in rounds.items() if last.target_oid == tables[n][0]}
        for name in tables.keys() - current.keys():
            proof.begin_round(self._target, name, tables[name][0])
        left = max(1, self._proving.most_bytes // BLOCK_BYTES)
        due = {}
        for name in sorted(tables, key=lambda name: -_waited_s(current.get(name))):
            part = next_part(tables[name][1], current.get(name), self._proving, left)
            if part is not None:
                due[name] = part
                left -= part.blocks
        return due

    def prove(
        self, both: ContentOfBothSides, oid: int, part: Part, staging: TableName
    ) -> tuple[ContentProof, WrittenRows]:
        """Compare a part, repair what differs, and store how far the proof has come.

        Args:
            both: The two sides.
            oid: The oid of the target table.
            part: The part.
            staging: The table that rows to repair are staged in.
        """
        began = time.monotonic()
        found = both.compare(part, self._left_s)
        written = both.repair(found.selections, staging) if found.selections else WrittenRows()
        repaired = written.inserted + written.updated
        target = both.spec.target
        proof.write_part(self._target, target, found.reached, found.rows, repaired)
        if found.whole:
            proof.end_round(self._target, target, oid)
        seconds = time.monotonic() - began
        self._left_s -= seconds
        return ContentProof(
            found.rows, found.differing, repaired, found.bytes, seconds, found.whole
        ), written

    def begin(self, target: TableName, oid: int) -> None:
        """Begin the first round of a table that was just copied."""
        if self._proving is not None:
            proof.begin_round(self._target, target, oid)

    def proven_whole(self, target: TableName, oid: int, rows: int) -> None:
        """Store that a sync has compared all rows anyway."""
        if self._proving is not None:
            proof.write_proof(self._target, target, oid, rows)
            proof.begin_round(self._target, target, oid)


def _waited_s(last: ProofRound | None) -> float:
    """Return the seconds since the last part of a table; a table without one comes first."""
    return last.part_age_s if last else float("inf")
