"""`replica dev`: the UI answers, an asset materialises, and no process is left."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

LOAD = """
query { repositoriesOrError { ... on RepositoryConnection { nodes {
    name location { name } assetNodes { id }
    schedules { name scheduleState { status } } sensors { name sensorState { status } }
} } } }
"""
LAUNCH = """
mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
} }
"""
RUN = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
UP_WITHIN_S = 90
RUN_WITHIN_S = 60


class Pages:
    """A running `replica dev`, with a GraphQL client."""

    def __init__(self, port: int, data: Path) -> None:
        self.url = f"http://127.0.0.1:{port}/graphql"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "replica_platform.cli.main", "dev", "--port", str(port)],
            env=environment(data),
            stderr=subprocess.PIPE,
            text=True,
        )

    def ask(self, query: str, **variables: Any) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)["data"]

    def repository(self) -> Any:
        """Return the code location, once it is loaded."""
        until = time.monotonic() + UP_WITHIN_S
        while time.monotonic() < until:
            assert self.process.poll() is None, "the command ended early"
            try:
                nodes = self.ask(LOAD)["repositoriesOrError"].get("nodes")
            except OSError:
                nodes = None
            if nodes:
                return nodes[0]
            time.sleep(0.5)
        raise AssertionError(f"the UI did not come up within {UP_WITHIN_S} s")


def environment(data: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REPLICA_")}
    return {**kept, "REPLICA_DATA_DIR": str(data), "PYTHONPATH": os.pathsep.join(sys.path)}


def of_this_platform(data: Path) -> list[psutil.Process]:
    """Return every process that uses this data folder."""
    found = []
    for process in psutil.process_iter():
        try:
            command = " ".join(process.cmdline())
            folder = process.environ().get("REPLICA_DATA_DIR")
        except psutil.Error:
            continue
        if process.pid != os.getpid() and (folder == str(data) or str(data) in command):
            found.append(process)
    return found


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def pages(port: int, folder: Path) -> Iterator[Pages]:
    pages = Pages(port, folder)
    yield pages
    for process in of_this_platform(folder):
        process.kill()
    pages.process.communicate()


@pytest.mark.timeout(240)
def test_dev_serves_materialises_and_ends(pages: Pages, port: int, folder: Path) -> None:
    repository = pages.repository()
    states = [schedule["scheduleState"]["status"] for schedule in repository["schedules"]]
    states += [sensor["sensorState"]["status"] for sensor in repository["sensors"]]
    assert len(states) == 13
    assert set(states) == {"RUNNING"}

    launched = pages.ask(
        LAUNCH,
        params={
            "selector": {
                "repositoryName": repository["name"],
                "repositoryLocationName": repository["location"]["name"],
                "jobName": "__ASSET_JOB",
                "assetSelection": [{"path": ["symbols"]}],
            },
            "mode": "default",
        },
    )["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    until = time.monotonic() + RUN_WITHIN_S
    status = "QUEUED"
    while status not in ("SUCCESS", "FAILURE", "CANCELED") and time.monotonic() < until:
        time.sleep(0.5)
        status = pages.ask(RUN, id=launched["run"]["runId"])["runOrError"]["status"]
    assert status == "SUCCESS"

    second = subprocess.run(
        [sys.executable, "-m", "replica_platform.cli.main", "dev", "--port", str(port)],
        env=environment(folder),
        capture_output=True,
        text=True,
    )
    assert second.returncode == 1
    assert "already served at http://127.0.0.1" in second.stderr

    pages.process.send_signal(signal.SIGTERM)
    _, output = pages.process.communicate(timeout=60)
    assert pages.process.returncode == 0, output
    assert of_this_platform(folder) == []


def test_a_taken_port_is_reported_in_one_sentence(port: int, folder: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        finished = subprocess.run(
            [sys.executable, "-m", "replica_platform.cli.main", "dev", "--port", str(port)],
            env=environment(folder),
            capture_output=True,
            text=True,
        )
    assert finished.returncode == 1
    assert f"Port {port} is taken" in finished.stderr
    assert of_this_platform(folder) == []
