"""The proof that a target table equals its source: a score, its terms, and the rows that differ.

Both sides are read under fixed snapshots, the target's first; only a temporary table and, where
content was compared, its proof are written. A row that the watermark does not cover yet is pending;
one that it covers and that is not there, or not in this version, is a divergence and makes the
score 0.
"""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import psycopg

from replica_platform.core.reports import ReportFields, format_age
from replica_platform.xmin.errors import CannotSync, NoSuchTable, translate_errors
from replica_platform.xmin.integrity.compare import BothSides, Difference, compare
from replica_platform.xmin.names import TableName
from replica_platform.xmin.reports import Mask, TableSpec
from replica_platform.xmin.session import open_target
from replica_platform.xmin.source.blocker import find_blocker
from replica_platform.xmin.source.catalog import SourceTable
from replica_platform.xmin.source.projection import as_delivered
from replica_platform.xmin.source.snapshot import SourceSnapshot
from replica_platform.xmin.target import watermark as watermarks
from replica_platform.xmin.target.owner import check_owner
from replica_platform.xmin.target.proof import (
    Proof,
    ProofRound,
    read_proof,
    read_rounds,
    write_proof,
)
from replica_platform.xmin.target.tables import TargetTable, inspect
from replica_platform.xmin.target.types import make_operators_visible, types_of
from replica_platform.xmin.target.watermark import Watermark

MOST_NAMED = 100
CAPS = {"timestamp": 0.9, "no key": 0.8}
# Only a run that has compared the content itself gives 1.0; others what earlier proofs are worth.
NEVER_PROVEN, PROVEN_BEFORE = 0.9995, 0.9999
GAP_BUDGET_XIDS = 50_000_000
GAP_BUDGET_S = 10 * 86_400.0


# The terms that changes of the source since the last sync lower.
PENDING_TERMS = ("extra rows", "xmin ages")


