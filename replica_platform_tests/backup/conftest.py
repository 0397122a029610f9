"""A small database in WAL mode whose program still runs, and the days of a calendar."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from replica_platform.backup import Backup, backup, backups
from replica_platform.core.sqlite import sqlite3

DAY_1 = datetime(2026, 1, 1, 3, 0, tzinfo=UTC)


def day(number: int) -> datetime:
    """Return three in the morning of a day of January 2026, or of a later month."""
    return DAY_1 + timedelta(days=number - 1)


def rows_of(file: Path) -> list[str]:
    """Return the values in table `t` of a quiet file."""
    uri = f"{file.as_uri()}?mode=ro&immutable=1"
    with closing(sqlite3.connect(uri, uri=True)) as db:
        return [v for (v,) in db.execute("select v from t order by rowid")]


def make(file: Path, *values: str) -> sqlite3.Connection:
    """Make a database with table `t (v)` in WAL mode; return its open connection."""
    db = sqlite3.connect(file, isolation_level=None)
    db.execute("pragma journal_mode=wal")
    db.execute("create table t (v text)")
    db.executemany("insert into t values (?)", [(value,) for value in values])
    return db


@pytest.fixture
def live(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """The connection of a program that has `tmp_path/app.db` open, rows still in the WAL."""
    with closing(make(tmp_path / "app.db", "a", "b")) as db:
        yield db


@pytest.fixture
def app(live: sqlite3.Connection, tmp_path: Path) -> Path:
    """The file of that program."""
    return tmp_path / "app.db"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of backups; not made yet."""
    return tmp_path / "backups"


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one backup of `app.db`, taken once and copied for each test."""
    folder = tmp_path_factory.mktemp("template")
    with closing(make(folder / "app.db", "a", "b")):
        backup(folder / "app.db", folder / "backups", now=day(1))
    return folder / "backups"


@pytest.fixture
def taken(template: Path, folder: Path) -> Backup:
    """One backup of `app.db` with the rows a and b, taken on day 1, alone in `folder`."""
    shutil.copytree(template, folder)
    return backups(folder)[0]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A function that mounts a file system of so many bytes; it needs root."""
    with ExitStack() as mounted:

        def mount(size: int) -> Path:
            folder = tmp_path / f"disk-{size}"
            folder.mkdir()
            options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
            if subprocess.run(["mount", *options], capture_output=True).returncode:
                pytest.skip("mounting a small disk needs root")
            mounted.callback(subprocess.run, ["umount", str(folder)], check=True)
            return folder

        yield mount


@pytest.fixture
def in_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that has each child run these lines first, with two modules imported."""

    def install(lines: str) -> None:
        site = tmp_path / "site"
        site.mkdir()
        # The child has our sys.path, and Python imports a module of this name as it starts.
        (site / "sitecustomize.py").write_text(
            f"from replica_platform.backup.child import file_copy, snapshot\n{lines}\n"
        )
        monkeypatch.syspath_prepend(str(site))

    return install
