"""A real OpenSSH server, Debian's `sshd`, on a free port with keys of its own."""

import getpass
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

SSHD = Path("/usr/sbin/sshd")
CONFIGURATION = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/client.pub
PidFile {folder}/pid
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
MaxStartups 100
SetEnv PATH={path}
Subsystem sftp internal-sftp
"""


@dataclass(frozen=True)
class OpenSSH:
    """The server's port, its keys, its process."""

    port: int
    folder: Path
    process: psutil.Process

    def url(self, file: Path) -> str:
        """Return the address of a file on the server."""
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{file}"

    @property
    def access(self) -> dict:
        """The arguments of `pull` for this server."""
        return {
            "known_hosts": self.folder / "known_hosts",
            "client_keys": [self.folder / "client"],
        }

    def cut_all_sessions(self) -> int:
        """Kill the processes of the open connections; return how many there were.

        The programs that they had started live on, as after a lost connection.
        """
        killed = 0
        for process in self.process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.name().startswith("sshd"):
                    process.kill()
                    killed += 1
        return killed


@contextmanager
def serving_openssh(folder: Path) -> Iterator[OpenSSH]:
    """Run the server until the block ends; skip the test where it is not installed."""
    if not SSHD.exists():
        pytest.skip("sshd is not installed: apt-get install openssh-server")
    for name in ("host", "client"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    public = (folder / "host.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}")
    # This Python first: a version manager's shim takes longer to start than a pull.
    path = f"{Path(sys.executable).parent}{os.pathsep}/usr/bin:/bin"
    (folder / "config").write_text(CONFIGURATION.format(port=port, folder=folder, path=path))
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", folder / "config"], stdout=log, stderr=log
        )
    try:
        end = time.monotonic() + 20
        while True:
            with closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None and time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.05)
        yield OpenSSH(port, folder, psutil.Process(server.pid))
    finally:
        for process in psutil.Process(server.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        server.kill()
        server.wait()
