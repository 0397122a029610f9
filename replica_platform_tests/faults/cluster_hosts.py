"""Two hosts on one machine: a broker, a code server, Dagster's daemon, and workers of each host.

Processes are started by the commands that a user has, and each is ended by its id. Runs are asked
for by the GraphQL mutation that the Dagster UI sends.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import GrpcServerTarget
from dagster_graphql.test.utils import execute_dagster_graphql

from replica_platform.app.project import init_project

STOCK = {
    "replica_platform.cluster.placement": "dagster._core.run_coordinator",
    "PlacedRunCoordinator": "QueuedRunCoordinator",
    "max_concurrent_runs: -1 # the processes of the workers are the limit": (
        "dequeue_interval_seconds: 1"
    ),
    "replica_platform.cluster.launcher": "dagster_celery.launcher",
    "HostRunLauncher": "CeleryRunLauncher",
    "    broker:\n": "    backend: {env: REPLICA_BROKER_URL}\n    broker:\n",
}
LAUNCH = """
mutation($p: ExecutionParams!) { launchPipelineExecution(executionParams: $p) { __typename
  ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  ... on RunConfigValidationInvalid { errors { message } } } }
"""
ENDED = {"SUCCESS", "FAILURE", "CANCELED"}
STARTED_WITHIN_S = 60.0
# What Dagster says of a failed run that has no step to execute again.
NOTHING_LEFT = "Failed to retry run"
# Of a test; the long form has 20 rounds.
TIMEOUT_S = 7200 if os.environ.get("REPLICA_TORTURE") == "1" else 600

# Each step of an asset is a row, so that the tables tell what ran where, how often, and how far. A
# slow one goes on until it is released.
ASSETS = """
import itertools, os, time
from pathlib import Path
import dagster as dg
import psycopg
from replica_platform.resources.platform import PlatformConfig


def work(name, host, until_released=False):
    @dg.asset(name=name, tags={"replica/host": host} if host else None)
    def asset(context: dg.AssetExecutionContext, platform: PlatformConfig) -> None:
        with psycopg.connect(os.environ["REPLICA_TARGET_DSN"], autocommit=True) as target:
            for step in itertools.count():
                target.execute(
                    "insert into work values (%s, %s, %s, %s, %s)",
                    (context.run.run_id, name, step, Path(platform.data_dir).name, os.getpid()),
                )
                if not until_released or target.execute("table released").fetchone():
                    break
                time.sleep(0.1)
            print(f"{name} is done")
    return asset


quick_a, quick_b, plain = work("quick_a", "a"), work("quick_b", "b"), work("plain", None)
slow_a, slow_shared = work("slow_a", "a", True), work("slow_shared", "shared", True)
"""
OUTBOX = """
type: replica_platform.components.WorkerOutboxes
attributes:
  name: records_{host}
  host: {host}
  nodes: {{local: outbox}}
