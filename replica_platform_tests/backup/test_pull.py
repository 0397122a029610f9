"""A database of another machine is brought home whole, by rows or as a file, and proven equal."""

import ast
import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import replica_platform.backup
from replica_platform.backup import pull
from replica_platform.backup.errors import HostUnknown, NotAllowed, Unreachable, Unreadable, Unsaved
from replica_platform.core.errors import TerminalError
from replica_platform.core.sqlite import sqlite3
from replica_platform_tests.backup.ssh_server import Host, serving

METHODS = pytest.mark.parametrize("method", ["query", "scp"])
SCHEMA = """
create table member (id integer primary key autoincrement, name text unique, joined_at text);
create table visit (member_id int, at text, note blob);
create index visit_by_member on visit (member_id);
create table tag (kind text collate nocase, name text, weight real, primary key (kind, name))
    without rowid;
create table "odd ""table" (rowid text, "select" int, twice int as ("select" * 2));
create table joined_log (name text);
create trigger joined after insert on member begin insert into joined_log values (new.name); end;
create view members as select name from member;
pragma user_version = 7;
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with serving(tmp_path_factory.mktemp("host")) as host:
        yield host


@pytest.fixture
def far(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A program's open database on the other machine, with every kind of table."""
    (tmp_path / "far").mkdir()
    with closing(sqlite3.connect(tmp_path / "far" / "pi.db", isolation_level=None)) as db:
        db.execute("pragma journal_mode=wal")
        db.executescript(SCHEMA)
        db.execute("begin")
        names = [(f"m{n}", f"2026-01-{1 + n % 28:02}") for n in range(5000)]
        db.executemany("insert into member (name, joined_at) values (?, ?)", names)
        visits = [(n % 70, None, bytes([n % 256, 0])) for n in range(100)]
        db.executemany("insert into visit values (?, ?, ?)", visits)
        tags = [("B", "x", 0.1), ("a", "é\0", -0.0), ("c", "", float("inf"))]
        db.executemany("insert into tag values (?, ?, ?)", tags)
        db.execute("""insert into "odd ""table" (rowid, "select") values ('r', 9007199254740993)""")
        db.execute("delete from member where id = 5000")
        db.execute("commit")
        yield db


@pytest.fixture
def there(far: sqlite3.Connection, tmp_path: Path) -> Path:
    return tmp_path / "far" / "pi.db"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "home" / "pi.db"


def contents(db: sqlite3.Connection) -> list:
    """Everything that a database holds, its statements included."""
    made = db.execute("select type, name, sql from sqlite_master order by type, name").fetchall()
    tables = [name for kind, name, _ in made if kind == "table"]
    quoted = [name.replace('"', '""') for name in tables]
    rows = [db.execute(f'select * from "{name}"').fetchall() for name in quoted]
    return [made, rows, db.execute("pragma user_version").fetchone()]


def contents_of(file: Path) -> list:
    with closing(sqlite3.connect(file)) as db:
        return contents(db)


@METHODS
def test_everything_comes_while_the_program_has_it_open(
    host: Host, far: sqlite3.Connection, there: Path, here: Path, method
) -> None:
    seen: list[tuple[int, int]] = []
    got = pull(
        host.url(there), here, method=method, progress=lambda *at: seen.append(at), **host.access
    )
    assert contents_of(here) == contents(far)
    assert got.ok and got.verified and got.ranges >= 6
    assert got.tables["member"] == 4999 and got.tables['odd "table'] == 1
    assert got.newest["member.joined_at"] == "2026-01-28"
    assert got.far_wal_bytes > 0 and got.bytes == here.stat().st_size
    assert seen[-1][0] == seen[-1][1]
    assert json.dumps(got.as_dict()) and "is the same as" in got.sentence
    assert [path.name for path in here.parent.iterdir()] == ["pi.db"]  # one file, no leftovers
    assert here.read_bytes()[18:20] == b"\x01\x01"
    # The far side clears away after it has answered: a moment later on a busy machine.
    for _ in range(100):
        if not list(there.parent.glob(".replica-pull-*")):
            break
        time.sleep(0.1)
    assert not list(there.parent.glob(".replica-pull-*"))
    assert here.stat().st_mode & 0o777 == 0o600


@METHODS
def test_a_second_pull_brings_what_changed_and_forgets_what_was_deleted(
    host: Host, far: sqlite3.Connection, there: Path, here: Path, method
) -> None:
    first = pull(host.url(there), here, method=method, **host.access)
    far.execute("delete from member where id = 17")  # in the middle: no newest row tells of it
    far.execute("update member set name = 'm16' where id = 4000")  # and its unique name moves on
    far.execute("insert into visit values (1, '2026-02-03', x'00')")
    second = pull(host.url(there), here, method=method, **host.access)
    assert contents_of(here) == contents(far)
    if method == "query":
        assert second.rows_moved < first.rows_moved
        assert second.bytes_moved < first.bytes_moved
        third = pull(host.url(there), here, method=method, **host.access)
        assert third.rows_moved == 0 and contents_of(here) == contents(far)


