"""The one SQLite library of the platform: everything imports `sqlite3` from here.

SQLite before 3.51.3 can corrupt a WAL file that two processes share (the WAL-reset bug), and two
SQLite libraries on one file in one process drop each other's locks. So this is the only module that
imports one; it prefers the recent library that `pysqlite3` brings. Statements do not belong here.
"""

import warnings
from typing import TYPE_CHECKING

WAL_RESET_FIXED_IN = (3, 51, 3)

if TYPE_CHECKING:
    import sqlite3
else:
    try:
        from pysqlite3 import dbapi2 as sqlite3
    except ImportError:
        import sqlite3

if sqlite3.sqlite_version_info < WAL_RESET_FIXED_IN:
    warnings.warn(
        f"SQLite {sqlite3.sqlite_version} can corrupt a WAL file that two processes share; "
        "install the pysqlite3 wheel, which brings a newer one.",
        RuntimeWarning,
        stacklevel=2,
    )

__all__ = ["WAL_RESET_FIXED_IN", "sqlite3"]
