"""What `deploy/` starts: valid systemd units, and processes that do the work.

Each process is started from the command and the environment that its unit or the Compose file
says, with other ports and folders. Containers themselves are not started; see `test_containers`.
"""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sysconfig
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from replica_platform.app.embedded import binaries, running
from replica_platform.app.launch import PROJECT
from replica_platform.app.project import init_project
from replica_platform.outbox import Outbox
from replica_platform.replica import BlockStore, Master
from replica_platform_tests.acceptance import containerfile
from replica_platform_tests.acceptance.compose import COMPOSE, ENVIRONMENT, compose
from replica_platform_tests.acceptance.pages import Asked, of_this_platform

UNITS = sorted((PROJECT / "deploy" / "systemd").glob("*.service"))
HOME = "/srv/my_platform"
SCRIPTS = sysconfig.get_path("scripts")
WITHIN_S = 240.0
VISITS = """
type: replica_platform.components.WorkerOutboxes
attributes: {name: visits, nodes: {local: outbox}}
"""
OF_HOST_A = """
type: replica_platform.components.WorkerOutboxes
attributes: {name: visits_of_a, host: a, nodes: {local: outbox}}
---
type: replica_platform.components.DuckDBReplica
attributes: {name: shop, host: a, master: shop.duckdb, blocks: "s3://generations/shop"}
"""


@dataclass(frozen=True)
class Deployed:
    """A project without the sample, with an outbox of one record, and a Postgres of its own."""

    project: Path
    postgres_port: int

    def dsn(self, database: str) -> str:
        return f"postgresql://platform@127.0.0.1:{self.postgres_port}/{database}"

    @property
    def folder(self) -> Path:
        return self.project.parent

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def data_of_a(self) -> Path:
        return self.folder / "data-a"

    def append(self, data: Path) -> None:
        (data / "outbox").mkdir(parents=True, exist_ok=True)
        with Outbox(data / "outbox" / "worker-1.db") as outbox:
            outbox.append("visit", {"page": "/"})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def deployed(folder: Path) -> Iterator[Deployed]:
    project = folder / "my_platform"
    init_project(project, sample=False)
    entry = project / "my_platform" / "defs" / "visits" / "defs.yaml"
    entry.parent.mkdir()
    entry.write_text(VISITS)
    service = compose()["services"]["postgres"]
    made = Deployed(project, free_port())
    with running(folder / "postgres") as server:
        server.stop()
        # As a container of it: over TCP, with the user and the databases that the service says.
        server.start("-c listen_addresses=127.0.0.1", f"-c port={made.postgres_port}")
        said = service["environment"]
        admin = f"postgresql://postgres@127.0.0.1:{made.postgres_port}/postgres"
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f"create role {said['POSTGRES_USER']} superuser login")
            connection.execute(f"create database {said['POSTGRES_DB']}")
            for script in (one.split(":")[0] for one in service["volumes"] if ".sql" in one):
                connection.execute((COMPOSE.parent / script).read_bytes())
        made.append(made.data)
        try:
            yield made
        finally:
            for process in [*of_this_platform(made.data), *of_this_platform(made.data_of_a)]:
                process.kill()


# A worker needs a broker: replica_platform_tests/faults/test_cluster_daemon.py drains one.
ONE_HOST = [unit for unit in UNITS if unit.stem != "replica-worker"]


def test_the_units() -> None:
    assert [unit.stem for unit in UNITS] == [
        "replica-daemon",
        "replica-webserver",
        "replica-worker",
    ]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_is_valid(unit: Path, tmp_path: Path) -> None:
    def complaints(text: str) -> str:
        copy = tmp_path / unit.name
        copy.write_text(text.replace(f"{HOME}/.venv/bin", SCRIPTS))
        call = ["systemd-analyze", "verify", "--man=no", copy]
        done = subprocess.run(call, capture_output=True, text=True)
        return done.stdout + done.stderr

    text = unit.read_text()
    assert complaints(text) == ""
    # It exits 0 even so; its words are what counts.
    assert "Unknown key" in complaints(text.replace("RestartSec", "RestartSex"))


