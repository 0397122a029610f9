"""A running `replica dev`, what its GraphQL answers, and its processes."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil

LOAD = """
query { repositoriesOrError { ... on RepositoryConnection { nodes {
    name location { name } assetNodes { assetKey { path } }
    schedules { name scheduleState { status } } sensors { name sensorState { status } }
} } } }
"""
LAUNCH = """
mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
} }
"""
RUN = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
ENDED = ("SUCCESS", "FAILURE", "CANCELED")
UP_WITHIN_S = 180
# On a loaded machine a page asks the code server for a long time. A launch is never sent twice.
ANSWERED_WITHIN_S = 120


class Asked:
    """What the GraphQL of a Dagster UI answers.

    Args:
        port: The port of the UI on this machine.
    """

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/graphql"

    def ask(self, query: str, **variables: Any) -> Any:
        """Return the data of an answer."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=ANSWERED_WITHIN_S) as answer:
            return json.load(answer)["data"]

    def repository(self) -> Any:
        """Return the code location, once it is loaded."""
        until = time.monotonic() + UP_WITHIN_S
        while time.monotonic() < until:
            self.still_runs()
            with suppress(OSError):
                nodes = self.ask(LOAD)["repositoriesOrError"].get("nodes")
                if nodes:
                    return nodes[0]
            time.sleep(0.5)
        raise AssertionError(f"the UI did not come up within {UP_WITHIN_S} s")

    def still_runs(self) -> None:
        """Fail if what serves the UI has ended."""

    def launch(self, *assets: str, job: str = "__ASSET_JOB", **tags: str) -> str:
        """Launch assets, or a job; return the run's id."""
        repository = self.repository()
        launched = self.ask(
            LAUNCH,
            params={
                "selector": {
                    "repositoryName": repository["name"],
                    "repositoryLocationName": repository["location"]["name"],
                    "jobName": job,
                    "assetSelection": [{"path": asset.split("/")} for asset in assets] or None,
                },
                "mode": "default",
                "executionMetadata": {
                    "tags": [{"key": key, "value": value} for key, value in tags.items()]
                },
            },
        )["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return str(launched["run"]["runId"])

    def wait(self, run: str, within_s: float) -> None:
        """Wait until a run has succeeded."""
        until = time.monotonic() + within_s
        status = "unknown"
        while status not in ENDED and time.monotonic() < until:
            time.sleep(0.3)
            with suppress(OSError):  # on a loaded machine, a question may take too long
                status = self.ask(RUN, id=run)["runOrError"]["status"]
        assert status == "SUCCESS"


class Pages(Asked):
    """A running `replica dev`."""

    def __init__(
        self,
        port: int,
        environment: dict[str, str],
        project: Path | None = None,
        program: Sequence[str] = (sys.executable, "-m", "replica_platform.cli.main"),
    ) -> None:
        """Start it, in another project or in this one."""
        super().__init__(port)
        self._data = Path(environment["REPLICA_DATA_DIR"])
        self.process = subprocess.Popen(
            [*program, "dev", "--port", str(port)],
            cwd=project,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in of_this_platform(self._data):
            process.kill()
        self.process.communicate()

    def still_runs(self) -> None:
        assert self.process.poll() is None, "the command ended early"


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
