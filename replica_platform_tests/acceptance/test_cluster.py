"""`make cluster`: the demonstration shows each run on its host, and ends what it started."""

import subprocess
import sys
from pathlib import Path

import pytest

from replica_platform.app.launch import PROJECT
from replica_platform_tests.faults.cluster_hosts import missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.mark.timeout(600)
def test_the_demonstration(tmp_path: Path) -> None:
    program = [sys.executable, str(PROJECT / "examples" / "cluster.py")]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    ran = [(line[2], line[4].partition("-")[0]) for line in lines if "SUCCESS" in line]
    assert {("a", "a"), ("b", "b")} <= set(ran)
    assert all(queue in (host, "warehouse") for queue, host in ran)
    assert "b: its worker is silent since" in done.stdout
    assert "for it. Start it there with `replica worker --host b`." in done.stdout
    assert "In the target: 200 records of two hosts, 50 rows of the stock." in done.stdout
    assert "Everything that was started has ended." in done.stdout
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    folder = next(line for line in done.stdout.splitlines() if line.startswith("In the folder"))
    assert folder.split()[-1] not in left
