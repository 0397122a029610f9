"""The metrics of processes that go on, asked over HTTP while real rows are drained and synced."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from replica_platform.app.watch_metrics import PREFIX, WATCH_METRICS
from replica_platform.outbox import Outbox
from replica_platform_tests.conftest import Cli
from replica_platform_tests.xmin.helpers import execute, rows

WITHIN_S = 60
Samples = dict[str, dict[tuple[str, ...], float]]


class Watched:
    """A command that goes on, with its endpoint."""

    def __init__(self, port: int, *arguments: object) -> None:
        self.url = f"http://127.0.0.1:{port}/metrics"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "replica_platform.cli.main"),
                *(str(one) for one in (*arguments, "--metrics-port", port)),
            ],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def samples(self) -> Samples:
        """Return the samples of each metric by the values of its labels."""
        found: Samples = {}
        with urllib.request.urlopen(self.url, timeout=10) as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = sample.name.removeprefix(f"{PREFIX}_")
                labels = WATCH_METRICS[name][0]
                found.setdefault(name, {})[tuple(sample.labels[one] for one in labels)] = (
                    sample.value
                )
        return found

    def wait_for(self, true: Callable[[Samples], object]) -> Samples:
        until = time.monotonic() + WITHIN_S
        while True:
            assert self.process.poll() is None
            try:
                found = self.samples()
            except OSError:
                found = {}
            if found and true(found):
                return found
            assert time.monotonic() < until, found
            time.sleep(0.1)


@contextmanager
def watched(port: int, *arguments: object, ends: int = 0) -> Iterator[Watched]:
    one = Watched(port, *arguments)
    try:
        yield one
        one.process.send_signal(signal.SIGTERM)
        assert one.process.wait(WITHIN_S) == ends
    finally:
        one.process.kill()
        one.process.wait()


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def append(path: Path, *notes: object) -> None:
    with Outbox(path) as outbox:
        for note in notes:
            outbox.append("note", {"n": note})


def total(found: Samples, name: str) -> float:
    return sum(found.get(name, {}).values())


def test_a_drain_counts_what_is_in_the_target(tmp_path: Path, target: str, port: int) -> None:
    folder = tmp_path / "outbox"
    folder.mkdir()
    files = [folder / f"worker-{number}.db" for number in range(3)]
    with watched(port, "drain", "--outbox", folder, "--target", target, "--watch") as drain:
        none = drain.wait_for(bool)
        assert none.keys() == {"info"}
        append(files[0], *range(300))
        one = drain.wait_for(lambda found: total(found, "drain_delivered_records_total") == 300)
        assert one["drain_delivered_records_total"] == {(str(files[0]),): 300}
        append(files[1], *range(200))
        execute(target, "alter table outbox.record add check (payload ->> 'n' <> 'bad')")
        append(files[2], 1, 2, "bad")
        found = drain.wait_for(lambda found: total(found, "drain_dead_records") == 1)
        listeners = [
            one.laddr.ip
            for one in psutil.Process(drain.process.pid).net_connections("tcp")
            if one.status == psutil.CONN_LISTEN
        ]
    written = rows(target, "select count(*) from outbox.record")[0][0]
    assert total(found, "drain_delivered_records_total") == written == 502
    assert found["drain_dead_records"][(str(files[2]),)] == 1
    assert found["drain_pending_records"] == {(str(file),): 0 for file in files}
    assert total(found, "drain_failures_total") == 0
    assert all(
        time.time() - 60 < at for at in found["drain_last_success_timestamp_seconds"].values()
    )
    assert listeners == ["127.0.0.1"]


def test_a_target_that_is_away_counts_as_failures(tmp_path: Path, port: int) -> None:
    append(tmp_path / "w.db", 1, 2)
    away = "postgresql://127.0.0.1:1/away"
    with watched(
        port, "drain", "--outbox", tmp_path / "w.db", "--target", away, "--watch"
    ) as drain:
        found = drain.wait_for(lambda found: total(found, "drain_failures_total"))
    assert total(found, "drain_pending_records") == 2
    assert total(found, "drain_delivered_records_total") == 0
    assert "drain_last_success_timestamp_seconds" not in found


def test_a_sync_counts_what_is_in_the_target(source: str, target: str, port: int) -> None:
    execute(
        source,
        "create table a (id int primary key, v int)",
        "insert into a select n, n from generate_series(1, 1000) n",
        "create table b (id int primary key)",
        "insert into b values (1)",
    )
    call = ("sync", "a", "b", "absent", "--source", source, "--target", target, "--into", "raw")
    with watched(port, *call, "--watch", "--every", "0.2", ends=1) as sync:
        first = sync.wait_for(lambda found: total(found, "sync_inserted_rows_total") == 1001)
        assert first["sync_inserted_rows_total"] == {("raw.a",): 1000, ("raw.b",): 1}
        assert (
            total(first, "sync_updated_rows_total") == total(first, "sync_deleted_rows_total") == 0
        )
        with psycopg.connect(source) as connection:
            connection.execute("update a set v = 0 where id <= 10")
            connection.execute("delete from a where id > 995")
            connection.execute("insert into b select n from generate_series(2, 41) n")
        found = sync.wait_for(
            lambda found: (
                total(found, "sync_deleted_rows_total") == 5
                and total(found, "sync_inserted_rows_total") == 1041
            )
        )
    assert found["sync_updated_rows_total"] == {("raw.a",): 10, ("raw.b",): 0}
    assert found["sync_failures_total"][("raw.absent",)] >= 2
    assert found["sync_failures_total"][("raw.a",)] == 0
    assert total(found, "sync_rounds_total") >= 2
    assert found["sync_lag_seconds"][("50",)] <= found["sync_lag_seconds"][("99",)] < WITHIN_S
    assert time.time() - found["last_sync_timestamp_seconds"][("raw.b",)] < WITHIN_S
    held = rows(target, "select (select count(*) from raw.a), (select count(*) from raw.b)")[0]
    inserted, deleted = found["sync_inserted_rows_total"], found["sync_deleted_rows_total"]
    assert held == tuple(inserted[one,] - deleted[one,] for one in ("raw.a", "raw.b")) == (995, 41)


def test_wrong_calls_say_what_to_do(tmp_path: Path, cli: Cli, target: str, port: int) -> None:
    append(tmp_path / "w.db", 1)
    drain = ("drain", "--outbox", tmp_path / "w.db", "--target", target)
    once = cli(*drain, "--metrics-port", port)
    assert (once.returncode, "add --watch" in once.stderr) == (2, True)
    sync = cli("sync", "t", "--source", target, "--target", target, "--metrics-port", port)
    assert (sync.returncode, "add --watch" in sync.stderr) == (2, True)
    host = cli(*drain, "--watch", "--metrics-host", "0.0.0.0")
    assert (host.returncode, "give a port" in host.stderr) == (2, True)
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        taken = cli(*drain, "--watch", "--metrics-port", port)
    assert taken.returncode == 1
    assert f"127.0.0.1:{port} cannot be listened on" in taken.stderr
    elsewhere = cli(*drain, "--watch", "--metrics-port", port, "--metrics-host", "192.0.2.1")
    assert elsewhere.returncode == 1
    assert "192.0.2.1" in elsewhere.stderr


def test_without_the_extra_the_sentence_names_it(tmp_path: Path, target: str, port: int) -> None:
    append(tmp_path / "w.db", 1)
    program = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from replica_platform.cli.main import main; main()"
    )
    call = ("drain", "--outbox", tmp_path / "w.db", "--target", target)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, *map(str, call), *more]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    refused = run("--watch", "--metrics-port", str(port))
    assert refused.returncode == 1
    assert "install replica-platform[metrics]" in refused.stderr
    assert rows(target, "select to_regclass('outbox.record')") == [(None,)]
    # Without a port nothing of it is needed.
    assert run().returncode == 0
    assert rows(target, "select count(*) from outbox.record") == [(1,)]
