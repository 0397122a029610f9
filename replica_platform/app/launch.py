"""Brings the platform up: the embedded Postgres and the sample where they are wanted, and
Dagster with its pages and daemon (`serve`). A run without them is in `runs`.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from replica_platform.app.embedded import binaries, running
from replica_platform.app.settings import Settings
from replica_platform.core.errors import TerminalError
from replica_platform.core.locks import try_lock
from replica_platform.core.postgres import connect

PROJECT = Path(__file__).parents[2]
STOP_TIMEOUT_S = 20.0


class NotAProject(TerminalError):
    """`dagster.yaml` is not beside the package, so there is no instance to run on."""


class AlreadyServing(TerminalError):
    """Another `replica dev` serves the same data folder."""


class NoSuchCommand(TerminalError):
    """The command to run is not on the PATH."""


class PortTaken(TerminalError):
    """Something else listens on the port."""


@contextmanager
def platform_up(settings: Settings, *, must_answer: bool = True) -> Iterator[None]:
    """Postgres runs with its databases, and the environment says so to other processes.

    Errors: `CannotConnect` for a configured database that does not answer, if it must.
    """
    settings.outbox_dir.mkdir(parents=True, exist_ok=True)
    os.environ.update(settings.environment())
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


def prepare_sample(settings: Settings) -> None:
    """The sample's input, where nothing of yours takes its place; what is there stays.

    A database of your own gets nothing: records of a sample have no place there.
    """
    # Imported here because pandas comes with it, which `replica status` can do without.
    from replica_platform.app.sample.gym_system import sample_gym_system
    from replica_platform.app.sample.prepare import append_conversations, fill_source

    if settings.source_dsn is None:
        fill_source(settings.source)
    if settings.target_dsn is None:
        append_conversations(settings.outbox_dir / "worker-1.db")
    sample_gym_system(settings.data_dir / "sample" / "gym_system.db")


def project_dir() -> Path:
    """The folder of `dagster.yaml`. Errors: `NotAProject`."""
    if not (PROJECT / "dagster.yaml").is_file():
        raise NotAProject(
            f"There is no dagster.yaml in {PROJECT}; run this from a clone of the project, "
            "installed with `pip install --editable .`."
        )
    return PROJECT


def serve(settings: Settings) -> int:
    """The Dagster pages with daemon, schedules and sensors, until Ctrl-C or SIGTERM.

    Every process that it started has ended when this returns; the value is the exit code.
    Errors: `PortTaken`, `AlreadyServing`.
    """
    command = [
        str(Path(sys.executable).parent / "dg"), "dev",
        "--host", "127.0.0.1", "--port", str(settings.port), "--log-level", "warning",
    ]  # fmt: skip
    with _only_one(settings):
        _assert_port_free(settings.port)
        stop = threading.Event()
        # Handlers of our own, since a child inherits an ignored SIGINT (a shell's `&` ignores
        # it) and Dagster would then ignore SIGTERM as well.
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, lambda *_: stop.set())
        dg_dev = subprocess.Popen(
            command, cwd=project_dir(), env=_environment(), start_new_session=True
        )
        try:
            while dg_dev.poll() is None and not stop.wait(0.2):
                pass
        finally:
            _end_session(dg_dev)
    return 0 if stop.is_set() else dg_dev.returncode


def run_command(command: Sequence[str]) -> int:
    """Run another program with the platform up; its exit code. Errors: `NoSuchCommand`."""
    try:
        return subprocess.run(command, env=_environment(), check=False).returncode
    except FileNotFoundError:
        raise NoSuchCommand(f"There is no command {command[0]!r}; check its name.") from None


def _environment() -> dict[str, str]:
    """Ours, and what commands look for: Dagster's instance, `dg`, and `psql` if there is none."""
    path = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), str(binaries())]
    return os.environ | {
        "DAGSTER_HOME": str(project_dir()),
        "VIRTUAL_ENV": sys.prefix,
        "PATH": os.pathsep.join(path),
    }


@contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    path = settings.data_dir / ".dev.lock"
    with path.open("a+") as lock:
        if not try_lock(lock.fileno()):
            lock.seek(0)
            raise AlreadyServing(
                f"The platform is already served at {lock.read().strip()}; "
                "stop that one first, or set REPLICA_DATA_DIR to another folder."
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
            raise PortTaken(f"Port {port} is taken; set REPLICA_PORT to a free one.") from None


def _end_session(leader: subprocess.Popen[bytes]) -> None:
    """End `leader` and what it started, politely first; its children share its session."""
    for name, patience_s in ((signal.SIGINT, STOP_TIMEOUT_S), (signal.SIGTERM, STOP_TIMEOUT_S)):
        if leader.poll() is None:
            leader.send_signal(name)
            try:
                leader.wait(patience_s)
            except subprocess.TimeoutExpired:
                continue
    try:
        os.killpg(leader.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    leader.wait()
