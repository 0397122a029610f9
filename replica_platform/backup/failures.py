"""The engine's own error for one of SQLite's or of the operating system's.

The choice between what may go through later (`Busy`, `NoRoom`) and what will not (`Unreadable`)
belongs here; what was being done is told by the caller.
"""

import errno
import shutil
from pathlib import Path

from replica_platform.backup.errors import Busy, NoRoom, Unreadable
from replica_platform.core.errors import PlatformError
from replica_platform.core.sqlite import sqlite3

FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# `Connection.backup` gives no code with its errors, only SQLite's text for it.
CODES_BY_TEXT = {
    "database is locked": sqlite3.SQLITE_BUSY,
    "database table is locked": sqlite3.SQLITE_LOCKED,
    "database or disk is full": sqlite3.SQLITE_FULL,
    "disk I/O error": sqlite3.SQLITE_IOERR,
}
# SQLite needs 32 KiB for a `-shm`, and a full disk is then an I/O error to it.
FULL_BELOW_BYTES = 64 * 1024


def explain_os(error: OSError, task: str) -> PlatformError:
    """Return `NoRoom` where the disk, a quota or a size limit is used up, else `Unreadable`."""
    said = f"Cannot {task} the file: {error}"
    if error.errno in FULL_ERRNOS:
        return NoRoom(f"{said}. Nothing was kept of it; make room there, then try again.")
    return Unreadable(f"{said}. Mend that first.")


def explain_sqlite(
    error: sqlite3.Error, task: str, read: str, written: str | None
) -> PlatformError:
    """Return `Busy`, `NoRoom` or `Unreadable` for an error with the file that is read or written.

    Args:
        written: the copy that is made; None for a task that only reads.
    """
    said = f"SQLite cannot {task} {read}: {error}"
    code = primary_code(error)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return locked(read)
    folder = Path(written or read).parent
    full_in_disguise = code == sqlite3.SQLITE_IOERR and written is not None and _is_full(folder)
    if code == sqlite3.SQLITE_FULL or full_in_disguise:
        return NoRoom(f"{said}. Nothing was kept of it; make room in {folder}, then try again.")
    return Unreadable(f"{said}. Check the file and its disk, then try again.")


def locked(file: str) -> Busy:
    """Return the error for a file that another program did not let go of."""
    return Busy(
        f"{file} stayed locked by another program; try again when that has finished its "
        "transaction."
    )


def primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code; 0 where it is not known."""
    code = getattr(error, "sqlite_errorcode", None)
    return CODES_BY_TEXT.get(str(error), 0) if code is None else int(code) & 0xFF


def _is_full(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < FULL_BELOW_BYTES
