"""A database of another host is pulled whole, by rows or as a file, and proven equal."""

import ast
import json
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

import replica_platform.backup
from replica_platform.backup import pull
from replica_platform.backup.errors import HostUnknown, NotAllowed, Unreachable, Unreadable, Unsaved
from replica_platform.backup.remote import connection
from replica_platform.core.errors import TerminalError
from replica_platform.core.sqlite import sqlite3
from replica_platform_tests.backup.ssh_server import Host, serving

METHODS = pytest.mark.parametrize("method", ["query", "pages", "scp"])
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
def remote_db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A program's open database on the other host, with every kind of table."""
    (tmp_path / "remote").mkdir()
    with closing(sqlite3.connect(tmp_path / "remote" / "pi.db", isolation_level=None)) as db:
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
def remote(remote_db: sqlite3.Connection, tmp_path: Path) -> Path:
    return tmp_path / "remote" / "pi.db"


@pytest.fixture
def local(tmp_path: Path) -> Path:
    return tmp_path / "local" / "pi.db"


def contents(db: sqlite3.Connection) -> list:
    """Return everything in a database, its statements included."""
    made = db.execute("select type, name, sql from sqlite_master order by type, name").fetchall()
    tables = [name for kind, name, _ in made if kind == "table"]
    quoted = [name.replace('"', '""') for name in tables]
    rows = [db.execute(f'select * from "{name}"').fetchall() for name in quoted]
    return [made, rows, db.execute("pragma user_version").fetchone()]


def contents_of(file: Path) -> list:
    with closing(sqlite3.connect(file)) as db:
        return contents(db)


@METHODS
def test_everything_is_pulled_while_a_program_has_the_file_open(
    host: Host, remote_db: sqlite3.Connection, remote: Path, local: Path, method
) -> None:
    seen: list[tuple[int, int]] = []
    got = pull(
        host.url(remote), local, method=method, progress=lambda *at: seen.append(at), **host.access
    )
    assert contents_of(local) == contents(remote_db)
    assert got.ok and got.verified and (got.ranges >= 6) == (method == "query")
    assert got.tables["member"] == 4999 and got.tables['odd "table'] == 1
    assert got.newest["member.joined_at"] == "2026-01-28"
    assert got.remote_wal_bytes > 0 and got.bytes == local.stat().st_size
    assert seen[-1][0] == seen[-1][1]
    assert json.dumps(got.as_dict()) and "is the same as" in got.sentence
    assert [path.name for path in local.parent.iterdir()] == ["pi.db"]  # one file, no leftovers
    assert local.read_bytes()[18:20] == b"\x01\x01"
    # The agent removes its snapshot after its last answer: later on a busy machine.
    for _ in range(100):
        if not list(remote.parent.glob(".replica-pull-*")):
            break
        time.sleep(0.1)
    assert not list(remote.parent.glob(".replica-pull-*"))
    assert local.stat().st_mode & 0o777 == 0o600


@METHODS
def test_a_second_pull_moves_what_changed_and_deletes_what_was_deleted(
    host: Host, remote_db: sqlite3.Connection, remote: Path, local: Path, method
) -> None:
    first = pull(host.url(remote), local, method=method, **host.access)
    remote_db.execute(
        "delete from member where id = 17"
    )  # in the middle: no newest row tells of it
    remote_db.execute(
        "update member set name = 'm16' where id = 4000"
    )  # and its unique name moves on
    remote_db.execute("insert into visit values (1, '2026-02-03', x'00')")
    second = pull(host.url(remote), local, method=method, **host.access)
    assert contents_of(local) == contents(remote_db)
    if method != "scp":
        assert second.method == method
        assert second.bytes_moved < first.bytes_moved
    if method == "query":
        assert second.rows_moved < first.rows_moved
        third = pull(host.url(remote), local, method=method, **host.access)
        assert third.rows_moved == 0 and contents_of(local) == contents(remote_db)


def test_changed_remote_tables_are_made_again(
    host: Host, remote_db: sqlite3.Connection, remote: Path, local: Path
) -> None:
    pull(host.url(remote), local, method="query", **host.access)
    remote_db.execute("alter table visit add column seen int default 3")
    remote_db.execute("analyze")
    pull(host.url(remote), local, method="query", **host.access)
    with closing(sqlite3.connect(local)) as db:
        assert db.execute("select distinct seen from visit").fetchall() == [(3,)]


