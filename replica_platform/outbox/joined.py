"""Records appended inside the application's own SQLite transaction, on the outbox's file.

The application commits or rolls back; delivery does not belong here.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import file
from replica_platform.outbox.errors import NotDurable, NotJoinable, translate_errors

MakeRow = Callable[[str, Mapping[str, Any], str | UUID | None], tuple[Any, ...]]


class JoinedOutbox:
    """The outbox inside transactions of a connection of the application; see `Outbox.join`.

    Args:
        connection: The application's connection to the outbox's file.
        path: The outbox file.
        durability: What the outbox promises.
        make_row: Returns the row of a record; raises what `Outbox.append` raises for it.
        is_closed: Returns whether the outbox was closed.

    Raises:
        NotJoinable: The connection is of another SQLite library or to another file.
        NotDurable: The connection is less durable than the outbox.
    """

    def __init__(
        self,
        connection: Any,
        path: Path,
        durability: file.Durability,
        make_row: MakeRow,
        is_closed: Callable[[], bool],
    ) -> None:
        self._connection = connection
        self._path = path
        self._durability = durability
        self._make_row = make_row
        self._is_closed = is_closed
        if not isinstance(connection, sqlite3.Connection):
            raise NotJoinable(
                f"A {type(connection).__module__} connection is of another SQLite library than the "
                "outbox, and two of them on one file drop each other's locks; connect by "
                "`from replica_platform.core.sqlite import sqlite3`."
            )
        opened = connection.execute("pragma database_list").fetchone()[2]
        if not opened or not path.samefile(opened):
            raise NotJoinable(
                f"The connection is to {opened or 'a database in memory'} and the outbox is "
                f"{path}; one transaction needs one file, so keep your tables in {path}."
            )
        self._check_durability()

    def append(self, kind: str, record: Mapping[str, Any], id: str | UUID | None = None) -> str:
        """Add one record to the open transaction; it is saved when the application commits.

        Arguments and result are those of `Outbox.append`.

        Raises:
            NotStorable: Postgres could not store the record; the transaction is as before.
            NotJoinable: No transaction is open, or the outbox is closed.
            NotDurable: The connection is less durable than the outbox.
            OutboxFull: The disk is full; the application must roll back.
            OutboxBusy: Another connection holds the file's write lock.
        """
        return self._insert([self._make_row(kind, record, id)])[0]

    def append_many(
        self,
        kind: str,
        records: Iterable[Mapping[str, Any]],
        ids: Iterable[str | UUID] | None = None,
    ) -> list[str]:
        """Add all of `records` to the open transaction, or none.

        Arguments and result are those of `Outbox.append_many`, the errors those of `append`.
        """
        if ids is None:
            return self._insert([self._make_row(kind, record, None) for record in records])
        pairs = zip(records, ids, strict=True)
        return self._insert([self._make_row(kind, record, id) for record, id in pairs])

    def _insert(self, rows: list[tuple[Any, ...]]) -> list[str]:
        if self._is_closed():
            raise NotJoinable(f"{self._path} is closed; open it and join the connection again.")
        if not self._connection.in_transaction:
            raise NotJoinable(
                "No transaction is open on the connection; begin one (best: begin immediate), or "
                "use the outbox itself. The record is not saved."
            )
        self._check_durability()
        with translate_errors(self._path, "append in the application's transaction"):
            self._connection.executemany(file.INSERT, rows)
        return [row[0] for row in rows]

    def _check_durability(self) -> None:
        (synchronous,) = self._connection.execute("pragma synchronous").fetchone()
        if synchronous < file.SYNCHRONOUS[self._durability]:
            raise NotDurable(
                f"The connection has synchronous={synchronous}, the outbox promises "
                f"{self._durability}; run `pragma synchronous = {self._durability}` on it, outside "
                "a transaction."
            )
