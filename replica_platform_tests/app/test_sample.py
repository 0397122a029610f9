"""The sample database is real enough to back up, and the same every time."""

from contextlib import closing
from pathlib import Path

from replica_platform.backup import backup
from replica_platform.core.sqlite import sqlite3
from replica_platform.defs.sample.input.gym_system import sample_gym_system


def test_the_same_every_time_and_never_made_twice(tmp_path: Path) -> None:
    contents = []
    for name in ("a.db", "b.db"):
        sample_gym_system(tmp_path / "gym" / name)
        with closing(sqlite3.connect(tmp_path / "gym" / name)) as db:
            tables = ("member", "check_in", "payment")
            contents.append([db.execute(f"select * from {t}").fetchall() for t in tables])
            assert db.execute("pragma foreign_key_check").fetchall() == []
            assert db.execute("pragma journal_mode").fetchone() == ("wal",)
            db.execute("delete from payment")
            db.commit()
    assert contents[0] == contents[1]
    sample_gym_system(tmp_path / "gym" / "a.db")
    taken = backup(tmp_path / "gym" / "a.db", tmp_path)
    assert taken.tables == {"check_in": 4000, "member": 240, "payment": 0}
    assert taken.newest["check_in.checked_in_at"] > "2025-06"