"""


class Refused(Exception):
    """The run was refused when it was asked for."""


class Cluster:
    """The processes of a cluster below one folder, and what its databases tell.

    Args:
        folder: The folder of the project, the logs and the hosts' data.
        dagster: The DSN of Dagster's database.
        target: The DSN of the target.
        stock: Whether it has Dagster's own coordinator and dagster-celery's own launcher, as the
            control of a fault.
        assets: The text of the project's assets.
        entries: The text of each `defs.yaml`.
        start_timeout_s: After how many seconds a run that no worker takes has failed.
    """

    def __init__(
        self,
        folder: Path,
        dagster: str,
        target: str,
        *,
        stock: bool = False,
        assets: str = ASSETS,
        entries: Sequence[str] = (OUTBOX.format(host="a"), OUTBOX.format(host="b")),
        start_timeout_s: int = 60,
    ) -> None:
        self.folder, self.dagster, self.target, self.stock = folder, dagster, target, stock
        folder.mkdir(exist_ok=True)
        self.project = folder / "shop"
        init_project(self.project, sample=False, cluster=True)
        (self.project / "shop" / "defs" / "work.py").write_text(assets)
        for number, text in enumerate(entries):
            file = self.project / "shop" / "defs" / f"entry{number}" / "defs.yaml"
            file.parent.mkdir()
            file.write_text(text)
        text = (self.project / "dagster.yaml").read_text()
        timeout = "start_timeout_seconds: {}".format
        changed = {timeout(60): timeout(start_timeout_s), **(STOCK if stock else {})}
        for old, new in changed.items():
            assert old in text, old
            text = text.replace(old, new)
        (self.project / "dagster.yaml").write_text(text)
        self.port, self.code_port = free_port(), free_port()
        # Of hosts that reach the broker by another port.
        self.broker_ports: dict[str, int] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        with psycopg.connect(target, autocommit=True) as connection:
            connection.execute(
                "create table work (run_id text, asset text, step int, host text, pid int);"
                "create table released (at timestamptz)"
            )

    # The processes.

    def broker_url(self, host: str) -> str:
        return f"redis://127.0.0.1:{self.broker_ports.get(host, self.port)}/0"

    def environment(self, host: str = "centre") -> dict[str, str]:
        kept = {name: v for name, v in os.environ.items() if not name.startswith("REPLICA_")}
        return kept | {
            "REPLICA_DATA_DIR": str(self.folder / host),
            "REPLICA_SAMPLE": "off",
            "REPLICA_SOURCE_DSN": self.target,
            "REPLICA_TARGET_DSN": self.target,
            "REPLICA_DAGSTER_DSN": self.dagster,
            "REPLICA_BROKER_URL": self.broker_url(host),
            "DAGSTER_HOME": str(self.project),
            "PYTHONPATH": os.pathsep.join([*sys.path, str(self.project)]),
            "COLUMNS": "200",
        }

    def start(self, name: str, *command: str, host: str = "centre") -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.project,
                env=self.environment(host),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes[name] = process
        return process

    def start_broker(self) -> None:
        data = self.folder / "broker"
        data.mkdir(exist_ok=True)
        self.start(
            "broker", "redis-server", "--port", str(self.port), "--bind", "127.0.0.1",
            "--dir", str(data), "--appendonly", "yes",
        )  # fmt: skip
        wait_until(lambda: _listens(self.port), "the broker listens")

    def start_code_server(self) -> None:
        self.start(
            "code", sys.executable, "-m", "dagster", "api", "grpc", "-h", "127.0.0.1",
            "-p", str(self.code_port), "-m", "shop.definitions", "--location-name", "shop",
        )  # fmt: skip
        wait_until(lambda: _listens(self.code_port), "the code server listens")

    def start_daemon(self) -> None:
        workspace = self.project / "workspace.yaml"
        workspace.write_text(
            "load_from:\n  - grpc_server: "
            f"{{host: 127.0.0.1, port: {self.code_port}, location_name: shop}}\n"
        )
        self.start("daemon", sys.executable, "-m", "dagster._daemon", "run", "-w", str(workspace))

    def start_worker(self, host: str, *options: str, processes: int = 2) -> None:
        own = [
            *("replica_platform.cli.main", "worker", "--host", host),
            *("--processes", str(processes), *options),
        ]
        stock = [
            *("celery", "-A", "replica_platform_tests.faults.cluster_stock", "worker"),
            *("-Q", host, "-c", "2", "-l", "WARNING"),
        ]
        command = stock if self.stock else own
        self.start(f"worker_{host}", sys.executable, "-m", *command, host=host)

    def start_all(self, *hosts: str, code_of: "Cluster | None" = None, processes: int = 2) -> None:
        """Start everything, with the code server of another cluster if one is given."""
        self.start_broker()
        for host in hosts:
            shared = [] if self.stock else ["--queue", "shared"]
            self.start_worker(host, *shared, processes=processes)
        if code_of is None:
            self.start_code_server()
        else:
            self.code_port = code_of.code_port
        self.start_daemon()
        for host in hosts if not self.stock else ():
            self.wait_for_worker(host)

    def wait_for_worker(self, host: str) -> None:
        wait_until(lambda: host in self.live_hosts(), f"{host} lives", self.log(f"worker_{host}"))

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a process and to all that it has started."""
        process = self.processes[name]
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        if number == signal.SIGKILL:
            process.wait()
            del self.processes[name]

    def stop_all(self) -> None:
        """End every process that was started."""
        for name in list(self.processes):
            with suppress(ProcessLookupError):
                os.killpg(self.processes[name].pid, signal.SIGCONT)
            self.kill(name)

    def log(self, name: str) -> Callable[[], str]:
        return lambda: (self.folder / f"{name}.log").read_text()[-3000:]

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Call `replica` at the centre."""
        return subprocess.run(
            [sys.executable, "-m", "replica_platform.cli.main", *arguments],
            cwd=self.project, env=self.environment(), capture_output=True, text=True,
        )  # fmt: skip

    # What it did.

    def query(self, dsn: str, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(dsn, autocommit=True) as connection:
            return connection.execute(statement, parameters).fetchall()

    def live_hosts(self) -> set[str]:
        try:
            rows = self.query(
                self.dagster,
                "select host from replica_worker where not stopped "
                "and beat_at > now() - interval '5 seconds'",
            )
        except psycopg.errors.UndefinedTable:
            return set()
        return {row[0] for row in rows}

    def work(self, asset: str) -> list[tuple[Any, ...]]:
        """The rows of an asset: run, step and the host that it ran on."""
        return self.query(
            self.target, "select run_id, step, host from work where asset = %s", asset
        )

    def release(self, *, slow: bool = False) -> None:
        """Let slow assets end, or those that start from now on run."""
        with psycopg.connect(self.target, autocommit=True) as connection:
            connection.execute(
                "truncate released" if slow else "insert into released values (now())"
            )

    def steps_of(self, run_id: str) -> int:
        rows = self.query(self.target, "select count(*) from work where run_id = %s", run_id)
        return int(rows[0][0])


class Asking:
    """Asks for runs as the Dagster UI does, and watches them.

    Args:
        cluster: The cluster, whose code server runs.
    """

    def __init__(self, cluster: Cluster, instance: dg.DagsterInstance, context: Any) -> None:
        self.cluster, self.instance, self.context = cluster, instance, context

    def launch(
        self, *assets: str, tags: Mapping[str, str] | None = None, checks: bool = False
    ) -> str:
        """Ask for a run of assets, with all of their checks or without; return its id."""
        selector = {
            "repositoryLocationName": "shop",
            "repositoryName": "__repository__",
            "pipelineName": "__ASSET_JOB",
            "assetSelection": [{"path": asset.split("/")} for asset in assets],
            "assetCheckSelection": None if checks else [],
        }
        tagged = [{"key": key, "value": value} for key, value in (tags or {}).items()]
        params = {
            "selector": selector, "mode": "default", "runConfigData": {},
            "executionMetadata": {"tags": tagged},
        }  # fmt: skip
        answer = execute_dagster_graphql(
            self.context.create_request_context(), LAUNCH, variables={"p": params}
        ).data["launchPipelineExecution"]
        if answer["__typename"] != "LaunchRunSuccess":
            raise Refused(str(answer))
        return str(answer["run"]["runId"])

    def begin(self, asset: str, queue: str | None = None) -> str:
        """Ask for a slow asset that is not released, and wait until it is in mid-run."""
        self.cluster.release(slow=True)
        run_id = self.launch(asset, tags={"dagster-celery/queue": queue} if queue else None)
        self.wait_for_steps(run_id)
        return run_id

    def wait_for_steps(self, run_id: str, more_than: int = 2) -> None:
        """Wait until a run has taken more steps than so many."""
        wait_until(
            lambda: self.cluster.steps_of(run_id) > more_than,
            f"{run_id} takes steps",
            lambda: self.messages(run_id) + self.cluster.log("daemon")(),
        )

    def retried(self, run_id: str) -> str:
        """Wait for the retry of a failed run and return it."""
        wait_until(
            lambda: bool(self.retries(run_id)),
            f"{run_id} is retried",
            lambda: self.messages(run_id) + self.cluster.log("daemon")(),
        )
        return self.retries(run_id)[0].run_id

    def run(self, run_id: str) -> dg.DagsterRun:
        found = self.instance.get_run_by_id(run_id)
        assert found is not None
        return found

    def status(self, run_id: str) -> str:
        return self.run(run_id).status.value

    def messages(self, run_id: str) -> str:
        return "\n".join(
            f"{entry.timestamp:.1f} {entry.message}" for entry in self.instance.all_logs(run_id)
        )

    def retries(self, run_id: str) -> list[dg.DagsterRun]:
        """The runs that Dagster made of a failed one, the oldest first."""
        found = self.instance.get_runs(dg.RunsFilter(tags={"dagster/root_run_id": run_id}))
        own = (run for run in found if run.run_id != run_id)
        return sorted(own, key=lambda run: int(run.tags["dagster/retry_number"]))

    def newest(self, run_id: str) -> dg.DagsterRun:
        """The newest retry of a run; the run itself before the first one."""
        return (self.retries(run_id) or [self.run(run_id)])[-1]

    def wait_until_done(self, run_id: str, within_s: float) -> dg.DagsterRun:
        """Wait until a run or its newest retry has done its work; return that run.

        One that was killed when all of its steps had ended counts as failed, and is not retried.
        """

        def done() -> bool:
            run = self.newest(run_id)
            return run.status.value == "SUCCESS" or (
                run.status.value == "FAILURE" and NOTHING_LEFT in self.messages(run.run_id)
            )

        wait_until(
            done,
            f"{run_id} or its retry has done its work",
            lambda: self.messages(self.newest(run_id).run_id) + self.cluster.log("daemon")(),
            within_s=within_s,
        )
        return self.newest(run_id)

    def wait(self, run_id: str, *statuses: str, within_s: float = 60.0) -> float:
        """Wait until a run has one of these statuses, or has ended; return the seconds."""
        wanted = set(statuses) or ENDED
        return wait_until(
            lambda: self.status(run_id) in wanted,
            f"{run_id} is {' or '.join(sorted(wanted))}",
            lambda: self.messages(run_id) + self.cluster.log("daemon")(),
            within_s=within_s,
        )


@contextmanager
def asking(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asking]:
    """A way to ask a cluster for runs; its code server must run."""
    for name, value in cluster.environment().items():
        if name.startswith(("REPLICA_", "DAGSTER_")):
            monkeypatch.setenv(name, value)
    monkeypatch.chdir(cluster.project)
    with dg.DagsterInstance.from_config(str(cluster.project)) as instance:
        target = GrpcServerTarget(
            host="127.0.0.1", port=cluster.code_port, socket=None, location_name="shop"
        )
        with WorkspaceProcessContext(instance, target) as context:
            yield Asking(cluster, instance, context)


def wait_until(
    holds: Callable[[], bool],
    what: str,
    why: Callable[[], str] = lambda: "",
    *,
    within_s: float = STARTED_WITHIN_S,
) -> float:
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > within_s:
            raise AssertionError(f"Not within {within_s:g} s: {what}\n{why()}")
        time.sleep(0.1)
    return time.monotonic() - began


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def missing() -> str:
    """What this machine lacks for a cluster; empty where nothing is."""
    if shutil.which("redis-server") is None:
        return "redis-server is not installed (apt-get install redis-server)"
    try:
        import dagster_celery  # noqa: F401
    except ImportError:
        return "the extra `cluster` is not installed"
    return ""
