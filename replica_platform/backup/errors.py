"""The kinds of error of a backup, and the one place where other errors become one of them.

`translate_errors` turns what SQLite and the operating system raise into `Busy` and `NoRoom`, which
may be tried again, or `Unreadable`, which may not. The errors of SSH are translated in
`remote/errors.py`: the child process imports this module and must not import asyncssh.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from replica_platform.core.disk_space import free_bytes
from replica_platform.core.errors import PlatformError, TerminalError, TransientError
from replica_platform.core.sqlite import sqlite3

FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# `Connection.backup` gives no code with its errors, only SQLite's text for it.
CODES_BY_TEXT = {
    "database is locked": sqlite3.SQLITE_BUSY,
    "database table is locked": sqlite3.SQLITE_LOCKED,
    "database or disk is full": sqlite3.SQLITE_FULL,
    "disk I/O error": sqlite3.SQLITE_IOERR,
}
# SQLite needs 32 KiB for a `-shm` and reports a full disk as an I/O error there.
FULL_BELOW_BYTES = 64 * 1024


class Unreadable(TerminalError):
    """The file does not exist, may not be read or written, or is not a SQLite database."""


class Damaged(TerminalError):
    """SQLite's integrity check or the checksum says that the file is not sound."""


class NoRoom(TransientError):
    """The disk has no space for another copy; nothing of the attempt was kept."""


class Busy(TransientError):
    """Another process uses the file or the folder."""


class NameTaken(TransientError):
    """A backup of this name exists; it is never overwritten."""


class Unsaved(TerminalError):
    """A WAL or journal beside the target holds changes that would be lost."""


class TargetExists(TerminalError):
    """There is a file at the target, and replacing it was not asked for."""


class KeyMissing(TerminalError):
    """The environment does not have the key that encrypts or decrypts a backup."""


class ChildFailed(TransientError):
    """The child process ended without an answer."""


class Unreachable(TransientError):
    """The other host does not answer, or stopped answering."""


class HostUnknown(TerminalError):
    """The other host's key is not among the known ones; it may be another host."""


class NotAllowed(TerminalError):
    """The other host refuses the login."""


# What a child process may raise; its errors cross the pipe by name.
OF_THE_CHILD: dict[str, type[PlatformError]] = {
    kind.__name__: kind for kind in (Unreadable, Damaged, NoRoom, Busy)
}


@contextmanager
def translate_errors(task: str, read: Path, written: Path | None = None) -> Iterator[None]:
    """Raise errors of SQLite and of the operating system as this engine's own.

    Args:
        task: What is done with the file, as a verb: `copy`.
        read: The file that is read.
        written: The copy that is made; None for a task that only reads.

    Raises:
        Busy: Another program kept the file locked.
        NoRoom: The disk, a quota or a size limit is used up.
        Unreadable: Any other error.
    """
    try:
        yield
    except OSError as error:
        raise _of_the_system(error, task) from error
    except sqlite3.Error as error:
        raise _of_sqlite(error, task, read, written) from error


def stayed_locked(file: Path) -> Busy:
    """Return the error for a file that another program keeps locked."""
    return Busy(
        f"{file} stayed locked by another program; try again when that has finished its "
        "transaction."
    )


def _of_the_system(error: OSError, task: str) -> PlatformError:
    sentence = f"Cannot {task} the file: {error}"
    if error.errno in FULL_ERRNOS:
        return NoRoom(f"{sentence}. Nothing was kept of it; make room there, then try again.")
    return Unreadable(f"{sentence}. Fix that first.")


def _of_sqlite(error: sqlite3.Error, task: str, read: Path, written: Path | None) -> PlatformError:
    code = _primary_code(error)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return stayed_locked(read)
    sentence = f"SQLite cannot {task} {read}: {error}"
    folder = (written or read).parent
    full_as_io_error = (
        code == sqlite3.SQLITE_IOERR
        and written is not None
        and free_bytes(folder) < FULL_BELOW_BYTES
    )
    if code == sqlite3.SQLITE_FULL or full_as_io_error:
        return NoRoom(f"{sentence}. Nothing was kept of it; make room in {folder}, then try again.")
    return Unreadable(f"{sentence}. Check the file and its disk, then try again.")


def _primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code; 0 where it is not known."""
    code = getattr(error, "sqlite_errorcode", None)
    return CODES_BY_TEXT.get(str(error), 0) if code is None else int(code) & 0xFF
