"""A web worker's installation: the wheel without its requirements, and one package beside it."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path

import psycopg
import pytest

from replica_platform.app.launch import PROJECT
from replica_platform.outbox import drain
from replica_platform.replica import Master, publish

# What Dagster's side of this project takes: 128 packages and 719 MB.
LARGEST_BYTES = {"pysqlite3": 20_000_000, "duckdb": 150_000_000}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    pip(
        "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, PROJECT
    )  # fmt: skip
    (built,) = folder.glob("replica_platform-*.whl")
    return built


def pip(*arguments: object) -> None:
    call = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Light:
    """An environment with the wheel and one other package, of the version that is installed."""

    def __init__(self, folder: Path, wheel: Path, package: str) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        self.python = folder / "bin" / "python"
        pip("--python", self.python, "install", "--no-deps", "--no-index", wheel)
        (self.packages,) = folder.glob("lib/python*/site-packages")
        for file in distribution(package).files or []:
            if ".." not in file.parts:
                copy = self.packages / file
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(str(file.locate()), copy)

    def run(self, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        # Isolated: neither PYTHONPATH nor the working folder adds a package.
        return subprocess.run(
            [self.python, "-I", "-c", program, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=self.packages.parent,
        )

    def answer(self, program: str, *arguments: object) -> str:
        done = self.run(program, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def installed(self) -> set[str]:
        names = "import importlib.metadata as m; print(*{d.name for d in m.distributions()})"
        return set(self.answer(names).split())

    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.packages.rglob("*") if file.is_file())


@pytest.fixture(scope="module")
def light(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Light]:
    """A function that makes the environment with a package beside the wheel."""
    return lambda package: Light(tmp_path_factory.mktemp(package) / "env", wheel, package)


APPEND = """
import asyncio, sys
from replica_platform.outbox import Outbox
with Outbox(sys.argv[1]) as outbox:
    outbox.append("note", {"n": 1})
    asyncio.run(outbox.aappend("note", {"n": 2}))
"""


def test_a_worker_appends_with_pysqlite3_alone(
    light: Callable[[str], Light], tmp_path: Path, target: str
) -> None:
    worker = light("pysqlite3")
    assert worker.installed() == {"replica-platform", "pysqlite3"}
    assert worker.bytes() < LARGEST_BYTES["pysqlite3"]
    worker.answer(APPEND, tmp_path / "outbox" / "worker.db")
    drained = drain([tmp_path / "outbox"], target)
    assert drained.delivered == 2
    with psycopg.connect(target) as connection:
        rows = connection.execute("select payload->>'n' from outbox.record order by 1").fetchall()
    assert rows == [("1",), ("2",)]


def test_what_a_worker_lacks_is_said(light: Callable[[str], Light]) -> None:
    refused = light("pysqlite3").run("from replica_platform.outbox import drain")
    assert refused.returncode == 1
    assert "drain needs psycopg" in refused.stderr
    assert "install replica-platform with all it needs" in refused.stderr


READ = """
import sys
import time
from pathlib import Path
from replica_platform.replica import ReplicaReader
with ReplicaReader(Path(sys.argv[1])) as reader:
    print(reader.query("select sum(n) from numbers")[0][0], flush=True)
    sys.stdin.readline()
    until = time.monotonic() + 30
    while (found := reader.query("select sum(n) from numbers")[0][0]) == 1:
        assert time.monotonic() < until, "the new generation was not noticed"
        time.sleep(0.1)
    print(found)
with ReplicaReader(Path(sys.argv[1]), at=1) as reader:
    print(reader.query("select sum(n) from numbers")[0][0])
"""


def test_a_reader_reads_and_follows_with_duckdb_alone(
    light: Callable[[str], Light], tmp_path: Path
) -> None:
    worker = light("duckdb")
    assert worker.installed() == {"replica-platform", "duckdb"}
    assert worker.bytes() < LARGEST_BYTES["duckdb"]
    master, store = tmp_path / "master.duckdb", tmp_path / "store"
    with Master(master).write() as connection:
        connection.execute("create table numbers as select 1 n")
    publish(master, store)
    reader = subprocess.Popen(
        [worker.python, "-I", "-c", READ, store],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert reader.stdin and reader.stdout
    assert reader.stdout.readline() == "1\n"
    with Master(master).write() as connection:
        connection.execute("insert into numbers values (2)")
    publish(master, store)
    rest, errors = reader.communicate("go on\n", timeout=60)
    assert reader.returncode == 0, errors
    assert rest.split() == ["3", "1"]
