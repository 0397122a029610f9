"""What `deploy/systemd` starts on one host: valid units, and processes that do the work."""

import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest

from replica_platform.app.launch import PROJECT
from replica_platform.app.project import init_project
from replica_platform.outbox import Outbox
from replica_platform_tests.acceptance.pages import of_this_platform

UNITS = sorted((PROJECT / "deploy" / "systemd").glob("*.service"))
HOME = "/srv/my_platform"
SCRIPTS = sysconfig.get_path("scripts")
WITHIN_S = 240.0
VISITS = """
type: replica_platform.components.WorkerOutboxes
attributes: {name: visits, nodes: {local: outbox}}
"""


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
def started(unit: Path, project: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start the command of a unit, with the environment that the unit gives it."""
    text = unit.read_text().replace(f"{HOME}/.venv/bin", SCRIPTS).replace(HOME, str(project))
    said = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    given = (line.split("=", 1) for line in (project / ".env").read_text().splitlines())
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("REPLICA_")},
        **{pair[0]: pair[1] for pair in given if len(pair) == 2 and pair[0].isupper()},
        **dict([said["Environment"].split("=", 1)]),
    }
    command = shlex.split(said["ExecStart"].replace("-p 3000", f"-p {port}"))
    process = subprocess.Popen(command, cwd=said["WorkingDirectory"], env=environment)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.timeout(600)
def test_the_processes_of_the_units_serve_and_drain(
    folder: Path, database: Callable[[str], str], port: int
) -> None:
    project = folder / "my_platform"
    init_project(project, sample=False)
    target = database("warehouse")
    with (project / ".env").open("a") as file:
        file.write(f"REPLICA_SOURCE_DSN={database('source')}\nREPLICA_TARGET_DSN={target}\n")
        file.write(f"REPLICA_DAGSTER_DSN={database('dagster')}\n")
        file.write(f"REPLICA_DATA_DIR={project / 'data'}\n")
    entry = project / "my_platform" / "defs" / "visits" / "defs.yaml"
    entry.parent.mkdir()
    entry.write_text(VISITS)
    (project / "data" / "outbox").mkdir(parents=True)
    with Outbox(project / "data" / "outbox" / "worker-1.db") as outbox:
        outbox.append("visit", {"page": "/"})
    with ExitStack() as stack:
        stack.callback(lambda: [one.kill() for one in of_this_platform(project / "data")])
        processes = [stack.enter_context(started(unit, project, port)) for unit in ONE_HOST]
        wait_for(lambda: [one.poll() for one in processes] == [None, None] and serves(port))
        wait_for(lambda: delivered(target) == 1)
        assert [one.poll() for one in processes] == [None, None]


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


def wait_for(done: Callable[[], bool]) -> None:
    until = time.monotonic() + WITHIN_S
    while not done():
        assert time.monotonic() < until
        time.sleep(1)
