"""A file's bytes come by OpenSSH's program, proven by their digest, or else from the agent."""

import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from replica_platform.backup import pull
from replica_platform.backup.errors import Damaged
from replica_platform.backup.remote.connection import RemoteAgent
from replica_platform_tests.backup.conftest import make, rows_of
from replica_platform_tests.backup.ssh_server import Host, serving
from replica_platform_tests.conftest import Cli

pytestmark = pytest.mark.skipif(not shutil.which("ssh"), reason="OpenSSH is not installed")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with serving(tmp_path_factory.mktemp("the host")) as host:
        yield host


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "it's remote"
    folder.mkdir()
    with closing(make(folder / "pi.db", *["x" * 3000] * 1000)):
        yield folder / "pi.db"


@pytest.fixture
def sent_by_agent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The requests for bytes that the agent was sent."""
    requests: list[str] = []
    receive = RemoteAgent.receive

    def noting(self: RemoteAgent, request: str, size: int, write) -> None:
        requests.append(request)
        receive(self, request, size, write)

    monkeypatch.setattr(RemoteAgent, "receive", noting)
    return requests


def use_program(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program called ssh first in PATH; `remote` runs what it should run on the host."""
    (folder / "bin").mkdir()
    program = folder / "bin" / "ssh"
    program.write_text(
        f"#!/bin/sh\nREAL={shutil.which('ssh')}\n"
        'remote() { for last; do :; done; sh -c "$last"; }\n'
        f"{script}\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


def test_the_bytes_come_by_openssh(
    host: Host, remote: Path, tmp_path: Path, sent_by_agent: list[str]
) -> None:
    seen: list[tuple[int, int]] = []
    done = pull(
        host.url(remote),
        tmp_path / "local.db",
        method="scp",
        progress=lambda at, total, unit: seen.append((at, total)),
        **host.access,
    )
    assert sent_by_agent == []
    assert done.verified and len(rows_of(done.file)) == 1000
    assert done.bytes_moved > done.bytes and seen[-1] == (done.bytes, done.bytes)
    assert "SHA-256 is equal" in done.sentence


def test_the_command_pulls_a_file(host: Host, remote: Path, tmp_path: Path, cli: Cli) -> None:
    access = ["--known-hosts", host.access["known_hosts"]]
    for key in host.access["client_keys"]:
        access += ["--client-key", key]
    local = tmp_path / "local.db"
    done = cli("pull-sqlite", host.url(remote), "--to", local, *access)
    assert done.returncode == 0, done.stderr
    assert len(rows_of(local)) == 1000


FAILING = {
    "it cannot connect": "exit 255",
    "it ends half-way": 'remote "$@" | head -c 100000',
    "it prints something else": "echo hello",
}


@pytest.mark.parametrize("script", FAILING.values(), ids=FAILING.keys())
def test_the_agent_sends_the_bytes_where_openssh_does_not(
    host: Host,
    remote: Path,
    tmp_path: Path,
    sent_by_agent: list[str],
    monkeypatch: pytest.MonkeyPatch,
    script: str,
) -> None:
    use_program(tmp_path, monkeypatch, script)
    done = pull(host.url(remote), tmp_path / "local.db", method="scp", **host.access)
    assert sent_by_agent == ["send_snapshot"]
    assert done.verified and len(rows_of(done.file)) == 1000


def test_bytes_that_change_on_the_way_are_noticed(
    host: Host, remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_program(tmp_path, monkeypatch, 'remote "$@" | tr x y')
    with pytest.raises(Damaged, match="SHA-256"):
        pull(host.url(remote), tmp_path / "local.db", method="scp", **host.access)
    assert not (tmp_path / "local.db").exists()


def test_an_unknown_host_key_is_refused_by_openssh_too(
    host: Host, remote: Path, tmp_path: Path, sent_by_agent: list[str], monkeypatch
) -> None:
    """OpenSSH itself refuses: with an empty list of keys the bytes come from the agent."""
    (tmp_path / "none").touch()
    script = (
        'for a; do case "$a" in UserKnownHostsFile=*) a="UserKnownHostsFile='
        + str(tmp_path / "none")
        + '";; esac; set -- "$@" "$a"; shift; done; exec "$REAL" "$@"'
    )
    use_program(tmp_path, monkeypatch, script)
    assert pull(host.url(remote), tmp_path / "local.db", method="scp", **host.access).verified
    assert sent_by_agent == ["send_snapshot"]