@METHODS
def test_a_file_without_wal(host: Host, remote: Path, remote_db, local: Path, method) -> None:
    remote_db.execute("pragma journal_mode=delete")
    got = pull(host.url(remote), local, method=method, **host.access)
    assert got.remote_journal_mode == "delete"
    assert contents_of(local) == contents(remote_db)


def test_info_only_moves_nothing(host: Host, remote: Path, local: Path) -> None:
    got = pull(host.url(remote), local, method="query", info_only=True, **host.access)
    assert got.file is None and not got.verified and got.tables["member"] == 4999
    assert got.remote_bytes == remote.stat().st_size
    assert not local.parent.exists()


def test_a_host_that_is_not_known_is_refused(
    host: Host, remote: Path, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty_known_hosts").touch()
    keys = [host.client_key]
    with pytest.raises(HostUnknown, match="nothing was sent"):
        pull(
            host.url(remote),
            local,
            method="scp",
            known_hosts=tmp_path / "empty_known_hosts",
            client_keys=keys,
        )
    # Left out means ~/.ssh/known_hosts, never "trust any host".
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(HostUnknown):
        pull(host.url(remote), local, method="scp", client_keys=keys)
    assert not local.exists()


def test_another_key_than_the_known_one_is_refused(
    host: Host, remote: Path, local: Path, tmp_path: Path
) -> None:
    known = tmp_path / "known"
    other = host.client_key.parent.joinpath("authorized").read_text()  # a key, but not the host's
    known.write_text(f"[127.0.0.1]:{host.port} {other}")
    with pytest.raises(HostUnknown, match="another one now"):
        pull(
            host.url(remote), local, method="scp", known_hosts=known, client_keys=[host.client_key]
        )


def test_each_obstacle_has_an_error_that_says_what_to_do(
    host: Host, remote: Path, local: Path, tmp_path: Path
) -> None:
    import asyncssh

    stranger = tmp_path / "stranger"
    stranger.write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_private_key())
    with pytest.raises(NotAllowed, match="does not let pi in"):
        pull(
            host.url(remote),
            local,
            method="scp",
            known_hosts=host.known_hosts,
            client_keys=[stranger],
        )
    with pytest.raises(Unreachable, match="check that it is on"):
        pull("ssh://pi@127.0.0.1:1/x.db", local, method="scp", **host.access)
    with pytest.raises(Unreadable, match="there is no file"):
        pull(host.url(tmp_path / "absent.db"), local, method="scp", **host.access)
    (tmp_path / "text.db").write_text("not a database, though long enough to be one" * 30)
    with pytest.raises(Unreadable, match="not a database"):
        pull(host.url(tmp_path / "text.db"), local, method="query", **host.access)
    with pytest.raises(TerminalError, match="write it as ssh://"):
        pull("http://example.org/x.db", local, method="query")
    with pytest.raises(TerminalError, match="use a key"):
        pull("ssh://pi:secret@example.org/x.db", local, method="query")
    assert not local.exists()


def test_keys_that_cannot_be_read_are_named(
    host: Host, remote: Path, local: Path, tmp_path: Path
) -> None:
    import asyncssh

    locked, garbage = tmp_path / "locked", tmp_path / "garbage"
    key = asyncssh.generate_private_key("ssh-ed25519")
    locked.write_bytes(key.export_private_key("pkcs8-pem", passphrase="secret"))
    garbage.write_text("not a key")
    for client_key in (locked, garbage, tmp_path / "absent"):
        with pytest.raises(NotAllowed, match=r"cannot be used \("):
            pull(
                host.url(remote),
                local,
                method="scp",
                known_hosts=host.known_hosts,
                client_keys=[client_key],
            )
    with pytest.raises(NotAllowed, match="absent"):
        pull(
            host.url(remote),
            local,
            method="scp",
            known_hosts=tmp_path / "absent",
            client_keys=[host.client_key],
        )
    assert not local.exists()


