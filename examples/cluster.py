"""Two hosts on this machine, each with a folder of its own: what runs where, what waits for whom.

    make cluster

It starts a Postgres out of a wheel, a Redis, `replica dev` and two workers in a temporary folder,
and ends all of them. Everything is done with commands that a cluster of real hosts has too.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import psycopg

from replica_platform.app.embedded import running
from replica_platform.outbox import Outbox

REPLICA = [sys.executable, "-m", "replica_platform.cli.main"]
DAGSTER = [sys.executable, "-m", "dagster"]
ENTRIES = {
    "till_a": "WorkerOutboxes\nattributes: {name: sales_a, host: a, nodes: {local: outbox}}\n",
    "till_b": "WorkerOutboxes\nattributes: {name: sales_b, host: b, nodes: {local: outbox}}\n",
    "stock": "XminTables\nattributes:\n  name: stock\n  host: warehouse\n"
    "  tables: [{table: public.stock}]\n",
}
WITHIN_S = 300.0


class Demonstration:
    """The processes of the demonstration, below one folder.

    Args:
        folder: The folder.
        databases: The DSN of each database, by its name.
    """

    def __init__(self, folder: Path, databases: dict[str, str]) -> None:
        self.port = free_port()
        self.folder, self.project = folder, folder / "shop"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        own = {name: value for name, value in os.environ.items() if not name.startswith("REPLICA_")}
        self.environment = own | {
            "REPLICA_SAMPLE": "off",
            "REPLICA_DATA_DIR": str(folder / "centre"),
            "REPLICA_SOURCE_DSN": databases["source"],
            "REPLICA_TARGET_DSN": databases["target"],
            "REPLICA_DAGSTER_DSN": databases["dagster"],
            "REPLICA_BROKER_URL": f"redis://127.0.0.1:{self.port}/0",
            "DAGSTER_HOME": str(self.project),
            "PYTHONPATH": os.pathsep.join([*sys.path, str(self.project)]),
            "PYTHONWARNINGS": "ignore",
        }

    def make_project(self) -> None:
        call = [*REPLICA, "init", "--cluster", "--no-sample", str(self.project)]
        subprocess.run(call, check=True, env=self.environment, stdout=subprocess.DEVNULL)
        for name, text in ENTRIES.items():
            file = self.project / "shop" / "defs" / name / "defs.yaml"
            file.parent.mkdir()
            file.write_text(f"type: replica_platform.components.{text}")
        for host in "ab":
            box = self.folder / host / "outbox" / "worker-1.db"
            box.parent.mkdir(parents=True)
            with Outbox(box) as outbox:
                outbox.append_many("sale", [{"till": host, "number": n} for n in range(100)])
        with psycopg.connect(self.environment["REPLICA_SOURCE_DSN"]) as source:
            source.execute("create table stock (item text primary key, pieces int)")
            source.execute("insert into stock select 'item ' || g, g from generate_series(1, 50) g")

    def start(self, name: str, *command: str, host: str = "centre") -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=self.project,
                env=self.environment | {"REPLICA_DATA_DIR": str(self.folder / host)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_worker(self, host: str) -> None:
        options = ["worker", "--host", host, "--queue", "warehouse", "--processes", "1"]
        self.start(f"worker {host}", *REPLICA, *options, host=host)

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        os.killpg(process.pid, 9)
        process.wait()

    def stop_all(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for name, process in list(self.processes.items()):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill(name)

    def ask_for(self, job: str) -> None:
        """Ask for a job, as a schedule or the Dagster UI would."""
        call = [*DAGSTER, "job", "launch", "-w", "workspace.yaml", "--location", "shop", "-j", job]
        done = subprocess.run(
            call, cwd=self.project, env=self.environment, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(done.stderr)

    def status(self) -> str:
        call = [*REPLICA, "cluster", "status"]
        done = subprocess.run(
            call, cwd=self.project, env=self.environment, capture_output=True, text=True
        )
        return done.stdout + done.stderr

    def wait_for(self, text: str) -> None:
        """Wait until the status says so."""
        began = time.monotonic()
        while text not in (shown := self.status()):
            if time.monotonic() - began > WITHIN_S:
                raise SystemExit(f"Not within {WITHIN_S:g} s: {text}\n{shown}")
            time.sleep(0.5)

    @contextmanager
    def instance(self) -> Iterator[dg.DagsterInstance]:
        os.environ.update(self.environment)
        with dg.DagsterInstance.from_config(str(self.project)) as instance:
            yield instance

    def wait_for_runs(self, count: int) -> None:
        """Wait until so many runs have succeeded."""
        began = time.monotonic()
        with self.instance() as instance:
            while len(runs := instance.get_runs()) < count or not all(r.is_success for r in runs):
                failed = [run.run_id for run in runs if run.is_failure]
                if failed or time.monotonic() - began > WITHIN_S:
                    raise SystemExit(f"Failed or not done: {runs}")
                time.sleep(0.5)

    def print_runs(self) -> None:
        """Print which worker has executed each run."""
        with self.instance() as instance:
            for run in reversed(instance.get_runs()):
                taken = [
                    entry.message.removeprefix("[").split("worker ")[1].rstrip(".")
                    for entry in instance.all_logs(run.run_id)
                    if "Taken by the worker" in entry.message
                ]
                queue = run.tags["dagster-celery/queue"]
                print(
                    f"  {run.job_name:14} queue {queue:10} {run.status.value:8} {' '.join(taken)}"
                )


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Show a run on each host, one that may go to any of two, and one that waits for its host."""
    if shutil.which("redis-server") is None:
        raise SystemExit(
            "A Redis is needed; install it (`apt-get install redis-server`), and run this again."
        )
    # As Ctrl-C does, so that everything that was started is ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    names = ("source", "target", "dagster")
    with (
        tempfile.TemporaryDirectory(prefix="rp-") as folder,
        running(Path(folder) / "postgres") as server,
    ):
        for name in names:
            server.make_database(name)
        shown = Demonstration(Path(folder), {name: server.dsn(name) for name in names})
        try:
            _show(shown)
        finally:
            shown.stop_all()
    print("\nEverything that was started has ended.")


