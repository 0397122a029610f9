"""The start of a platform: its databases, the sample's input, and Dagster's processes.

`platform_up` provides the databases, `prepare_sample` the input, `serve` the Dagster UI with its
daemon. A run in this process, without them, is in `runs`.
"""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dotenv import load_dotenv

from replica_platform.app.configured import SAMPLE
from replica_platform.app.embedded import binaries, running
from replica_platform.app.project import INSTANCE, find_project
from replica_platform.app.settings import Settings
from replica_platform.core.errors import TerminalError
from replica_platform.core.locks import try_lock
from replica_platform.core.postgres import connect

PROJECT = Path(__file__).parents[2]
STOP_TIMEOUT_S = 20.0


class NotAProject(TerminalError):
    """There is no `dagster.yaml`, so Dagster has no instance to run on."""


class NotACluster(TerminalError):
    """The settings do not name what the hosts of a cluster share."""


class AlreadyServing(TerminalError):
    """Another `replica dev` runs on the same data folder."""


class NoSuchCommand(TerminalError):
    """The command is not on the PATH."""


class PortTaken(TerminalError):
    """Another program listens on the port."""


@contextmanager
def platform_up(settings: Settings, *, must_answer: bool = True) -> Iterator[None]:
    """Keep the databases running, and give their DSNs to other processes by the environment.

    Args:
        settings: The settings of the platform.
        must_answer: Whether a configured database that does not answer is an error.

    Raises:
        CannotConnect: A configured database does not answer.
        EmbeddedPostgresFailed: The embedded Postgres could not be started.
    """
    settings.outbox_dir.mkdir(parents=True, exist_ok=True)
    _export(settings)
    for given in settings.databases.values():
        if given is not None and must_answer:
            connect(given.get_secret_value()).close()
    if not settings.uses_embedded:
        yield
        return
    with running(settings.postgres_dir) as server:
        for name, given in settings.databases.items():
            if given is None:
                server.make_database(name)
        yield


@contextmanager
def existing_databases(settings: Settings) -> Iterator[None]:
    """Keep the embedded Postgres running if it is needed and was made before; create nothing.

    Raises:
        EmbeddedPostgresFailed: The embedded Postgres could not be started.
    """
    _export(settings)
    if not settings.uses_embedded or not is_made(settings):
        yield
        return
    with running(settings.postgres_dir):
        yield


def broker_of(settings: Settings) -> str:
    """Return the address of the broker, and give this process what a worker needs.

    Raises:
        NotACluster: The broker, or a database that all hosts share, is not named.
    """
    _export(settings)
    needed = {
        "REPLICA_BROKER_URL": settings.broker_url,
        "REPLICA_DAGSTER_DSN": settings.dagster_dsn,
        "REPLICA_TARGET_DSN": settings.target_dsn,
    }
    missing = [name for name, given in needed.items() if given is None]
    if settings.broker_url is None or missing:
        raise NotACluster(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set; a worker "
            "shares them with all hosts. Set them here or in the file .env."
        )
    return settings.broker_url.get_secret_value()


def _export(settings: Settings) -> None:
    """Give this process, and those that it starts, the variables that entries name.

    `.env` may hold the DSNs of further databases and the salts of masks, as `dg` reads it too.
    """
    load_dotenv(".env", override=False)
    os.environ.update(settings.environment())


def is_made(settings: Settings) -> bool:
    """Whether the embedded Postgres of these settings was made before."""
    return (settings.postgres_dir / "PG_VERSION").exists()


def prepare_sample(settings: Settings) -> None:
    """Let the sample create its input; without the sample there is none."""
    if not settings.sample:
        return
    name = f"{__package__.partition('.')[0]}.defs.{SAMPLE}"
    if importlib.util.find_spec(name) is not None:
        importlib.import_module(f"{name}.input").prepare(settings)


def project_dir() -> Path:
    """Return the folder of `dagster.yaml`: the user's project, or the clone of this package.

    Raises:
        NotAProject: There is none in the working folder, and none beside the package.
        WrongProject: The project in the working folder cannot be read.
    """
    project = find_project()
    if project is not None:
        if not (project.folder / "dagster.yaml").is_file():
            raise NotAProject(
                f"There is no dagster.yaml in {project.folder}; copy {INSTANCE} to it, and run "
                "this again."
            )
        return project.folder
    if not is_clone():
        raise NotAProject(
            f"There is no project in {Path.cwd()}. Make one with `replica init my_platform`, "
            "change to its folder, and run this there."
        )
    return PROJECT