def test_tables_that_were_changed_over_there_are_made_anew(
    host: Host, far: sqlite3.Connection, there: Path, here: Path
) -> None:
    pull(host.url(there), here, method="query", **host.access)
    far.execute("alter table visit add column seen int default 3")
    far.execute("analyze")
    pull(host.url(there), here, method="query", **host.access)
    with closing(sqlite3.connect(here)) as db:
        assert db.execute("select distinct seen from visit").fetchall() == [(3,)]


@METHODS
def test_a_file_without_wal(host: Host, there: Path, far, here: Path, method) -> None:
    far.execute("pragma journal_mode=delete")
    got = pull(host.url(there), here, method=method, **host.access)
    assert got.far_journal_mode == "delete"
    assert contents_of(here) == contents(far)


def test_information_alone_brings_nothing(host: Host, there: Path, here: Path) -> None:
    got = pull(host.url(there), here, method="query", info_only=True, **host.access)
    assert got.file is None and not got.verified and got.tables["member"] == 4999
    assert got.far_bytes == there.stat().st_size
    assert not here.parent.exists()


def test_a_host_that_is_not_known_is_refused(
    host: Host, there: Path, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nobody").touch()
    keys = [host.client_key]
    with pytest.raises(HostUnknown, match="nothing was sent"):
        pull(
            host.url(there),
            here,
            method="scp",
            known_hosts=tmp_path / "nobody",
            client_keys=keys,
        )
    # Left out means ~/.ssh/known_hosts, never "trust anybody".
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(HostUnknown):
        pull(host.url(there), here, method="scp", client_keys=keys)
    assert not here.exists()


def test_another_key_than_the_known_one_is_refused(
    host: Host, there: Path, here: Path, tmp_path: Path
) -> None:
    known = tmp_path / "known"
    other = host.client_key.parent.joinpath("authorized").read_text()  # a key, but not the host's
    known.write_text(f"[127.0.0.1]:{host.port} {other}")
    with pytest.raises(HostUnknown, match="another one now"):
        pull(host.url(there), here, method="scp", known_hosts=known, client_keys=[host.client_key])


def test_what_stands_in_the_way_is_said_in_words(
    host: Host, there: Path, here: Path, tmp_path: Path
) -> None:
    import asyncssh

    stranger = tmp_path / "stranger"
    stranger.write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_private_key())
    with pytest.raises(NotAllowed, match="does not let pi in"):
        pull(
            host.url(there),
            here,
            method="scp",
            known_hosts=host.known_hosts,
            client_keys=[stranger],
        )
    with pytest.raises(Unreachable, match="check that it is on"):
        pull("ssh://pi@127.0.0.1:1/x.db", here, method="scp", **host.access)
    with pytest.raises(Unreadable, match="there is no file"):
        pull(host.url(tmp_path / "absent.db"), here, method="scp", **host.access)
    (tmp_path / "text.db").write_text("not a database, though long enough to be one" * 30)
    with pytest.raises(Unreadable, match="not a database"):
        pull(host.url(tmp_path / "text.db"), here, method="query", **host.access)
    with pytest.raises(TerminalError, match="write it as ssh://"):
        pull("http://example.org/x.db", here, method="query")
    with pytest.raises(TerminalError, match="use a key"):
        pull("ssh://pi:secret@example.org/x.db", here, method="query")
    assert not here.exists()


def test_without_python3_over_there(tmp_path: Path, there: Path, here: Path) -> None:
    (tmp_path / "host").mkdir()
    with (
        serving(tmp_path / "host", path="/nowhere") as host,
        pytest.raises(TerminalError, match="no python3"),
    ):
        pull(host.url(there), here, method="query", **host.access)


def test_virtual_tables_go_by_file_only(host: Host, there: Path, far, here: Path) -> None:
    far.execute("create virtual table words using fts5 (word)")
    far.execute("insert into words values ('hello')")
    with pytest.raises(Unreadable, match="use --method scp"):
        pull(host.url(there), here, method="query", **host.access)
    pull(host.url(there), here, method="scp", **host.access)
    assert contents_of(here) == contents(far)


@METHODS
def test_unsaved_changes_at_home_are_not_lost(host: Host, there: Path, here: Path, method) -> None:
    here.parent.mkdir()
    here.write_bytes(b"")
    here.with_name("pi.db-wal").write_bytes(b"precious")
    with pytest.raises(Unsaved):
        pull(host.url(there), here, method=method, **host.access)
    assert here.with_name("pi.db-wal").read_bytes() == b"precious"


def test_what_runs_over_there_is_python_3_7_and_the_standard_library() -> None:
    folder = Path(replica_platform.backup.__file__).parent
    for name in ("child/contents.py", "remote/agent.py"):
        tree = ast.parse((folder / name).read_text(), feature_version=(3, 7))
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {getattr(node, "module", None) or node.names[0].name for node in top}
        assert names <= {
            "__future__", "base64", "hashlib", "json", "os", "pathlib", "re", "sqlite3", "sys",
            "tempfile", "typing",
        }  # fmt: skip
