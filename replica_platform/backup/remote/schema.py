"""The schema of a remote database: its statements and settings, made again in a local file."""

from dataclasses import dataclass
from typing import Any

from replica_platform.backup.child.contents import KeyedTable, quoted
from replica_platform.backup.errors import Unreadable
from replica_platform.backup.remote.connection import RemoteAgent
from replica_platform.core.sqlite import sqlite3

BEFORE_TABLES = ("page_size", "encoding", "auto_vacuum")
APPLICATION_NUMBERS = ("user_version", "application_id")
ORDER = {"index": 0, "view": 1, "trigger": 2}


@dataclass(frozen=True)
class Schema:
    """What a database is made of, without its rows.

    Attributes:
        statements: [type, name, table, SQL] of each entry of `sqlite_master`, as they were made.
        settings: Pragmas that belong to the file.
        virtual: The names of virtual tables.
        tables: Every table with its key and columns; none if there are virtual ones.
    """

    statements: list[list[Any]]
    settings: dict[str, str | int]
    virtual: list[str]
    tables: list[KeyedTable]

    @property
    def has_only_keyed_rows(self) -> bool:
        """Whether every row can be read and compared by a key."""
        return not self.virtual and all(table["key"] for table in self.tables)


def read_schema(agent: RemoteAgent) -> Schema:
    """Return the schema of the remote database."""
    return Schema(**agent.ask("read_schema"))


def has_schema(db: sqlite3.Connection, schema: Schema) -> bool:
    """Return whether a local file was made by the same statements."""

    def without_internal(rows: list[list[Any]]) -> list[list[Any]]:
        return sorted((row for row in rows if not row[1].startswith("sqlite_")), key=str)

    made = db.execute("select type, name, tbl_name, sql from sqlite_master").fetchall()
    return without_internal([list(row) for row in made]) == without_internal(schema.statements)


def create_tables(db: sqlite3.Connection, schema: Schema) -> None:
    """Make the tables in an empty file; indexes follow after the rows.

    Raises:
        Unreadable: There are virtual tables, whose rows cannot be copied.
    """
    if schema.virtual:
        raise Unreadable(
            f"{', '.join(schema.virtual)} is a virtual table that was made during the pull; "
            "try again."
        )
    for name in BEFORE_TABLES:
        db.execute(f"pragma {name}={quoted(str(schema.settings[name]))}")
    for kind, name, _, text in schema.statements:
        if kind == "table" and not name.startswith("sqlite_"):
            db.execute(text)


def set_application_numbers(db: sqlite3.Connection, schema: Schema) -> None:
    """Set the numbers by which a program recognises its file."""
    for name in APPLICATION_NUMBERS:
        db.execute(f"pragma {name}={int(schema.settings[name])}")


def drop_triggers(db: sqlite3.Connection) -> None:
    """Drop the triggers, which fired on the other host already; they are made again at the end."""
    for (name,) in db.execute("select name from sqlite_master where type = 'trigger'").fetchall():
        db.execute(f"drop trigger {quoted(name)}")


def create_indexes_views_and_triggers(db: sqlite3.Connection, schema: Schema) -> None:
    """Make the indexes, views and triggers that do not exist yet, in this order."""
    existing = {tuple(row) for row in db.execute("select type, name from sqlite_master")}
    missing = [
        (ORDER[kind], text)
        for kind, name, _, text in schema.statements
        if text and kind in ORDER and (kind, name) not in existing
    ]
    for _, text in sorted(missing, key=lambda statement: statement[0]):
        db.execute(text)