def is_clone() -> bool:
    """Whether this package is in a clone of its repository, with its own `dagster.yaml`."""
    return (PROJECT / "dagster.yaml").is_file()


def deck_port(settings: Settings) -> int | None:
    """Return the port of the deck beside the UI; None where it is taken or cannot be drawn."""
    port = settings.port + 1
    if port > 65535 or importlib.util.find_spec("vl_convert") is None:
        return None
    try:
        _assert_port_free(port)
    except PortTaken:
        return None
    return port


def _start_deck(settings: Settings) -> subprocess.Popen[bytes] | None:
    port = deck_port(settings)
    if port is None:
        return None
    program = [sys.executable, "-m", f"{__package__.partition('.')[0]}.cli.main"]
    # A process of its own: drawing a deck must not hold up the signals that end everything.
    return subprocess.Popen(
        [*program, "deck", "--port", str(port)],
        env=_environment() | settings.environment(),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def serve(settings: Settings, *, with_deck: bool = False) -> int:
    """Run the Dagster UI with daemon, schedules and sensors until Ctrl-C or SIGTERM.

    Args:
        settings: The settings of the platform; the databases must run.
        with_deck: Whether the deck is served too, on the next port.

    Returns:
        The exit code, when every process that this started has ended.

    Raises:
        AlreadyServing: Another `replica dev` runs on the same data folder.
        NotAProject: There is no `dagster.yaml`.
        PortTaken: Another program listens on the port.
    """
    command = [
        str(Path(sys.executable).parent / "dg"), "dev",
        "--host", "127.0.0.1", "--port", str(settings.port), "--log-level", "warning",
    ]  # fmt: skip
    with _only_one(settings):
        _assert_port_free(settings.port)
        stop = threading.Event()
        # Own handlers: a child inherits an ignored SIGINT (a shell's `&` ignores it), and Dagster
        # would then ignore SIGTERM as well.
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, lambda *_: stop.set())
        dg_dev = subprocess.Popen(
            command, cwd=project_dir(), env=_environment(), start_new_session=True
        )
        deck = _start_deck(settings) if with_deck else None
        try:
            while dg_dev.poll() is None and not stop.wait(0.2):
                pass
        finally:
            if deck is not None:
                end_session(deck)
            end_session(dg_dev)
    return 0 if stop.is_set() else dg_dev.returncode


def run_command(command: Sequence[str]) -> int:
    """Run another program with the variables of this platform and return its exit code.

    Raises:
        NoSuchCommand: The program is not on the PATH.
    """
    try:
        return subprocess.run(command, env=_environment(), check=False).returncode
    except FileNotFoundError:
        raise NoSuchCommand(f"There is no command {command[0]!r}; check its name.") from None


def _environment() -> dict[str, str]:
    """Return this environment with Dagster's instance, and with `dg` and `psql` on the PATH."""
    path = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), str(binaries())]
    return os.environ | {
        "DAGSTER_HOME": str(project_dir()),
        "VIRTUAL_ENV": sys.prefix,
        "PATH": os.pathsep.join(path),
    }


@contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    """Hold the lock that allows one `replica dev` for a data folder."""
    path = settings.data_dir / ".dev.lock"
    with path.open("a+") as lock:
        if not try_lock(lock.fileno()):
            lock.seek(0)
            raise AlreadyServing(
                f"The platform is already served at {lock.read().strip()}; "
                "stop that process first, or set REPLICA_DATA_DIR to another folder."
            )
        lock.truncate(0)
        lock.write(f"http://127.0.0.1:{settings.port} by process {os.getpid()}")
        lock.flush()
        yield


def _assert_port_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise PortTaken(f"Port {port} is taken; set REPLICA_PORT to a free port.") from None


def end_session(leader: subprocess.Popen[bytes]) -> None:
    """End `leader` and its children, which share its session: signals first, then SIGKILL."""
    for name in (signal.SIGINT, signal.SIGTERM):
        if leader.poll() is None:
            leader.send_signal(name)
            try:
                leader.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                continue
    try:
        os.killpg(leader.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    leader.wait()
