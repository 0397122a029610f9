"""A running `replica dev` with a GraphQL client, and its processes."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import psutil

LOAD = """
query { repositoriesOrError { ... on RepositoryConnection { nodes {
    name location { name } assetNodes { id }
    schedules { name scheduleState { status } } sensors { name sensorState { status } }
} } } }
"""
UP_WITHIN_S = 180


class Pages:
    """A running `replica dev`, with a GraphQL client."""

    def __init__(
        self,
        port: int,
        environment: dict[str, str],
        project: Path | None = None,
        program: Sequence[str] = (sys.executable, "-m", "replica_platform.cli.main"),
    ) -> None:
        """Start it, in another project or in this one."""
        self._data = Path(environment["REPLICA_DATA_DIR"])
        self.url = f"http://127.0.0.1:{port}/graphql"
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
