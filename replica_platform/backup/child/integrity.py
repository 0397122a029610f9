"""SQLite's integrity check, also of a file that needs collations or functions of its application.

SQLite refuses to check such a file at all. Here stand-ins take the place of what is missing: then
everything is checked but the entries of the indexes that depend on it. Rows that break a constraint
(NULL in a NOT NULL column) are no damage either: applications make them, and a copy has them too.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from replica_platform.backup.child.contents import quoted, table_names
from replica_platform.core.sqlite import sqlite3

# SQLite stops at so many complaints; of damage, the first few are shown.
ALL_COMPLAINTS = 2_000_000_000
SHOWN = 5
COLLATION = re.compile(r"no such collation sequence: (.+)")
FUNCTION = re.compile(r"(?:unknown|no such) function: (.+?)(?:\(\))?")
CONSTRAINT = re.compile(
    r"(?:NULL|TEXT|NUMERIC|non-\w+) value in .+|CHECK constraint failed in .+", re.DOTALL
)
ENTRY = re.compile(r"(?:row \d+ missing from|non-unique entry in) index (.+)", re.DOTALL)
ENTRIES = re.compile(r"wrong # of entries in index (.+)", re.DOTALL)
KEY_ORDER = re.compile(r"row not in PRIMARY KEY order for (.+)", re.DOTALL)
EXPRESSION = -2  # in place of a column's number in `index_xinfo`
GENERATED = (2, 3)  # `hidden` in `table_xinfo`


@dataclass(frozen=True)
class Integrity:
    """What SQLite's integrity check found.

    Attributes:
        complaints: `ok`, or what SQLite said in one line.
        unchecked: Why a sound file could not be checked in full; None if it was, or is damaged.
    """

    complaints: str
    unchecked: str | None

    @property
    def is_sound(self) -> bool:
        """Whether nothing that could be checked is damaged."""
        return self.complaints == "ok" or self.unchecked is not None


def check_integrity(db: sqlite3.Connection) -> Integrity:
    """Check a database; indexes and UNIQUE are included.

    The connection has stand-ins for missing collations and functions afterwards, so that tables
    with them can be counted.
    """
    missing = _Missing()
    broken: Counter[str] = Counter()
    damage: list[str] = []
    try:
        complaints = _complaints(db, missing)
        exempt = _exempt_indexes(db, missing)
        for complaint in complaints:
            if complaint == "ok" or exempt.covers(complaint):
                continue
            if CONSTRAINT.fullmatch(complaint):
                broken[complaint] += 1
                continue
            damage.append(complaint)
            if len(damage) == SHOWN:
                break
    except sqlite3.DatabaseError as error:
        damage.append(str(error))
    if damage:
        return Integrity("; ".join(damage), None)
    reasons = [
        f"{complaint} ({count:,} {'row' if count == 1 else 'rows'})"
        for complaint, count in broken.most_common(SHOWN)
    ]
    if missing.collations or missing.functions:
        reasons.append(
            f"{', '.join(missing.names)} exists only in its application, so indexes that use it "
            "were not compared with their rows"
        )
    reasons += [
        f"the virtual table {name} was not checked ({error})"
        for name, error in missing.virtual.items()
    ]
    said = [
        *list(broken)[:SHOWN],
        *(f"no {name}" for name in missing.names),
        *missing.virtual.values(),
    ]
    return Integrity("; ".join(said) or "ok", "; ".join(reasons) or None)


@dataclass
class _Missing:
    """The collations and functions that a file uses and this process lacks, in lower case."""

    collations: set[str] = field(default_factory=set)
    functions: set[str] = field(default_factory=set)
    # Virtual tables whose module needs something that is missing, and SQLite's error.
    virtual: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The collations and functions, each with its kind."""
        return [
            *(f"collation {name}" for name in sorted(self.collations)),
            *(f"function {name}" for name in sorted(self.functions)),
        ]


@dataclass(frozen=True)
class _Exempt:
    """What a stand-in makes SQLite complain about without a reason.

    Attributes:
        entries: Indexes whose entries a stand-in computes or orders otherwise.
        counts: Partial indexes whose condition needs a missing function.
        keys: Tables whose primary key a stand-in orders otherwise.
    """

    entries: set[str]
    counts: set[str]
    keys: set[str]

    def covers(self, complaint: str) -> bool:
        """Return whether a complaint comes from a stand-in alone."""
        kinds = ((ENTRY, self.entries), (ENTRIES, self.counts), (KEY_ORDER, self.keys))
        return any(
            found[1] in names for kind, names in kinds if (found := kind.fullmatch(complaint))
        )


def _complaints(db: sqlite3.Connection, missing: _Missing) -> Iterator[str]:
    """Begin the check; put a stand-in for each thing that SQLite finds missing."""
    while True:
        try:
            return _texts(db.execute(f"pragma integrity_check({ALL_COMPLAINTS})"))
        except sqlite3.OperationalError as error:
            if _stand_in(db, str(error), missing):
                continue
            names = db.execute(
                "select name from sqlite_master where type = 'table' and rootpage = 0"
            ).fetchall()
            missing.virtual.update(_failing(db, [name for (name,) in names]))
            if not missing.virtual:
                raise
            return _complaints_of_tables(db, missing)


def _failing(db: sqlite3.Connection, virtual: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the virtual tables that cannot be checked, and SQLite's error."""
    for name in virtual:
        try:
            db.execute(f"pragma integrity_check({quoted(name)})").fetchall()
        except sqlite3.OperationalError as error:
            yield name, str(error)


def _complaints_of_tables(db: sqlite3.Connection, missing: _Missing) -> Iterator[str]:
    """Check one table after another, without the virtual ones that cannot be checked."""
    for name in table_names(db):
        if name not in missing.virtual:
            yield from _texts(db.execute(f"pragma integrity_check({quoted(name)})"))


def _texts(rows: sqlite3.Cursor) -> Iterator[str]:
    return (str(text) for (text,) in rows)


def _stand_in(db: sqlite3.Connection, error: str, missing: _Missing) -> bool:
    """Register what an error says is missing; return whether it was something new."""
    if (found := COLLATION.fullmatch(error)) and (name := found[1].lower()) not in (
        missing.collations
    ):
        db.create_collation(name, lambda one, other: (one > other) - (one < other))
        missing.collations.add(name)
        return True
    if (found := FUNCTION.fullmatch(error)) and (name := found[1].lower()) not in missing.functions:
        db.create_function(name, -1, lambda *values: None, deterministic=True)
        missing.functions.add(name)
        return True
    return False


def _exempt_indexes(db: sqlite3.Connection, missing: _Missing) -> _Exempt:
    exempt = _Exempt(set(), set(), set())
    if not missing.names:
        return exempt
    for table in table_names(db):
        columns = db.execute(f"pragma table_xinfo({quoted(table)})").fetchall()
        generated = {cid for cid, *_, hidden in columns if hidden in GENERATED}
        indexes = db.execute(f"pragma index_list({quoted(table)})").fetchall()
        for _, index, _, origin, is_partial in indexes:
            parts = db.execute(f"pragma index_xinfo({quoted(index)})").fetchall()
            cids = {cid for _, cid, *_ in parts}
            is_collated = any(str(part[4]).lower() in missing.collations for part in parts)
            is_computed = bool(
                missing.functions and (is_partial or EXPRESSION in cids or generated & cids)
            )
            if is_collated or is_computed:
                exempt.entries.add(index)
            if is_collated and origin == "pk":
                exempt.keys.add(table)
            if is_partial and missing.functions:
                exempt.counts.add(index)
    return exempt
