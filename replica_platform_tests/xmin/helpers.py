"""Statements and queries, as every test of the engine runs them."""

from typing import Any

import psycopg


def execute(dsn: str, *statements: str) -> None:
    """Run statements, each in its own transaction."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)  # type: ignore[arg-type]


def rows(dsn: str, query: str) -> list[tuple[Any, ...]]:
    """Return all rows of a query."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(query).fetchall()  # type: ignore[arg-type]
