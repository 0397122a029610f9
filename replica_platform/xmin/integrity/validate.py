"""Is the target what the source was? A score, its terms, and the rows that are wrong, by name.

Both sides are read under fixed snapshots, the target's first; nothing is changed but a
temporary table in the target. What the mark has not delivered yet is a gap; what it has
delivered and is not there is a divergence, and makes the score 0.
"""

from dataclasses import asdict, dataclass
from typing import Any

from replica_platform.xmin.errors import CannotSync, NoSuchTable
from replica_platform.xmin.integrity.compare import Difference, compare
from replica_platform.xmin.names import TableName, parse_schema
from replica_platform.xmin.session import in_words, open_target
from replica_platform.xmin.source import blocker as culprit
from replica_platform.xmin.source.catalog import Table
from replica_platform.xmin.source.snapshot import Leader, Snapshot
from replica_platform.xmin.target import owner
from replica_platform.xmin.target import watermark as mark
from replica_platform.xmin.target.tables import look

NAMED = 100
CAPS = {"timestamp": 0.9, "no key": 0.8}
GAP_BUDGET_XIDS = 50_000_000
GAP_BUDGET_S = 10 * 86_400.0


@dataclass(frozen=True)
class Integrity:
    """How true the target is, from 0.0 (proven wrong) to 1.0 (proven equal)."""

    table: str
    target_table: str
    score: float
    terms: dict[str, float]
    in_sync: bool
    sentence: str
    source_rows: int
    target_rows: int
    missing: tuple[str, ...] = ()
    """Up to 100 keys that should have arrived and have not, as `(1,a)`."""
    stale: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    missing_count: int = 0
    stale_count: int = 0
    extra_count: int = 0
    pending_count: int = 0
    """Rows that changed after the mark: the next sync brings them."""
    gap_xids: int = 0
    gap_s: float | None = None
    source_ages: dict[int, int] | None = None
    """Rows by floor(log2(age of xmin))."""
    target_ages: dict[int, int] | None = None
    culprit: str | None = None
    """Who holds W back."""

    def as_dict(self) -> dict[str, Any]:
        """The same, plain."""
        return asdict(self)


def validate(
    source: str,
    target: str,
    table: str,
    *,
    into: str | None = None,
    key: tuple[str, ...] | None = None,
) -> Integrity:
    """Compare one table of `target` with `source`, both DSNs; nothing is repaired.

    Errors: `NoSuchTable` where one side has no such table, `CannotSync` without a mark,
    `TargetTaken` where the target holds another source table.
    """
    name = TableName.parse(table)
    place = TableName(parse_schema(into) if into else name.schema, name.table)
    with open_target(target) as home, Leader(source) as leader:
        with in_words("target", str(place)):
            found = look(home, [place]).get(place)
            if found is None:
                raise NoSuchTable(f"The target has no table {place}; sync {name} first.")
            mark.prepare(home)
            home.execute("begin isolation level repeatable read")
            known = mark.read(home, [str(place)]).get(str(place))
            if known is None:
                raise CannotSync(f"{place} has no mark in the target; sync {name} first.")
            gap_s = mark.age_s(home, str(place))
        with in_words("source", table):
            leader.begin([name])
            for problem in leader.failures.values():
                raise problem
            described = leader.tables[name]
            owner.check(leader.connection, leader.snapshot.identity, described, place, known)
            difference = compare(
                leader, home, described, place, key or described.key, known, found, NAMED
            )
            holder = culprit.of(leader.connection, leader.snapshot)
        return _judge(described, leader.snapshot, known, place, difference, gap_s, holder)


def _judge(
    table: Table,
    snapshot: Snapshot,
    known: mark.Mark,
    place: TableName,
    difference: Difference,
    gap_s: float | None,
    holder: str | None,
) -> Integrity:
    same_history = known.identity == snapshot.identity
    gap = max(0, snapshot.next - known.w) if same_history else 0
    wrong = difference.missing_count + difference.stale_count
    proven_extra = difference.extra_count if known.snapshot == snapshot.text else 0
    rows = max(difference.source_rows, difference.target_rows, 1)
    terms = {
        "proven equal": 0.0 if wrong or proven_extra else 1.0,
        "extra rows": 1.0 - difference.extra_count / rows,
        "coverage": difference.coverage,
        "gap in xids": max(0.0, 1.0 - gap / GAP_BUDGET_XIDS),
        "gap in seconds": max(0.0, 1.0 - (gap_s or 0.0) / GAP_BUDGET_S),
        "xmin ages": _likeness(difference.source_ages, difference.target_ages),
        "mode": _cap(known, difference),
        "history": 1.0 if same_history else 0.5,
    }
    score = 1.0
    for term in terms.values():
        score *= term
    in_sync = not (wrong or difference.extra_count or difference.pending_count)
    return Integrity(
        table=str(table.name),
        target_table=str(place),
        score=round(score, 6),
        terms={name: round(term, 6) for name, term in terms.items()},
        in_sync=in_sync,
        sentence=_sentence(place, difference, in_sync, same_history, holder),
        source_rows=difference.source_rows,
        target_rows=difference.target_rows,
        missing=difference.missing,
        stale=difference.stale,
        extra=difference.extra,
        missing_count=difference.missing_count,
        stale_count=difference.stale_count,
        extra_count=difference.extra_count,
        pending_count=difference.pending_count,
        gap_xids=gap,
        gap_s=gap_s,
        source_ages=difference.source_ages,
        target_ages=difference.target_ages,
        culprit=holder,
    )


def _cap(known: mark.Mark, difference: Difference) -> float:
    cap = CAPS["timestamp"] if known.mode == "timestamp" else 1.0
    return min(cap, 1.0 if difference.keyed else CAPS["no key"])


def _likeness(one: dict[int, int] | None, other: dict[int, int] | None) -> float:
    """1 for equal distributions, 0 for disjoint ones: 1 - L1 / 2."""
    if not one or not other:
        return 1.0
    here, there = sum(one.values()), sum(other.values())
    distance = sum(
        abs(one.get(age, 0) / here - other.get(age, 0) / there) for age in {*one, *other}
    )
    return 1.0 - distance / 2


def _sentence(
    place: TableName, d: Difference, in_sync: bool, same_history: bool, holder: str | None
) -> str:
    if not same_history:
        return (
            f"{place} was synced from another server, timeline or database; "
            "the next sync compares both by hashes and reads what differs."
        )
    if in_sync:
        return f"{place} is in sync: nothing to do."
    parts = [
        f"{count:,} {word}"
        for count, word in (
            (d.missing_count, "missing"),
            (d.stale_count, "stale"),
            (d.extra_count, "extra"),
            (d.pending_count, "not synced yet"),
        )
        if count
    ]
    act = "run a sync with mode full" if d.missing_count or d.stale_count else "run a sync"
    held = f" {holder}" if holder else ""
    return f"{place} differs from its source ({', '.join(parts)} rows): {act}.{held}"