def _show(shown: Demonstration) -> None:
    print(f"In the folder {shown.folder}")
    print("Two hosts, a and b; each has an outbox of its own, and both serve the queue warehouse.")
    shown.make_project()
    shown.start(
        "broker", "redis-server", "--port", str(shown.port), "--bind", "127.0.0.1",
        "--dir", str(shown.folder), "--appendonly", "yes",
    )  # fmt: skip
    time.sleep(1)
    for host in "ab":
        shown.start_worker(host)
    shown.start("dev", *REPLICA, "dev", "--port", str(free_port()))
    shown.wait_for("a: 1 worker")
    shown.wait_for("b: 1 worker")
    print(f"\n$ replica cluster status\n{shown.status()}")
    for job in ("sales_a_drain", "sales_b_drain", "stock_sync"):
        shown.ask_for(job)
    shown.wait_for_runs(3)
    print("Each run went to the host of its assets, or to one of those that serve its queue:")
    shown.print_runs()
    print("\nNow b loses its power, and a run is asked for that lives on b:")
    shown.kill("worker b")
    shown.wait_for("b: its worker is silent since")
    shown.ask_for("sales_b_drain")
    # Its schedule may have asked for another one.
    shown.wait_for("for it. Start it there with `replica worker --host b`")
    print(f"\n$ replica cluster status\n{shown.status()}")
    shown.start_worker("b")
    shown.wait_for_runs(4)
    print("b is back, and the run that waited for it is done:")
    shown.print_runs()
    with psycopg.connect(shown.environment["REPLICA_TARGET_DSN"]) as target:
        records, stock = target.execute(
            "select (select count(*) from outbox.record), (select count(*) from raw_data.stock)"
        ).fetchone() or (0, 0)
    print(f"\nIn the target: {records} records of two hosts, {stock} rows of the stock.")


if __name__ == "__main__":
    main()