def test_text_that_is_not_utf8_is_pulled_by_scp_and_an_error_of_query(
    host: Host, remote: Path, remote_db, local: Path
) -> None:
    remote_db.execute("insert into visit (at) values (cast(x'ff' as text))")
    with pytest.raises(Unreadable, match="UTF-8"):
        pull(host.url(remote), local, method="query", **host.access)
    assert not local.exists()
    pulled = pull(host.url(remote), local, method="scp", **host.access)
    assert pulled.verified and pulled.tables["visit"] == 101


def test_a_collation_of_the_program_is_an_error_that_names_it(
    host: Host, remote: Path, remote_db, local: Path
) -> None:
    remote_db.create_collation("ours", lambda one, two: (one > two) - (one < two))
    remote_db.execute("create table word (w text collate ours unique)")
    remote_db.execute("insert into word values ('b'), ('a')")
    with pytest.raises(Unreadable, match="ours"):
        pull(host.url(remote), local, method="query", **host.access)
    assert not local.exists()


def test_a_host_without_python3(tmp_path: Path, remote: Path, local: Path) -> None:
    (tmp_path / "host").mkdir()
    with (
        serving(tmp_path / "host", path="/nowhere") as host,
        pytest.raises(TerminalError, match="no python3"),
    ):
        pull(host.url(remote), local, method="query", **host.access)


@pytest.mark.parametrize(
    "made",
    [
        "create virtual table words using fts5 (word)",
        "create table words (word, rowid, _rowid_, oid)",  # its rows cannot be told apart
    ],
)
def test_what_has_no_key_is_pulled_by_blocks_and_only_those_that_changed(
    host: Host, remote: Path, remote_db, local: Path, made: str
) -> None:
    remote_db.execute(made)
    remote_db.execute("insert into words (word) values ('hello')")
    first = pull(host.url(remote), local, method="query", **host.access)
    assert contents_of(local) == contents(remote_db)
    remote_db.execute("insert into words (word) values ('world')")
    second = pull(host.url(remote), local, method="query", **host.access)
    assert (first.method, second.method) == ("scp", "pages")
    assert second.bytes_moved < first.bytes_moved / 2
    assert f"{second.ranges:,} blocks compared" in second.sentence
    assert contents_of(local) == contents(remote_db)
    none = pull(host.url(remote), local, method="pages", **host.access)
    assert none.bytes_moved < second.bytes_moved and none.sha256 == second.sha256


def test_a_file_that_became_shorter_or_quite_another_is_pulled_by_blocks(
    host: Host, remote: Path, remote_db, local: Path
) -> None:
    pull(host.url(remote), local, method="pages", **host.access)
    remote_db.execute("delete from member where id > 4900")
    remote_db.execute("vacuum")
    pull(host.url(remote), local, method="pages", **host.access)
    assert contents_of(local) == contents(remote_db)
    with closing(sqlite3.connect(local)) as db:
        db.execute("update member set name = 'changed here ' || id")
        db.commit()
    pulled = pull(host.url(remote), local, method="pages", **host.access)
    assert pulled.method == "scp" and contents_of(local) == contents(remote_db)


@METHODS
def test_unsaved_changes_beside_the_target_are_not_lost(
    host: Host, remote: Path, local: Path, method
) -> None:
    local.parent.mkdir()
    local.write_bytes(b"")
    local.with_name("pi.db-wal").write_bytes(b"unsaved changes")
    with pytest.raises(Unsaved):
        pull(host.url(remote), local, method=method, **host.access)
    assert local.with_name("pi.db-wal").read_bytes() == b"unsaved changes"


def test_the_agent_is_python_3_7_and_the_standard_library() -> None:
    folder = Path(replica_platform.backup.__file__).parent
    for name in connection.PROGRAM:
        tree = ast.parse((folder / name).read_text(), feature_version=(3, 7))
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {getattr(node, "module", None) or node.names[0].name for node in top}
        assert names <= {
            "__future__", "base64", "contextlib", "errno", "hashlib", "json", "os", "pathlib", "re",
            "sqlite3", "sys", "tempfile", "threading", "time", "typing",
        }  # fmt: skip