@contextmanager
def started(
    command: Sequence[str], folder: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, cwd=folder, env=environment)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()


def of_unit(unit: Path, project: Path, port: int) -> tuple[list[str], Path, dict[str, str]]:
    """Return the command of a unit, its folder, and the environment that the unit gives it."""
    text = unit.read_text().replace(f"{HOME}/.venv/bin", SCRIPTS).replace(HOME, str(project))
    said = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    given = (line.split("=", 1) for line in (project / ".env").read_text().splitlines())
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("REPLICA_")},
        **{pair[0]: pair[1] for pair in given if len(pair) == 2 and pair[0].isupper()},
        **dict([said["Environment"].split("=", 1)]),
    }
    command = shlex.split(said["ExecStart"].replace("-p 3000", f"-p {port}"))
    return command, Path(said["WorkingDirectory"]), environment


@pytest.mark.timeout(600)
def test_the_processes_of_the_units_serve_and_drain(deployed: Deployed, port: int) -> None:
    target = deployed.dsn("warehouse")
    with (deployed.project / ".env").open("a") as file:
        file.write(f"REPLICA_SOURCE_DSN={target}\nREPLICA_TARGET_DSN={target}\n")
        file.write(f"REPLICA_DAGSTER_DSN={deployed.dsn('dagster')}\n")
        file.write(f"REPLICA_DATA_DIR={deployed.data}\n")
    with ExitStack() as stack:
        processes = {
            unit.stem: stack.enter_context(started(*of_unit(unit, deployed.project, port)))
            for unit in ONE_HOST
        }
        wait_for(lambda: serves(port), processes)
        wait_for(lambda: delivered(target) == 1, processes)
        assert [one.poll() for one in processes.values()] == [None, None]


