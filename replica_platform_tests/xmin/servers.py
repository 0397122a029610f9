"""The oldest supported server, which no wheel has: Debian's Postgres 15, where it is installed."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from replica_platform.app import embedded
from replica_platform.app.embedded import Server, server_at
from replica_platform_tests.xmin.helpers import execute

BINARIES = Path("/usr/lib/postgresql/15/bin")


@contextmanager
def fifteen_running() -> Iterator[Server]:
    """Run a Postgres 15 with the databases source and target; skip the test without one."""
    if not BINARIES.exists():
        pytest.skip("no Postgres 15 on this machine (apt-get install postgresql-15)")
    with tempfile.TemporaryDirectory(prefix="rp-") as folder:
        data = Path(folder) / "pg15"
        embedded.private_folder(data)
        _run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync",
             "--locale=C.UTF-8")  # fmt: skip
        options = f"-k {data} -c listen_addresses='' -c fsync=off"
        _run("pg_ctl", "start", "-w", "-s", "-D", data, "-l", data / "log", "-o", options)
        try:
            server = server_at(data)
            execute(server.dsn(), "create database source", "create database target")
            yield server
        finally:
            _run("pg_ctl", "stop", "-w", "-s", "-D", data, "-m", "immediate")


def _run(program: str, *arguments: object) -> None:
    """Run one of its programs as the user of the server."""
    user = embedded.system_user()
    subprocess.run(
        [str(BINARIES / program), *map(str, arguments)],
        check=True,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        user=user.pw_name if user else None,
        group=user.pw_gid if user else None,
        extra_groups=[] if user else None,
    )