@dataclass(frozen=True)
class Integrity(ReportFields):
    """How far a target table equals its source.

    Attributes:
        table: The source table.
        target_table: The target table.
        score: From 0.0 (proven wrong) to 1.0 (proven equal): the product of the terms.
        terms: The terms by name.
        in_sync: Whether no row differs and none is pending.
        sentence: What was found, and what to do next.
        source_rows: Rows in the source.
        target_rows: Rows in the target.
        missing: Up to 100 keys that should have arrived and have not, as `(1,a)`.
        stale: Up to 100 keys that arrived in another version.
        extra: Up to 100 keys that only the target has.
        missing_count: How many are missing.
        stale_count: How many are stale.
        extra_count: How many are extra.
        pending_count: Rows that changed after the watermark: the next sync brings them.
        gap_xids: How many xids the watermark lies behind the source.
        gap_s: Seconds since the last sync.
        content_rows: How many rows' content was proven equal when it was last compared; None
            where it never was.
        content_age_s: Seconds since then; 0 where this run has compared it.
        content_coverage: The part of the rows, 0 to 1, whose content was ever proven.
        content_repaired: How many rows the last sync that found other content has repaired.
        content_repaired_age_s: Seconds since then; None where none has found any.
        source_ages: Rows of the source by floor(log2(age of xmin)).
        target_ages: Rows of the target by the same.
        held_back_by: A sentence that names the transaction that holds the watermark back.
    """

    table: str
    target_table: str
    score: float
    terms: dict[str, float]
    in_sync: bool
    sentence: str
    source_rows: int
    target_rows: int
    missing: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    missing_count: int = 0
    stale_count: int = 0
    extra_count: int = 0
    pending_count: int = 0
    gap_xids: int = 0
    gap_s: float | None = None
    content_rows: int | None = None
    content_age_s: float | None = None
    content_coverage: float = 0.0
    content_repaired: int = 0
    content_repaired_age_s: float | None = None
    source_ages: dict[int, int] | None = None
    target_ages: dict[int, int] | None = None
    held_back_by: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the table is in sync."""
        return self.in_sync

    @property
    def settled_score(self) -> float:
        """The score without what the source has changed since the watermark, 0 where it is wrong.

        Rows that wait for the next sync, or that the source has deleted since the last one, are no
        damage; of a small table on a busy source they are a large share.
        """
        return math.prod(term for name, term in self.terms.items() if name not in PENDING_TERMS)


@dataclass(frozen=True)
class _Content:
    """What is known of a table's content.

    Attributes:
        proof: The last proof of the whole.
        round: How far the rolling proof of the syncs has come.
        compared: Whether this run has compared it.
    """

    proof: Proof | None
    round: ProofRound | None
    compared: bool

    def coverage(self, rows: int) -> float:
        """Return the part of the rows that was ever proven."""
        if self.proof is not None:
            return 1.0
        return min(1.0, self.round.rows / max(rows, 1)) if self.round else 0.0

    def term(self, rows: int) -> float:
        """Return the term of the score: less where less was proven, or longer ago."""
        if self.compared:
            return 1.0
        age_s = self.proof.age_s if self.proof else 0.0
        worth = self.coverage(rows) * max(0.0, 1.0 - age_s / GAP_BUDGET_S)
        return NEVER_PROVEN + (PROVEN_BEFORE - NEVER_PROVEN) * worth

    @property
    def sentence(self) -> str:
        """When the content was last proven, and of how many rows."""
        return f" {self._proven}{self._repaired}".rstrip()

    @property
    def _proven(self) -> str:
        if self.compared:
            return f"The content of {self.proof.rows:,} rows is equal." if self.proof else ""
        if self.proof:
            age = format_age(self.proof.age_s)
            return f"Its content was last proven {age} ago, of {self.proof.rows:,} rows."
        if self.round and self.round.rows:
            return f"The content of {self.round.rows:,} rows has been proven by syncs so far."
        return "Its content was never compared; validate it once with --content (content=True)."

    @property
    def _repaired(self) -> str:
        if self.round is None or self.round.repaired_age_s is None:
            return ""
        return (
            f" A sync repaired {self.round.repaired:,} rows {format_age(self.round.repaired_age_s)}"
            " ago that another program had changed in the target."
        )


def validate(
    source: str,
    target: str,
    table: str,
    *,
    into: str | None = None,
    key: tuple[str, ...] | None = None,
    content: bool = False,
    masks: Mapping[str, Mask] | None = None,
) -> Integrity:
    """Compare one table of the target with its source; nothing is repaired.

    By key and xmin, which shows every row that a sync has missed; not what another program has
    written into the target. `content` shows that too, and the target remembers when it was proven.

    Args:
        source: The DSN of the source.
        target: The DSN of the target.
        table: The source table, `schema.table` as psql reads it.
        into: The schema in the target; None for the same schema.
        key: The key columns, where the source has no key.
        content: Whether all columns are compared too, which reads the whole of both tables.
        masks: The masks that the table is synced with, to compare the content of those columns.

    Returns:
        The score, its terms and the rows that differ.

    Raises:
        BadTableName: `table` or `into` is not a name.
        NoSuchTable: One side has no such table.
        CannotSync: The target table has no watermark, or content is compared without the masks
            that it was synced with.
        TargetTaken: The target holds another source table.
        SourceInterrupted: The source ended the read.
        TargetInterrupted: The target ended the read.
    """
    name = TableName.parse(table)
    target_name = TableSpec(table, into).target_name
    with (
        open_target(target) as connection,
        SourceSnapshot(source) as session,
        translate_errors("target", target_name),
    ):
        found, watermark = _fix_target(connection, name, target_name)
        gap_s = watermarks.age_s(connection, target_name)
        with translate_errors("source", name):
            session.begin([name])
            for problem in session.failures.values():
                raise problem
            described = as_delivered(session.tables[name], watermark.fingerprint, masks or {})
            check_owner(
                session.connection, session.snapshot.identity, described, target_name, watermark
            )
            needed = types_of(session.connection, described)
        make_operators_visible(connection, needed)
        both = BothSides(
            session, described, connection, target_name, found, key or described.key, watermark,
            content,
        )  # fmt: skip
        if both.compares_content:
            _require_masks(described, watermark)
        difference = compare(both, MOST_NAMED)
        content_known = _content(both, difference)
        with translate_errors("source", name):
            blocker = find_blocker(session.connection, session.snapshot)
        connection.execute("commit")
    return _judged(both, difference, gap_s, blocker, content_known)


def _content(both: BothSides, difference: Difference) -> _Content:
    """Return what is known of the content, by this run and by earlier ones."""
    rounds = read_rounds(both.target, [both.target_name])
    found = rounds.get(both.target_name)
    if found is not None and found.target_oid != both.found.oid:
        found = None
    return _Content(_proof(both, difference), found, both.compares_content)


def _require_masks(table: SourceTable, watermark: Watermark) -> None:
    compared = {str(column.attnum) for column in table.columns}
    unknown = [n for n in watermark.fingerprint.get("masked", {}) if n not in compared]
    if unknown:
        column = table.left_out.get(int(unknown[0]), unknown[0])
        raise CannotSync(
            f"Column {column} of {table.name} is masked in the target; its content can only be "
            "compared with the masks of the last sync. Validate it with the same `masks`, on "
            "the command line `--mask` (the check is_intact of the platform does), or without "
            "content."
        )


def _proof(both: BothSides, difference: Difference) -> Proof | None:
    """Return the proof of this run, which is stored, or else the last one."""
    if not both.compares_content:
        return read_proof(both.target, both.target_name, both.found.oid)
    wrong = any(difference.counts.get(kind) for kind in ("missing", "stale", "extra"))
    if wrong or not difference.keyed:
        return None
    rows = difference.source_rows - difference.counts.get("pending", 0)
    # A role or a server that may only read proves as well, but cannot remember it.
    refused = (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction)
    with suppress(*refused), both.target.transaction():
        write_proof(both.target, both.target_name, both.found.oid, rows)
    return Proof(0.0, rows)


def _fix_target(
    connection: psycopg.Connection, name: TableName, target_name: TableName
) -> tuple[TargetTable, Watermark]:
    """Begin the target's transaction; return the table and its watermark as it sees them."""
    found = inspect(connection, [target_name]).get(target_name)
    if found is None:
        raise NoSuchTable(f"The target has no table {target_name}; sync {name} first.")
    watermarks.prepare(connection)
    connection.execute("begin isolation level repeatable read")
    watermark = watermarks.read(connection, [target_name]).get(target_name)
    if watermark is None:
        raise CannotSync(f"{target_name} has no watermark in the target; sync {name} first.")
    return found, watermark


