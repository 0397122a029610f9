"""A backup taken by the process that writes does not drop the locks of that process."""

import shutil
import subprocess
import sys
from pathlib import Path

from replica_platform.backup import backup
from replica_platform.core.sqlite import sqlite3

SECOND_WRITER = """
import sys
from replica_platform.core.sqlite import sqlite3
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=0)
try:
    db.execute("begin immediate")
    print("written")
except sqlite3.OperationalError:
    print("locked")
"""


def write_from_another_process(app: Path) -> str:
    """Return what happens when a second process tries to write during our transaction."""
    ran = subprocess.run(
        [sys.executable, "-c", SECOND_WRITER, str(app)], capture_output=True, text=True, check=True
    )
    return ran.stdout.strip()


def test_an_open_transaction_keeps_its_lock_during_a_backup(
    app: Path, live: sqlite3.Connection, folder: Path
) -> None:
    live.execute("begin immediate")
    live.execute("insert into t values ('not committed')")
    taken = backup(app, folder)
    assert taken.tables == {"t": 2}
    assert write_from_another_process(app) == "locked"
    live.execute("commit")


def test_the_naive_copy_in_the_same_process_loses_the_lock(
    app: Path, live: sqlite3.Connection, tmp_path: Path
) -> None:
    live.execute("begin immediate")
    assert write_from_another_process(app) == "locked"
    shutil.copyfile(f"{app}-shm", tmp_path / "copy-shm")
    assert write_from_another_process(app) == "written"
