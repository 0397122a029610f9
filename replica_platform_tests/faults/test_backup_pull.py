"""A pull while the program over there writes at full speed, and one that is cut off half-way."""

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
from replica_platform.backup.remote.ssh import FarSide
from replica_platform.core.sqlite import sqlite3
from replica_platform_tests.backup.ssh_server import Host, serving
from replica_platform_tests.faults import backup_writer


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with serving(tmp_path_factory.mktemp("host")) as host:
        yield host


@pytest.fixture
def there(tmp_path: Path) -> Path:
    file = tmp_path / "far" / "busy.db"
    file.parent.mkdir()
    backup_writer.make(file)
    return file


@pytest.mark.parametrize("method", ["query", "scp"])
def test_pulls_under_a_writer_at_full_speed(
    host: Host, there: Path, tmp_path: Path, torture: bool, method
) -> None:
    here, rounds = tmp_path / "home.db", 15 if torture else 1
    with backup_writer.writing(there):
        for _ in range(rounds):
            got = pull(host.url(there), here, method=method, **host.access)
            assert got.verified and backup_writer.is_sound(here)
    print(f"pull by {method} under a writer: 0 of {rounds} unsound; {got.sentence}")


def test_naive_pages_are_not_one_moment(there: Path, tmp_path: Path) -> None:
    """For comparison: each page read by itself, and nothing compared at the end."""
    with (
        backup_writer.writing(there),
        closing(sqlite3.connect(there, timeout=30)) as source,
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
def test_a_pull_cut_off_half_way_leaves_the_file_of_last_time(
    host: Host, there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method
) -> None:
    here = tmp_path / "home" / "busy.db"
    here.parent.mkdir()
    shutil.copyfile(there, here)
    before = here.read_bytes()
    with closing(sqlite3.connect(there, isolation_level=None)) as db:
        db.execute("update t set v = 'changed'")
    left = 3

    def cut_after_some(original):
        def call(self: FarSide, *args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0:
                self._process.channel.get_connection().abort()
            return original(self, *args, **kwargs)

        return call

    watched = "ask" if method == "query" else "receive"
    left = 6 if method == "query" else 1
    monkeypatch.setattr(FarSide, watched, cut_after_some(getattr(FarSide, watched)))
    with pytest.raises(Unreachable, match="Try again"):
        pull(host.url(there), here, method=method, **host.access)
    assert here.read_bytes() == before
    assert [path.name for path in here.parent.iterdir()] == ["busy.db"]
    monkeypatch.undo()
    pull(host.url(there), here, method=method, **host.access)
    assert backup_writer.is_sound(here)
    for _ in range(50):  # the program over there ends by itself and takes its copy along
        if not list(there.parent.glob(".replica-pull-*")):
            break
        time.sleep(0.1)
    assert not list(there.parent.glob(".replica-pull-*"))


def test_bytes_that_change_on_their_way_are_noticed(
    host: Host, there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive, ask = FarSide.receive, FarSide.ask

    def flipping(self: FarSide, size: int, write) -> None:
        receive(self, size, lambda block: write(block[:-1] + bytes([block[-1] ^ 1])))

    def dropping(self: FarSide, do: str, **arguments):
        answer = ask(self, do, **arguments)
        return answer[:700] + answer[701:] if do == "rows" else answer

    monkeypatch.setattr(FarSide, "receive", flipping)
    with pytest.raises(Damaged, match="SHA-256"):
        pull(host.url(there), tmp_path / "home.db", method="scp", **host.access)
    monkeypatch.setattr(FarSide, "ask", dropping)
    with pytest.raises(Damaged, match="differ"):
        pull(host.url(there), tmp_path / "home.db", method="query", **host.access)
    assert not (tmp_path / "home.db").exists()


def test_a_killed_pull_leaves_the_target_and_the_next_clears_up(
    host: Host, there: Path, tmp_path: Path, torture: bool
) -> None:
    here = tmp_path / "home" / "busy.db"
    puller = (
        "import sys; from pathlib import Path; from replica_platform.backup import pull\n"
        "url, to, method, hosts, key = sys.argv[1:]; print('on', flush=True)\n"
        "pull(url, Path(to), method=method, known_hosts=Path(hosts), client_keys=[Path(key)])"
    )
    kills, half_done = 20 if torture else 2, 0
    for number in range(kills):
        method = ("query", "scp")[number % 2]
        access = [host.known_hosts, host.client_key]
        command = [sys.executable, "-c", puller, host.url(there), here, method, *access]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout and process.stdout.readline()
            time.sleep(0.6 + 0.6 * number / kills)
            process.kill()
        if here.parent.exists():
            half_done += bool(list(here.parent.glob(".tmp-*")))
        assert not here.exists() or backup_writer.is_sound(here)
    pull(host.url(there), here, method="scp", **host.access)
    assert [path.name for path in here.parent.iterdir()] == ["busy.db"]
    assert backup_writer.is_sound(here)
    print(f"pull: {kills} kills, {half_done} left a temporary file, all cleared")