def _judged(
    both: BothSides,
    difference: Difference,
    gap_s: float | None,
    blocker: str | None,
    content: _Content,
) -> Integrity:
    same_history = both.watermark.identity == both.source.snapshot.identity
    gap_xids = max(0, both.source.snapshot.next - both.watermark.w) if same_history else 0
    terms = {
        "proven equal": _proven_equal(both, difference),
        "extra rows": _extra_rows(difference),
        "gap in xids": max(0.0, 1.0 - gap_xids / GAP_BUDGET_XIDS),
        "gap in seconds": max(0.0, 1.0 - (gap_s or 0.0) / GAP_BUDGET_S),
        "xmin ages": _likeness(difference.source_ages, difference.target_ages),
        "mode": _cap(both.watermark, difference),
        "content": content.term(difference.target_rows),
        "history": 1.0 if same_history else 0.5,
    }
    counts, named = difference.counts, difference.named
    return Integrity(
        table=str(both.table.name),
        target_table=str(both.target_name),
        score=round(math.prod(terms.values()), 6),
        terms={name: round(term, 6) for name, term in terms.items()},
        in_sync=not any(counts.values()),
        sentence=_sentence(both.target_name, counts, same_history, blocker) + content.sentence,
        source_rows=difference.source_rows,
        target_rows=difference.target_rows,
        missing=named.get("missing", ()),
        stale=named.get("stale", ()),
        extra=named.get("extra", ()),
        missing_count=counts.get("missing", 0),
        stale_count=counts.get("stale", 0),
        extra_count=counts.get("extra", 0),
        pending_count=counts.get("pending", 0),
        gap_xids=gap_xids,
        gap_s=gap_s,
        content_rows=content.proof.rows if content.proof else None,
        content_age_s=content.proof.age_s if content.proof else None,
        content_coverage=content.coverage(difference.target_rows),
        content_repaired=content.round.repaired if content.round else 0,
        content_repaired_age_s=content.round.repaired_age_s if content.round else None,
        source_ages=difference.source_ages,
        target_ages=difference.target_ages,
        held_back_by=blocker,
    )


def _proven_equal(both: BothSides, difference: Difference) -> float:
    counts = difference.counts
    # An extra row proves a divergence only where the source has not changed since the watermark.
    unchanged = both.watermark.snapshot == both.source.snapshot.text
    wrong = counts.get("missing") or counts.get("stale") or (unchanged and counts.get("extra"))
    return 0.0 if wrong else 1.0


def _extra_rows(difference: Difference) -> float:
    rows = max(difference.source_rows, difference.target_rows, 1)
    return 1.0 - difference.counts.get("extra", 0) / rows


def _cap(watermark: Watermark, difference: Difference) -> float:
    cap = CAPS["timestamp"] if watermark.mode == "timestamp" else 1.0
    return min(cap, 1.0 if difference.keyed else CAPS["no key"])


def _likeness(one: dict[int, int] | None, other: dict[int, int] | None) -> float:
    """Return 1 for equal distributions and 0 for disjoint ones: 1 - L1 / 2."""
    if not one or not other:
        return 1.0
    one_total, other_total = sum(one.values()), sum(other.values())
    distance = sum(
        abs(one.get(age, 0) / one_total - other.get(age, 0) / other_total) for age in {*one, *other}
    )
    return 1.0 - distance / 2


def _sentence(
    target: TableName, counts: Mapping[str, int], same_history: bool, blocker: str | None
) -> str:
    if not same_history:
        return (
            f"{target} was synced from another server, timeline or database; "
            "the next sync compares both by hashes and reads what differs."
        )
    if not any(counts.values()):
        return f"{target} is in sync: nothing to do."
    words = {"missing": "missing", "stale": "stale", "extra": "extra", "pending": "not synced yet"}
    found = [f"{counts[kind]:,} {word}" for kind, word in words.items() if counts.get(kind)]
    wrong = counts.get("missing") or counts.get("stale")
    advice = "run a sync with mode full" if wrong else "run a sync"
    held_back = f" {blocker}" if blocker else ""
    return f"{target} differs from its source ({', '.join(found)} rows): {advice}.{held_back}"
