"""Queries of a user against a master or a candidate: rules that hold, the time of its data.

Nothing here writes. A rule is a query for the rows that break it: no row means that it holds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any

import duckdb

from replica_platform.replica.copy.file_format import attach_sql, quoted
from replica_platform.replica.errors import RuleWrong
from replica_platform.replica.store.candidate import Candidate
from replica_platform.replica.store.layout import Layout

SHOWN = 20
# The catalogs under which rules see the current generation.
PUBLISHED, CURRENT = "published", "current_generation"


@dataclass(frozen=True)
class BrokenRule:
    """A broken rule.

    Attributes:
        rule: The rule in words.
        columns: The names of the columns of its query.
        rows: Up to `SHOWN` rows that break it.
    """

    rule: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


def broken_rules(
    connection: duckdb.DuckDBPyConnection, rules: Mapping[str, str]
) -> list[BrokenRule]:
    """Return the rules that are broken, by their sentences; an empty list where all hold.

    Raises:
        RuleWrong: The query of a rule cannot be run.
    """
    broken = []
    for rule, query in rules.items():
        found = _run(connection, f"The rule “{rule}”", f"from ({_one(query)}) limit {SHOWN}")
        if rows := found.fetchall():
            columns = tuple(column[0] for column in found.description or ())
            broken.append(BrokenRule(rule, columns, tuple(rows)))
    return broken


def audit(candidate: Candidate, rules: Mapping[str, str]) -> list[BrokenRule]:
    """Return the rules that a candidate breaks.

    A rule may compare it with what readers have: `published.NAME` is the table NAME of the current
    generation, empty where there is none.

    Raises:
        CandidateGone: It was released, discarded or replaced.
        RuleWrong: The query of a rule cannot be run.
    """
    with candidate.read() as connection:
        if any(f"{PUBLISHED}." in query for query in rules.values()):
            _show_published(connection, candidate)
        return broken_rules(connection, rules)


def _show_published(connection: duckdb.DuckDBPyConnection, candidate: Candidate) -> None:
    """Show the current generation's tables to rules, and an empty one for each that it lacks."""
    known = _attach_current(connection, candidate)
    connection.execute(f"attach ':memory:' as {PUBLISHED}")
    for schema, table in _tables(connection, candidate.manifest.catalog):
        name = f"{quoted(schema)}.{quoted(table)}"
        connection.execute(f"create schema if not exists {PUBLISHED}.{quoted(schema)}")
        if (schema, table) in known:
            connection.execute(f"create view {PUBLISHED}.{name} as from {CURRENT}.{name}")
        else:
            connection.execute(f"create table {PUBLISHED}.{name} as from {name} limit 0")


def _attach_current(
    connection: duckdb.DuckDBPyConnection, candidate: Candidate
) -> set[tuple[str, str]]:
    """Attach the current generation, and return its tables; none where it cannot be opened."""
    layout = Layout(candidate.store)
    current = layout.latest()
    if current is None:
        return set()
    try:
        connection.execute(attach_sql(layout.data(current), CURRENT))
        return set(_tables(connection, CURRENT))
    except duckdb.Error:
        return set()


def _tables(connection: duckdb.DuckDBPyConnection, catalog: str) -> list[tuple[str, str]]:
    return connection.execute(
        "select schema_name, table_name from duckdb_tables() where database_name = ?"
        " and not temporary",
        [catalog],
    ).fetchall()


def data_as_of(connection: duckdb.DuckDBPyConnection, query: str) -> datetime | None:
    """Return the first value of a query as a time; a day is its midnight in UTC.

    Raises:
        RuleWrong: The query cannot be run.
    """
    row = _run(connection, "The query for the age of the data", _one(query)).fetchone()
    found = row[0] if row else None
    if isinstance(found, datetime):
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    return datetime.combine(found, time(), UTC) if isinstance(found, date) else None


def _one(query: str) -> str:
    """Return a query without a semicolon at its end, so that it can be part of another one."""
    return query.strip().removesuffix(";")


def _run(connection: duckdb.DuckDBPyConnection, what: str, query: str) -> duckdb.DuckDBPyConnection:
    try:
        return connection.execute(query)
    except duckdb.Error as error:
        reason = " ".join(str(error).partition("\n")[0].split())
        raise RuleWrong(f"{what} cannot be run: {reason} Correct it, and publish again.") from error
