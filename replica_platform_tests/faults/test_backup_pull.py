"""A pull while the remote program writes at full speed, and pulls that are cut off half-way."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from replica_platform.backup import pull
from replica_platform.backup.errors import Damaged, Unreachable
from replica_platform.backup.remote import openssh
from replica_platform.backup.remote.connection import RemoteAgent
from replica_platform.core.sqlite import sqlite3
from replica_platform_tests.backup.ssh_server import Host, serving
from replica_platform_tests.faults import backup_writer


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with serving(tmp_path_factory.mktemp("host")) as host:
        yield host


@pytest.mark.parametrize("method", ["query", "pages", "scp"])
def test_pulls_under_a_writer_at_full_speed(
    host: Host, remote: Path, tmp_path: Path, torture: bool, method
) -> None:
    local, rounds = tmp_path / "local.db", 15 if torture else 1
    with backup_writer.writing(remote):
        for _ in range(rounds):
            got = pull(host.url(remote), local, method=method, **host.access)
            assert got.verified and backup_writer.is_sound(local)
    print(f"pull by {method} under a writer: 0 of {rounds} unsound; {got.sentence}")


def test_naive_pages_are_no_single_moment(remote: Path, tmp_path: Path) -> None:
    """For comparison: each page read by itself, and nothing compared at the end."""
    with (
        backup_writer.writing(remote),
        closing(sqlite3.connect(remote, timeout=30)) as source,
        closing(sqlite3.connect(tmp_path / "naive.db", isolation_level=None)) as copy,
    ):
        copy.execute("create table t (id integer primary key, k text, v text)")
        copy.execute("begin")
        text, last = "select id, k, v from t where id > ? order by id limit 2000", 0
        while page := source.execute(text, (last,)).fetchall():
            copy.executemany("insert into t values (?, ?, ?)", page)
            last = page[-1][0]
            if len(page) < 2000:
                break
        sound = backup_writer.is_one_moment(copy)
    print(f"naive pages under a writer: {'one moment' if sound else 'no single moment'}")
    assert not sound


@pytest.mark.parametrize("method", ["query", "scp"])
def test_a_pull_cut_off_half_way_leaves_the_previous_copy(
    host: Host, remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method
) -> None:
    local = tmp_path / "local" / "busy.db"
    local.parent.mkdir()
    shutil.copyfile(remote, local)
    before = local.read_bytes()
    with closing(sqlite3.connect(remote, isolation_level=None)) as db:
        db.execute("update t set v = 'changed'")
    left = 3

    def cut_after_some(original):
        def call(self: RemoteAgent, *args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0:
                self._process.channel.get_connection().abort()
            return original(self, *args, **kwargs)

        return call

    watched = "ask" if method == "query" else "receive"
    left = 6 if method == "query" else 1
    monkeypatch.setattr(openssh.shutil, "which", lambda name: None)  # the agent sends the bytes
    monkeypatch.setattr(RemoteAgent, watched, cut_after_some(getattr(RemoteAgent, watched)))
    with pytest.raises(Unreachable, match="Try again"):
        pull(host.url(remote), local, method=method, **host.access)
    assert local.read_bytes() == before
    assert [path.name for path in local.parent.iterdir()] == ["busy.db"]
    monkeypatch.undo()
    pull(host.url(remote), local, method=method, **host.access)
    assert backup_writer.is_sound(local)
    for _ in range(50):  # the agent ends by itself and removes its snapshot
        if not list(remote.parent.glob(".replica-pull-*")):
            break
        time.sleep(0.1)
    assert not list(remote.parent.glob(".replica-pull-*"))


def test_bytes_that_change_on_the_way_are_noticed(
    host: Host, remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive, ask = RemoteAgent.receive, RemoteAgent.ask

    def flipping(self: RemoteAgent, request: str, size: int, write, **arguments) -> None:
        def flip(block: bytes) -> None:
            write(block[:-1] + bytes([block[-1] ^ 1]))

        receive(self, request, size, flip, **arguments)

    def dropping(self: RemoteAgent, request: str, **arguments):
        answer = ask(self, request, **arguments)
        if request == "read_rows":
            answer["rows"] = answer["rows"][:700] + answer["rows"][701:]
        return answer

    monkeypatch.setattr(openssh.shutil, "which", lambda name: None)
    monkeypatch.setattr(RemoteAgent, "receive", flipping)
    with pytest.raises(Damaged, match="SHA-256"):
        pull(host.url(remote), tmp_path / "local.db", method="scp", **host.access)
    previous = tmp_path / "previous.db"
    shutil.copyfile(remote, previous)
    with closing(sqlite3.connect(remote, isolation_level=None)) as db:
        db.execute("update t set v = 'changed' where id = 1")
    with pytest.raises(Damaged, match="digest differs"):
        pull(host.url(remote), previous, method="pages", **host.access)
    monkeypatch.setattr(RemoteAgent, "ask", dropping)
    with pytest.raises(Damaged, match="differ"):
        pull(host.url(remote), tmp_path / "local.db", method="query", **host.access)
    assert not (tmp_path / "local.db").exists()


def test_a_killed_pull_leaves_the_target_and_the_next_removes_its_temporary_file(
    host: Host, remote: Path, tmp_path: Path, torture: bool
) -> None:
    local = tmp_path / "local" / "busy.db"
    puller = (
        "import sys; from pathlib import Path; from replica_platform.backup import pull\n"
        "url, to, method, hosts, key = sys.argv[1:]; print('on', flush=True)\n"
        "pull(url, Path(to), method=method, known_hosts=Path(hosts), client_keys=[Path(key)])"
    )
    kills, half_done = 20 if torture else 2, 0
    for number in range(kills):
        method = ("query", "scp")[number % 2]
        access = [host.known_hosts, host.client_key]
        command = [sys.executable, "-c", puller, host.url(remote), local, method, *access]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout and process.stdout.readline()
            time.sleep(0.6 + 0.6 * number / kills)
            process.kill()
        if local.parent.exists():
            half_done += bool(list(local.parent.glob(".tmp-*")))
        assert not local.exists() or backup_writer.is_sound(local)
    pull(host.url(remote), local, method="scp", **host.access)
    assert [path.name for path in local.parent.iterdir()] == ["busy.db"]
    assert backup_writer.is_sound(local)
    print(f"pull: {kills} kills, {half_done} left a temporary file, all cleared")