class Services:
    """The services of the Compose file as processes, each with what its container would have.

    The folders of the image cannot be written, and neither can a volume that a service does not
    mount: as root the processes have no capabilities, as the file says, and so obey permissions.
    """

    def __init__(self, deployed: Deployed, *, cluster: bool = False) -> None:
        self.deployed = deployed
        home = deployed.folder / "home"
        home.mkdir()
        ports = (4000, 3000, 3001, 9464, 6379, 9000)
        self.ports = {str(port): str(free_port()) for port in ports}
        self.absent = deployed.folder / "absent"
        self.folders = {
            "/srv/project": deployed.project,
            "/srv/dagster": home,
            "/srv/cluster": home / "cluster",
            "/data": deployed.data,
            "/logs": deployed.folder / "logs",
            "/tmp": deployed.folder / "tmp",
        }
        for name in ("/logs", "/tmp"):
            self.folders[name].mkdir()
        (home / "cluster").mkdir()
        for file in ("dagster.yaml", "workspace.yaml", "cluster/dagster.yaml"):
            text = self.replaced((COMPOSE.parent / file).read_text(), self.folders)
            (home / file).write_text(text.replace("host: code", "host: 127.0.0.1"))
        self.absent.mkdir()
        image = (home, home / "cluster", self.absent, deployed.project)
        for path in (*image, *deployed.project.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        self.said: dict[str, Any] = compose(cluster=cluster)["services"]
        self.image = containerfile.image_environment(containerfile.PATH.read_text())

    def replaced(self, text: str, folders: dict[str, Path]) -> str:
        given = {**{name: str(folder) for name, folder in folders.items()}, **self.ports}
        found = rf"(?<![\w./])({'|'.join(given)})\b"
        text = re.sub(found, lambda match: given[match[1]], text)
        for name in ("0.0.0.0", "broker", "bucket"):
            text = re.sub(rf"{re.escape(name)}(?=:\d|$)", "127.0.0.1", text)
        return text.replace("postgres:5432", f"127.0.0.1:{self.deployed.postgres_port}")

    def environment(self, name: str) -> dict[str, str]:
        """Return the variables of a service: those of the image, of `.env`, then its own."""
        from_file = ENVIRONMENT if "env_file" in self.said[name] else {}
        given = {**self.image, **from_file, **self.said[name].get("environment", {})}
        volumes = {"data": self.deployed.data, "logs": self.folders["/logs"]}
        volumes["data-a"] = self.deployed.data_of_a
        mounts = (volume.split(":") for volume in self.said[name].get("volumes", ()))
        folders = self.folders | {"/data": self.absent, "/logs": self.absent}
        folders |= {path: volumes[volume] for volume, path in mounts if volume in volumes}
        environment = {key: self.replaced(value, folders) for key, value in given.items()}
        path = f"{SCRIPTS}:{environment['PATH'].replace('$PATH', os.environ['PATH'])}"
        return environment | {
            "PATH": path,
            "TMPDIR": str(self.folders["/tmp"]),
            "PYTHONPATH": str(PROJECT),
        }

    def command(self, name: str, command: Sequence[str]) -> list[str]:
        assert self.said[name]["cap_drop"] == ["ALL"]
        confined = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
        as_root = confined if os.geteuid() == 0 else []
        return [*as_root, *(self.replaced(word, self.folders) for word in command)]

    def start_server(self, name: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """Start a service whose image is not ours."""
        command = [self.replaced(word, self.folders) for word in self.said[name]["command"]]
        data = self.deployed.folder / name
        data.mkdir()
        environment = os.environ | self.said[name]["environment"]
        return started(command, data, environment)

    def start(self, name: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
        return started(
            self.command(name, self.said[name]["command"]),
            self.deployed.project,
            self.environment(name),
        )

    def run(self, name: str, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(name, command),
            cwd=self.deployed.project,
            env=self.environment(name),
            capture_output=True,
            text=True,
            timeout=120,
        )

    def healthy(self, name: str) -> bool:
        return self.run(name, *self.said[name]["healthcheck"]["test"][1:]).returncode == 0


@pytest.mark.timeout(600)
@pytest.mark.skipif(not shutil.which("setpriv"), reason="setpriv is not installed")
def test_the_services_of_the_compose_file_become_healthy_and_materialise(
    deployed: Deployed,
) -> None:
    services = Services(deployed)
    written = set(deployed.project.rglob("*"))
    assert postgres_is_ready(services)
    assert not services.healthy("code")
    # What `docs/deploy.md` says for an upgrade.
    migrated = services.run("code", "dagster", "instance", "migrate")
    assert migrated.returncode == 0, migrated.stderr
    with ExitStack() as stack:
        processes = {"code": stack.enter_context(services.start("code"))}
        wait_for(lambda: services.healthy("code"), processes)
        others = [name for name in services.said if name not in ("postgres", "code")]
        processes |= {name: stack.enter_context(services.start(name)) for name in others}
        for name in others:
            wait_for(lambda name=name: services.healthy(name), processes)
        ui = Asked(int(services.ports["3000"]))
        repository = ui.repository()
        assert repository["location"]["name"] == "my_platform"
        assert {"assetKey": {"path": ["visits"]}} in repository["assetNodes"]
        ui.wait(ui.launch("visits"), WITHIN_S)
        assert delivered(deployed.dsn("warehouse")) == 1
        # What `docs/deploy.md` says for a look at it.
        look = services.run("code", "replica", "status", "--json")
        assert look.returncode == 0, look.stdout
    assert all(one.returncode is not None for one in processes.values())
    assert list((deployed.folder / "logs" / "compute").rglob("*.err"))
    assert set(deployed.project.rglob("*")) == written
    assert list(services.absent.iterdir()) == []


@pytest.mark.timeout(600)
@pytest.mark.skipif(not shutil.which("setpriv"), reason="setpriv is not installed")
@pytest.mark.skipif(not shutil.which("redis-server"), reason="redis-server is not installed")
def test_the_services_of_a_cluster_run_each_asset_on_its_host(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    (deployed.project / "my_platform" / "defs" / "visits_of_a").mkdir()
    entry = deployed.project / "my_platform" / "defs" / "visits_of_a" / "defs.yaml"
    entry.write_text(OF_HOST_A)
    deployed.append(deployed.data_of_a)
    with Master(deployed.data_of_a / "shop.duckdb").write() as master:
        master.execute("create table sale as select 1 as id")
    services = Services(deployed, cluster=True)
    for name, value in services.environment("worker-a").items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    with ExitStack() as stack:
        processes = {"broker": stack.enter_context(services.start_server("broker"))}
        stack.enter_context(bucket(int(services.ports["9000"])))
        order = ["code", "worker-central", "worker-a", "webserver", "daemon"]
        for name in order:
            processes[name] = stack.enter_context(services.start(name))
        assert not services.healthy("worker-a")
        for name in order:
            wait_for(lambda name=name: services.healthy(name), processes)
        ui = Asked(int(services.ports["3000"]))
        runs = {asset: ui.launch(asset) for asset in ("visits", "visits_of_a", "shop")}
        for run in runs.values():
            ui.wait(run, WITHIN_S)
        assert {asset: queue_of(deployed, run) for asset, run in runs.items()} == {
            "visits": "central",
            "visits_of_a": "a",
            "shop": "a",
        }
        assert delivered(deployed.dsn("warehouse")) == 2
        pushed = BlockStore("s3://generations/shop").current()
        assert pushed and pushed.generation == 1
        assert (deployed.data_of_a / "replica" / "shop").is_dir()
        # Its health is that of one host: without its worker, the other one stays healthy.
        processes.pop("worker-a").kill()
        wait_for(lambda: not services.healthy("worker-a"), processes)
        assert services.healthy("worker-central")


@contextmanager
def bucket(port: int) -> Iterator[None]:
    """A bucket `generations`, by moto in place of the image."""
    with started(
        [f"{SCRIPTS}/moto_server", "-H", "127.0.0.1", "-p", str(port)], Path("/"), dict(os.environ)
    ):
        url = f"http://127.0.0.1:{port}/generations"
        until = time.monotonic() + WITHIN_S
        while time.monotonic() < until:
            with suppress(OSError):
                urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=5).close()
                break
            time.sleep(0.2)
        yield


def queue_of(deployed: Deployed, run: str) -> str:
    query = "select value from run_tags where run_id = %s and key = 'dagster-celery/queue'"
    with psycopg.connect(deployed.dsn("dagster")) as connection:
        row = connection.execute(query, [run]).fetchone()
    return str(row[0]) if row else ""


def postgres_is_ready(services: Services) -> bool:
    """Whether the health check of the service `postgres` passes, by the program of the wheel."""
    _, program, *arguments = services.said["postgres"]["healthcheck"]["test"]

    where = {"PGHOST": "127.0.0.1", "PGPORT": str(services.deployed.postgres_port)}
    call = [str(binaries() / program), *arguments]
    return subprocess.run(call, env=where, capture_output=True).returncode == 0


def serves(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/server_info", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def delivered(target: str) -> int | None:
    try:
        with psycopg.connect(target) as connection:
            row = connection.execute("select count(*) from outbox.record").fetchone()
    except psycopg.errors.UndefinedTable:
        return None
    return int(row[0]) if row else None


def wait_for(
    done: Callable[[], bool], processes: Mapping[str, subprocess.Popen[bytes]] | None = None
) -> None:
    """Wait until it is done; fail at once when a process has ended meanwhile."""
    until = time.monotonic() + WITHIN_S
    while not done():
        ended = [name for name, one in (processes or {}).items() if one.poll() is not None]
        assert ended == []
        assert time.monotonic() < until
        time.sleep(2)  # a health check of Dagster's costs as many seconds of a core
