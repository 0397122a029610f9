"""Separate servers, for tests that crash, wrap, copy or promote them."""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from replica_platform.app import embedded
from replica_platform.app.embedded import Server, running, server_at
from replica_platform_tests.xmin.helpers import execute


@contextmanager
def own_server(version: int = 18) -> Iterator[Server]:
    """Start a server for one test, with a database `src`."""
    # Not under pytest's folder: as root, Postgres is another user, who may not read there.
    with (
        tempfile.TemporaryDirectory(prefix="rp-") as folder,
        running(Path(folder) / "pg", version) as server,
    ):
        execute(server.dsn(), "create database src")
        yield server


def run(server: Server, program: str, *arguments: str) -> None:
    """Run one of the server's own programs, as the server's user."""
    embedded.run_program(server.version, program, *arguments)


@contextmanager
def standby_of(primary: Server) -> Iterator[Server]:
    """Start a physical standby that replays its primary."""
    folder = primary.folder.parent / "standby"
    embedded.private_folder(folder)
    run(
        primary, "pg_basebackup", "-D", str(folder), "-R", "-c", "fast", "-h",
        str(primary.socket_dir), "-U", "postgres",
    )  # fmt: skip
    standby = server_at(folder, primary.version)
    _unlock(standby)
    standby.start()
    try:
        yield standby
    finally:
        if standby.is_running:
            standby.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)


def past_wraparound(server: Server, xid: int = 4294960000) -> None:
    """Move the server's next xid close to 2^32, as years of use would."""
    execute(server.dsn(), "alter database template0 allow_connections true")
    freeze_all(server)
    server.stop()
    run(
        server, "pg_resetwal", "-f", "-x", str(xid), "-u", str(xid - 10_000), "-D",
        str(server.folder),
    )  # fmt: skip
    # The commit log of that range has never been written: all zero says "in progress".
    log = server.folder / "pg_xact" / f"{xid // (32768 * 32):04X}"
    log.write_bytes(bytes(256 * 1024))
    owner = server.folder.stat()
    os.chown(log, owner.st_uid, owner.st_gid)
    log.chmod(0o600)
    server.start()
    # Those years would have moved the oldest unfrozen xid of each table along.
    freeze_all(server)


def freeze_all(server: Server) -> None:
    """VACUUM FREEZE in every database that takes connections."""
    run(
        server, "vacuumdb", "--all", "--freeze", "--disable-page-skipping", "--quiet",
        "-h", str(server.socket_dir), "-U", "postgres",
    )  # fmt: skip


def burn(dsn: str, count: int) -> None:
    """Use up xids, each in its own transaction."""
    execute(
        dsn,
        "do $$ begin "
        f"for i in 1..{count} loop perform pg_current_xact_id(); commit; end loop; end $$",
    )


def kill_9(server: Server) -> None:
    """Kill the server and all its children at once, as a power cut would."""
    postmaster = int((server.folder / "postmaster.pid").read_text().splitlines()[0])
    family = [int(e.name) for e in Path("/proc").iterdir() if e.name.isdigit()]
    family = [pid for pid in family if _stat(pid)[1] == str(postmaster)] + [postmaster]
    for pid in family:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while any(_stat(pid)[0] not in "Z?" for pid in family):
        time.sleep(0.01)
    # After a power cut no process has the old number; here a zombie may keep it.
    _unlock(server)


def _unlock(server: Server) -> None:
    """Remove the lock files of a server that does not run, copied or left over."""
    (server.folder / "postmaster.pid").unlink(missing_ok=True)
    for left in server.socket_dir.glob(".s.PGSQL.*"):
        left.unlink()


def _stat(pid: int) -> tuple[str, str]:
    """Return state and parent of a process; `?` when it has ended."""
    with suppress(OSError, IndexError):
        state, parent = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[:2]
        return state, parent
    return "?", ""
