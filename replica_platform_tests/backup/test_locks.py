"""A backup taken by the very process that writes leaves that process its locks."""

import shutil
import subprocess
import sys
from pathlib import Path

from replica_platform.backup import backup
from replica_platform.core.sqlite import sqlite3

INTRUDER = """
import sys
from replica_platform.core.sqlite import sqlite3
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=0)
try:
    db.execute("begin immediate")
    print("in")
except sqlite3.OperationalError:
    print("kept out")
"""


def intrude(app: Path) -> str:
    """What a second process gets when it tries to write in the middle of our transaction."""
    ran = subprocess.run(
        [sys.executable, "-c", INTRUDER, str(app)], capture_output=True, text=True, check=True
    )
    return ran.stdout.strip()


def test_our_own_transaction_stays_locked_through_a_backup(
    app: Path, live: sqlite3.Connection, shelf: Path
) -> None:
    live.execute("begin immediate")
    live.execute("insert into t values ('not committed')")
    taken = backup(app, shelf)
    assert taken.tables == {"t": 2}
    assert intrude(app) == "kept out"
    live.execute("commit")


def test_the_naive_copy_in_the_same_process_loses_the_lock(
    app: Path, live: sqlite3.Connection, tmp_path: Path
) -> None:
    live.execute("begin immediate")
    assert intrude(app) == "kept out"
    shutil.copyfile(f"{app}-shm", tmp_path / "copy-shm")
    assert intrude(app) == "in"