@METHODS
def test_the_file_behind_a_symbolic_link_is_replaced(
    host: Host, remote: Path, remote_db, local: Path, method
) -> None:
    link = local.with_name("link.db")
    local.parent.mkdir()
    link.symlink_to("pi.db")
    pull(host.url(remote), link, method=method, **host.access)  # the file is not there yet
    remote_db.execute("delete from member where id = 17")
    pulled = pull(host.url(remote), link, method=method, **host.access)
    assert link.is_symlink() and not local.is_symlink()
    assert pulled.file == local and contents_of(local) == contents(remote_db)
    local.with_name("pi.db-wal").write_bytes(b"unsaved changes")
    with pytest.raises(Unsaved):
        pull(host.url(remote), link, method=method, **host.access)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away takes root")
def test_owner_and_mode_of_the_replaced_file_are_kept(
    host: Host, remote: Path, remote_db, local: Path
) -> None:
    pull(host.url(remote), local, method="scp", **host.access)
    local.chmod(0o606)
    os.chown(local, 1234, 2345)
    pull(host.url(remote), local, method="scp", **host.access)
    found = local.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (1234, 2345, 0o606)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("rows", "characters"), [(4000, 1060), (3, 2_100_000)])
def test_rows_of_many_bytes_are_pulled_by_query(
    host: Host, remote: Path, remote_db, local: Path, rows: int, characters: int
) -> None:
    values = (("x" * characters, bytes([n % 256]) * 10) for n in range(rows))
    remote_db.executemany("insert into visit (at, note) values (?, ?)", values)
    pulled = pull(host.url(remote), local, method="query", **host.access)
    assert pulled.verified and contents_of(local) == contents(remote_db)


@contextmanager
def fake_python3(folder: Path, script: str) -> Iterator[Host]:
    """Run a server whose python3 is a shell script."""
    commands = folder / "bin"
    commands.mkdir()
    (commands / "python3").write_text(f"#!/bin/sh\n{script}\n")
    (commands / "python3").chmod(0o755)
    (folder / "host").mkdir()
    with serving(folder / "host", path=f"{commands}:{os.environ['PATH']}") as host:
        yield host


SILENT = {
    "before it is ready": "exec cat >/dev/null",
    "before its first answer": "echo replica-ready; exec cat >/dev/null",
    "in the middle of an answer": "echo replica-ready; echo 99; printf short; exec cat >/dev/null",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("script", SILENT.values(), ids=SILENT.keys())
def test_a_host_that_falls_silent_is_given_up(
    tmp_path: Path, remote: Path, local: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(connection, "SILENCE_S", 0.5, raising=False)
    with (
        fake_python3(tmp_path, script) as host,
        pytest.raises(Unreachable, match=r"sent nothing for 0\.5 s"),
    ):
        pull(host.url(remote), local, method="query", **host.access)
    assert not local.exists()


def test_output_that_is_no_answer_is_refused(
    tmp_path: Path, remote: Path, local: Path, remote_db
) -> None:
    with (
        fake_python3(tmp_path, "echo replica-ready; echo hello; exec cat >/dev/null") as host,
        pytest.raises(Unreachable, match=r"no answer .*hello"),
    ):
        pull(host.url(remote), local, method="query", **host.access)


def test_long_work_on_the_other_host_is_no_silence(
    host: Host, remote: Path, remote_db, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SILENCE_S", 1.0, raising=False)
    program = connection._program
    # The agent counts for three seconds, and says every 0.2 s that it works.
    slow = (
        b"HEARTBEAT_S = 0.2\n"
        b"import time\n"
        b"quick = Agent.count_tables\n"
        b"Agent.count_tables = lambda self: (time.sleep(3), quick(self))[1]\n"
    )

    def slow_program(path: str) -> bytes:
        _, _, text = program(path).partition(b"\n")
        imports, _, serve = text.rpartition(b"\n")
        text = imports + b"\n" + slow + serve
        return b"%d\n%s" % (len(text), text)

    monkeypatch.setattr(connection, "_program", slow_program)
    pulled = pull(host.url(remote), local, method="query", info_only=True, **host.access)
    assert pulled.tables["member"] == 4999
