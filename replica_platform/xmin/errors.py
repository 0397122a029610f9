"""Errors of a sync, and the one place where a server's error becomes one of them.

The kinds belong here; the module that finds a problem writes its sentence.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import psycopg

from replica_platform.core.errors import PlatformError, TerminalError, TransientError

LOCK_TIMEOUT_S = 30
PROTOCOL_VIOLATION = "08P01"
FOREIGN_KEY_VIOLATION = "23503"
# A session that was idle in a transaction, or a transaction, has lasted too long for the server.
TIMEOUTS = ("25P03", "25P04")

Side = Literal["source", "target"]


class BadTableName(TerminalError):
    """The text is not a table name as psql reads it."""


class NoSuchTable(TerminalError):
    """The source has no such table."""


class MissingGrant(TerminalError):
    """The role lacks a privilege that the sync needs; the text names the GRANT."""


class CannotSync(TerminalError):
    """The table cannot be synced as asked; the text says what would work."""


class SchemaRefused(TerminalError):
    """The target's columns cannot follow the source's; nothing was changed."""


class TargetTaken(TerminalError):
    """The target table holds another source table; nothing was changed."""


class TooManyDeletes(TerminalError):
    """More rows would be deleted than is allowed; nothing was changed."""


class TableBusy(TransientError):
    """Another session holds the table; try again when it is done."""


class SourceInterrupted(TransientError):
    """The source cancelled the read or disconnected; nothing was lost, sync again."""


class TargetInterrupted(TransientError):
    """The target cancelled the write or disconnected; its transaction was rolled back."""


class NotFlushed(TransientError):
    """The source did not flush its WAL in time; the watermark was not moved."""


@contextmanager
def translate_errors(side: Side, table: object) -> Iterator[None]:
    """Turn the server's errors in the block into errors of this module.

    Blocks may be nested: an error that an inner block has translated passes unchanged.

    Args:
        side: The server that the block talks to.
        table: The table for the sentence.
    """
    try:
        yield
    except psycopg.Error as error:
        raise translated(error, side, table) from error


def translated(error: psycopg.Error, side: Side, table: object) -> PlatformError:
    """Return the error of this module for a server's error."""
    message = " ".join(str(error).split()).rstrip(".")
    state = error.sqlstate or ""
    if state == "42501":
        return MissingGrant(f"The role on the {side} may not do this for {table}: {message}.")
    if state == "55P03":
        return TableBusy(
            f"{table} stayed locked on the {side} for {LOCK_TIMEOUT_S} s ({message}); "
            "try again when the other session is done."
        )
    if state == FOREIGN_KEY_VIOLATION:
        return CannotSync(
            f"The {side} refused the sync of {table}: {message}. Sync the tables that its foreign "
            "keys join in one group, so that they are written together at one snapshot."
        )
    if _is_transient(error, state):
        kind = SourceInterrupted if side == "source" else TargetInterrupted
        return kind(
            f"The {side} interrupted the sync of {table}: {message}. "
            "Nothing was lost; run the same sync again."
        )
    return CannotSync(f"The {side} refused the sync of {table}: {message}.")


def _is_transient(error: psycopg.Error, state: str) -> bool:
    # Connection lost, serialization (a standby's recovery conflict), cancelled, out of resources.
    # A protocol violation is no lost connection: the same message fails again.
    if state == PROTOCOL_VIOLATION:
        return False
    return (
        state in TIMEOUTS
        or state[:2] in {"08", "40", "57", "53", ""}
        or isinstance(error, psycopg.OperationalError)
    )
