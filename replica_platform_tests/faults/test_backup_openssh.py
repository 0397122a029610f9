"""Pulls from a real OpenSSH server, under a writer at full speed and cut in the middle."""

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from replica_platform.backup import pull
from replica_platform.backup.errors import Unreachable
from replica_platform.core.sqlite import sqlite3
from replica_platform_tests.backup.openssh_server import OpenSSH, serving_openssh
from replica_platform_tests.faults import backup_writer

METHODS = ("query", "pages", "scp")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSSH]:
    with serving_openssh(tmp_path_factory.mktemp("sshd")) as host:
        yield host


@pytest.mark.parametrize("method", METHODS)
def test_pulls_under_a_writer_at_full_speed(
    host: OpenSSH, remote: Path, tmp_path: Path, torture: bool, method
) -> None:
    local, rounds = tmp_path / "local.db", 15 if torture else 2
    with backup_writer.writing(remote):
        for _ in range(rounds):
            got = pull(host.url(remote), local, method=method, **host.access)
            assert got.verified and backup_writer.is_sound(local)
    print(f"pull by {method} from sshd under a writer: 0 of {rounds} unsound; {got.sentence}")


def cut_when(host: OpenSSH, is_time: Callable[[], bool], has_ended: threading.Event) -> list[int]:
    """Cut the connections once it is time; return how many there were."""
    cut: list[int] = []
    while not has_ended.is_set() and not cut:
        if is_time() and (killed := host.cut_all_sessions()):
            cut.append(killed)
        time.sleep(0.001)
    return cut


def change_everything(file: Path, value: str) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("update t set v = ?", [value * 300])


def test_cut_in_the_middle_the_target_is_as_before(
    host: OpenSSH, remote: Path, tmp_path: Path, torture: bool
) -> None:
    """At moments from the connection to the last byte, by each method in turn."""
    local = tmp_path / "local" / "busy.db"
    local.parent.mkdir()
    shutil.copyfile(remote, local)
    rounds, cut_off, arrived = 15 if torture else 6, 0, 0
    for number in range(rounds):
        method = METHODS[number % 3]
        change_everything(remote, f"{number:x}")
        before, has_ended = local.read_bytes(), threading.Event()
        began, delay_s = time.monotonic(), 0.05 * (number // 3 + 1)

        def is_time(began: float = began, delay_s: float = delay_s) -> bool:
            # From the moment at which the copy is being made.
            return bool(list(local.parent.glob(".tmp-*"))) and time.monotonic() > began + delay_s

        cutter = threading.Thread(target=cut_when, args=(host, is_time, has_ended))
        cutter.start()
        try:
            pull(host.url(remote), local, method=method, **host.access)  # type: ignore[arg-type]
            arrived += 1
        except Unreachable as error:
            cut_off += 1
            assert "Try again" in str(error)
            assert local.read_bytes() == before
        finally:
            has_ended.set()
            cutter.join()
        assert [path.name for path in local.parent.iterdir()] == ["busy.db"]
        assert backup_writer.is_sound(local)
    pull(host.url(remote), local, method="query", **host.access)
    assert backup_writer.is_sound(local)
    # The agents notice and remove their snapshots.
    end = time.monotonic() + 30
    while list(remote.parent.glob(".replica-pull-*")) and time.monotonic() < end:
        time.sleep(0.1)
    assert not list(remote.parent.glob(".replica-pull-*"))
    print(f"sshd: {rounds} pulls, {cut_off} cut off, {arrived} arrived; the target always sound")
    assert cut_off >= rounds // 2


def test_a_plain_scp_that_is_cut_leaves_half_a_file(
    host: OpenSSH, remote: Path, tmp_path: Path
) -> None:
    """For comparison: OpenSSH's own program writes to the target itself."""
    local = tmp_path / "local.db"
    shutil.copyfile(remote, local)
    access = [
        *("-i", host.folder / "client", "-o", f"UserKnownHostsFile={host.folder / 'known_hosts'}"),
        *("-o", "BatchMode=yes", "-l", "20000"),  # kbit/s, so that there is a middle
    ]
    address = host.url(remote).removeprefix("ssh://").split(":")[0]
    change_everything(remote, "changed")
    copy = subprocess.Popen(
        ["scp", "-q", "-P", str(host.port), *access, f"{address}:{remote}", local],
        stderr=subprocess.DEVNULL,
    )
    before, end = local.stat().st_mtime_ns, time.monotonic() + 20
    while local.stat().st_mtime_ns == before and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.3)
    assert host.cut_all_sessions()
    assert copy.wait(20)
    assert not backup_writer.is_sound(local)
