"""A program that rewrites a database as fast as it can, for tests that copy it meanwhile.

Every commit changes 20 random rows, adds one and deletes one. A torn copy has a wrong number of
rows, or an index that differs from its table.
"""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from replica_platform.core.sqlite import sqlite3

ROWS = 25_000


def make(file: Path) -> None:
    """Make the database: `ROWS` rows with an index on a random key, some 12 MB."""
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("pragma journal_mode=wal")
        db.execute("create table t (id integer primary key, k text, v text)")
        db.execute("create index t_by_k on t (k)")
        db.execute("begin")
        rows = ((os.urandom(8).hex(), "x" * 400) for _ in range(ROWS))
        db.executemany("insert into t (k, v) values (?, ?)", rows)
        db.execute("commit")


def is_sound(copy: Path) -> bool:
    """Return whether a copy opens, passes SQLite's check and has the rows of one moment."""
    try:
        with closing(sqlite3.connect(copy)) as db:
            checked = db.execute("pragma integrity_check(1)").fetchall()
            return checked == [("ok",)] and is_one_moment(db)
    except sqlite3.Error:
        return False


def is_one_moment(db: sqlite3.Connection) -> bool:
    """Return whether the rows are of one moment: the same number, without a gap."""
    rows, span = db.execute("select count(*), max(id) - min(id) + 1 from t").fetchone()
    return bool(rows == span == ROWS)


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Run the program at full speed from its first commit until the block ends."""
    with subprocess.Popen(
        [sys.executable, "-m", __name__, str(file)], stdout=subprocess.PIPE
    ) as writer:
        try:
            assert writer.stdout and writer.stdout.readline() == b"writing\n"
            yield
            assert writer.poll() is None, "the writer died: nothing was tested"
        finally:
            writer.kill()


def write_for_ever(file: str) -> None:
    """Write until killed."""
    db = sqlite3.connect(file, isolation_level=None, timeout=30)
    db.execute("pragma synchronous=normal")
    db.execute("pragma wal_autocheckpoint=200")
    started = False
    while True:
        db.execute("begin immediate")
        for _ in range(20):
            new = (os.urandom(8).hex(), "y" * random.randint(100, 700), random.randint(1, ROWS))
            db.execute("update t set k = ?, v = ? where id = ?", new)
        db.execute("insert into t (k, v) values (?, ?)", (os.urandom(8).hex(), "z" * 400))
        db.execute("delete from t where id = (select min(id) from t)")
        db.execute("commit")
        if not started:
            print("writing", flush=True)
            started = True
            time.sleep(0)


if __name__ == "__main__":
    write_for_ever(sys.argv[1])
