"""The platform as Prometheus metrics: parsed by its own parser, named by its rules."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from replica_platform.app.configured import configured
from replica_platform.app.metrics import METRICS, PREFIX, metrics_text
from replica_platform.backup import backup
from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import Outbox
from replica_platform.replica import Master, publish
from replica_platform_tests.app.test_health import Folder
from replica_platform_tests.conftest import Cli


@pytest.fixture
def made(tmp_path: Path, source: str, target: str, database: Callable[[str], str]) -> Folder:
    """A platform with one of each, made by hand."""
    folder = Folder(tmp_path, source, target, database("dagster"))
    kinds = {
        "outbox": ("WorkerOutboxes", {"nodes": {"web": "outbox"}}),
        "backups": ("SqliteBackups", {"files": [{"path": "a.db"}]}),
        "shop": ("DuckDBReplica", {"name": "shop", "master": "shop.duckdb"}),
    }
    for name, (kind, attributes) in kinds.items():
        given = json.dumps(
            {"type": f"replica_platform.components.{kind}", "attributes": attributes}
        )
        folder.write(name, given)
    folder.tables("public.t")
    folder.sync("public.t")
    folder.daemon_ran(seconds_ago=60)
    data = folder.settings.data_dir
    with Outbox(data / "outbox" / "w.db") as outbox:
        outbox.append("note", {"n": 1})
    with sqlite3.connect(data / "a.db") as connection:
        connection.execute("create table t (a)")
    connection.close()
    backup(data / "a.db", folder.settings.backup_dir)
    with Master(data / "shop.duckdb").write() as connection:
        connection.execute("create table t as select 1 a")
    (entry,) = (one for _, one in configured(folder.defs).entries if hasattr(one, "store_folder"))
    publish(data / "shop.duckdb", data / entry.store_folder)
    return folder


def samples(text: bytes) -> dict[str, dict[tuple[str, ...], float]]:
    """Return the samples of each metric without its prefix, by the values of their labels."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text.decode()):
        name = family.name.removeprefix(f"{PREFIX}_")
        found[name] = {
            tuple(sample.labels[label] for label in METRICS[name][0]): sample.value
            for sample in family.samples
        }
    return found


def test_what_is_configured_is_measured(made: Folder) -> None:
    found = samples(metrics_text(made.settings, configured(made.defs)))
    now = time.time()
    assert found["healthy"][("warehouse",)] == 1
    assert found["table_there"] == {("raw.t",): 1}
    assert now - found["last_sync_timestamp_seconds"][("raw.t",)] < 60
    assert found["outbox_pending_records"] == {("conversations", "web"): 1}
    assert now - found["outbox_oldest_pending_timestamp_seconds"][("conversations", "web")] < 60
    assert found["replica_generation"] == {("shop",): 1}
    assert found["replica_in_sync"] == {("shop",): 1}
    assert now - found["replica_published_timestamp_seconds"][("shop",)] < 60
    assert found["backup_copies"] == {("backups/a",): 1}
    assert 50 < now - found["daemon_heartbeat_timestamp_seconds"][()] < 120
    assert found["failed_schedules"] == {(): 0}
    assert now - found["collected_timestamp_seconds"][()] < 60


def test_what_cannot_be_reached_is_unhealthy_and_the_rest_is_measured(made: Folder) -> None:
    away = made.settings.model_copy(
        update={"target_dsn": type(made.settings.target_dsn)("postgresql://127.0.0.1:1/away")}
    )
    found = samples(metrics_text(away, configured(made.defs)))
    assert found["healthy"][("warehouse",)] == 0
    assert "last_sync_timestamp_seconds" not in found
    assert found["replica_generation"] == {("shop",): 1}


def test_the_command_writes_prints_and_serves(
    made: Folder, cli: Cli, tmp_path: Path, entries: Path
) -> None:
    shutil.copytree(made.defs, entries, dirs_exist_ok=True)
    dsns = {
        "REPLICA_DATA_DIR": str(made.settings.data_dir),
        "REPLICA_SAMPLE": "off",
        "REPLICA_SOURCE_DSN": made.settings.source,
        "REPLICA_TARGET_DSN": made.settings.target,
        "REPLICA_DAGSTER_DSN": made.settings.dagster,
    }
    printed = cli("metrics", **dsns)
    assert printed.returncode == 0, printed.stderr
    assert samples(printed.stdout.encode())["outbox_pending_records"]
    file = tmp_path / "replica.prom"
    assert cli("metrics", "--textfile", file, **dsns).returncode == 0
    assert samples(file.read_bytes()).keys() == samples(printed.stdout.encode()).keys()
    assert cli("metrics", "--textfile", file, "--port", 9, **dsns).returncode == 2

    nowhere = cli("metrics", "--textfile", tmp_path / "absent" / "m.prom", **dsns)
    assert (nowhere.returncode, nowhere.stdout) == (1, "")
    assert "There is no folder" in nowhere.stderr

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        probe.listen()
        port = probe.getsockname()[1]
        taken = cli("metrics", "--port", port, **dsns)
    assert taken.returncode == 1
    assert f"127.0.0.1:{port} cannot be listened on" in taken.stderr
    server = subprocess.Popen(
        [sys.executable, "-m", "replica_platform.cli.main", "metrics", "--port", str(port)],
        cwd=tmp_path,
        env=dsns | {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr
    try:
        assert f"127.0.0.1:{port}/metrics" in server.stderr.readline()
        url = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert samples(answer.read())["outbox_pending_records"][("conversations", "web")] == 1
        with Outbox(made.settings.data_dir / "outbox" / "w.db") as outbox:
            outbox.append("note", {"n": 2})
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert samples(answer.read())["outbox_pending_records"][("conversations", "web")] == 2
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.communicate()
