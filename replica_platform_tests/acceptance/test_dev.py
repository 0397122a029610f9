"""`replica dev`: the UI answers, an asset materialises, and no process is left."""

import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from replica_platform_tests.acceptance.pages import Pages, environment, of_this_platform

RUN_WITHIN_S = 60


@pytest.fixture
def pages(port: int, folder: Path) -> Iterator[Pages]:
    with Pages(port, environment(folder)) as pages:
        yield pages


@pytest.mark.timeout(240)
def test_dev_serves_materialises_and_ends(pages: Pages, port: int, folder: Path) -> None:
    repository = pages.repository()
    states = [schedule["scheduleState"]["status"] for schedule in repository["schedules"]]
    states += [sensor["sensorState"]["status"] for sensor in repository["sensors"]]
    assert len(states) == 15
    assert set(states) == {"RUNNING"}

    pages.wait(pages.launch("symbols"), RUN_WITHIN_S)

    with urllib.request.urlopen(f"http://127.0.0.1:{port + 1}/", timeout=60) as deck:
        assert b"<title>Flight deck</title>" in deck.read()

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
