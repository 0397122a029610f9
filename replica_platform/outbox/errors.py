"""The errors of the outbox, and the translation of SQLite's errors into them.

Every error that a caller of the engine can catch belongs here. How Postgres's errors become
these is in `delivery.failures`, because this module must load without the driver.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from replica_platform.core.errors import PlatformError, TerminalError, TransientError
from replica_platform.core.sqlite import sqlite3


class OutboxFull(TransientError):
    """The disk is full or the file has reached its cap; the record is not saved."""


class OutboxBusy(TransientError):
    """Another process held the file's write lock too long; the record is not saved."""


class SlotLocked(TransientError):
    """Another process writes this outbox file; give each worker its own file."""


class OutboxClosed(TerminalError):
    """The outbox was closed before this append; the record is not saved."""


class NotStorable(TerminalError):
    """The record holds a value that Postgres cannot store in jsonb; it is not saved."""


class NetworkFileSystem(TerminalError):
    """The folder is on a network file system, which lacks the shared memory that WAL needs."""


class NotAnOutbox(TerminalError):
    """The file is missing, is not SQLite, or belongs to another program or version."""


class OutboxDamaged(TerminalError):
    """SQLite cannot read or write the file; acknowledged records may need its backup."""


class NotJoinable(TerminalError):
    """The connection or its state cannot carry records of the outbox; nothing is saved."""


class NotDurable(TerminalError):
    """SQLite did not accept the requested durability."""


class ForkedOutbox(TerminalError):
    """The process was forked without Python's knowledge while the outbox was open."""


class BadMapping(TerminalError):
    """The mapping of a kind to a table is incomplete or contradictory."""


class DeliveryError(PlatformError):
    """The target did not take a batch; its rows stay in the file.

    Attributes:
        sqlstate: Postgres's five-character code; None where the server sent none.
    """

    def __init__(self, sentence: str, sqlstate: str | None = None) -> None:
        super().__init__(sentence)
        self.sqlstate = sqlstate


class TargetUnavailable(DeliveryError, TransientError):
    """The target cannot take the batch now; the same batch may go through later."""


class TargetRefused(DeliveryError, TerminalError):
    """The target will refuse every batch until somebody changes the target or the code."""


class RowRefused(DeliveryError, TerminalError):
    """The target refuses a row for its content; the other rows of the batch may go through."""


@contextmanager
def translate_errors(path: Path, action: str) -> Iterator[None]:
    """Turn SQLite's errors in the block into the outbox's own.

    Args:
        path: The outbox file, named in the error.
        action: What was being done, after "cannot".

    Raises:
        OutboxFull: The disk is full or the file has reached its cap.
        OutboxBusy: Another process held the lock too long.
        NotAnOutbox: The file cannot be opened as an outbox.
        OutboxDamaged: Any other error of SQLite.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise translated(error, path, action) from error


def translated(error: sqlite3.Error, path: Path, action: str) -> PlatformError:
    """Return the outbox's own error for one of SQLite's."""
    reason = f"{path}: cannot {action}: {error}"
    code = result_code(error)
    if code == sqlite3.SQLITE_FULL:
        return OutboxFull(
            f"{reason}. Everything already saved is intact. Free disk space, raise the file's "
            "cap, or let a drain deliver and prune, then append again."
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return OutboxBusy(
            f"{reason}. Append again; if it persists, find the process that holds the file."
        )
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
        return NotAnOutbox(f"{reason}. Check the path, its permissions and that it is an outbox.")
    return OutboxDamaged(
        f"{reason}. Keep the file, check its disk, and restore the last verified backup beside it."
    )


def result_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
