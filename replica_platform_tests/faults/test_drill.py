"""The fault drill: everything is noticed and healed, and nothing of the user's is touched."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import duckdb
import psycopg
import pytest
from psycopg import sql

from replica_platform.app.drill.drill import FaultDone, FaultReport
from replica_platform.app.drill.faults import FAULTS
from replica_platform.app.embedded import server_at
from replica_platform.defs.drill import drill
from replica_platform.outbox import Outbox
from replica_platform.outbox import drain as drain_outboxes
from replica_platform_tests.acceptance.pages import of_this_platform
from replica_platform_tests.conftest import Cli


def files(folder: Path) -> dict[str, str]:
    """Return the digest of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def tables(dsn: str) -> dict[str, str]:
    """Return the digest of every table of a database."""
    with psycopg.connect(dsn) as connection:
        found = connection.execute(
            "select table_schema, table_name from information_schema.tables "
            "where table_schema not in ('pg_catalog', 'information_schema') order by 1, 2"
        ).fetchall()
        digests = {}
        for names in found:
            table = sql.Identifier(*names)
            rows = connection.execute(sql.SQL("select t::text from {} t order by 1").format(table))
            text = repr(rows.fetchall()).encode()
            digests[".".join(names)] = hashlib.sha256(text).hexdigest()
        return digests


@pytest.mark.timeout(900)
def test_everything_is_noticed_and_healed_and_nothing_of_the_users_is_touched(
    cli: Cli, folder: Path, entries: Path, tmp_path: Path, database: Callable[[str], str]
) -> None:
    """The command is called in a project of the user's, with the user's settings in force."""
    data, target, dagster = folder / "data", database("warehouse"), database("dagster")
    (data / "backups").mkdir(parents=True)
    (data / "backups" / "app_backup_20260101_000000.db").write_bytes(b"a backup")
    with duckdb.connect(data / "master.duckdb") as master:
        master.execute("create table item as select range n from range(10)")
    with Outbox(data / "outbox" / "worker-1.db") as outbox:
        outbox.append_many("note", [{"n": n} for n in range(10)])
    drain_outboxes([data / "outbox"], target)
    with Outbox(data / "outbox" / "worker-1.db") as outbox:
        outbox.append("note", {"n": "waits"})
    before = (files(folder), files(tmp_path), tables(target), tables(dagster))
    assert before[0] and before[1] and "outbox.record" in before[2]

    left = list(Path(tempfile.gettempdir()).glob("replica-drill-*"))
    done = cli(
        "drill", "--json",
        REPLICA_TARGET_DSN=target, REPLICA_SOURCE_DSN=target, REPLICA_DAGSTER_DSN=dagster,
        DAGSTER_HOME=str(tmp_path), REPLICA_ALERT_WEBHOOK="http://127.0.0.1:9/must-not-be-asked",
    )  # fmt: skip

    assert (files(folder), files(tmp_path), tables(target), tables(dagster)) == before
    assert done.stderr == ""
    report = json.loads(done.stdout)
    for one in report["faults"]:
        print(
            f"\n{one['fault']:<18} noticed after {one['noticed_s']} s, healed {one['healed_s']} s"
        )
    print(f"the whole drill took {report['seconds']:.0f} s")
    assert done.returncode == 0, report["sentence"]
    assert [one["fault"] for one in report["faults"]] == list(FAULTS)
    assert all(0 <= one["noticed_s"] <= one["healed_s"] for one in report["faults"])
    assert list(Path(tempfile.gettempdir()).glob("replica-drill-*")) == left


@pytest.mark.timeout(600)
def test_without_its_sensor_a_deleted_replica_is_not_healed(cli: Cli, tmp_path: Path) -> None:
    """The control: the drill notices that nothing notices."""
    sandbox = tmp_path / "sandbox"
    done = cli(
        "drill", "replica-deleted", "--off", "deleted_repair", "--within", "15", "--keep", sandbox
    )
    assert done.returncode == 1, done.stdout
    assert "Not noticed: replica-deleted; not healed: replica-deleted" in done.stderr
    assert f"{sandbox}/daemon.log" in done.stderr.replace("\n", "")
    assert (sandbox / "daemon.log").exists()
    assert of_this_platform(sandbox / "drill" / "data") == []


@pytest.mark.timeout(600)
def test_a_drill_that_is_terminated_leaves_no_process(folder: Path) -> None:
    sandbox = folder / "sandbox"
    command = [sys.executable, "-m", "replica_platform.cli.main", "drill", "--keep", str(sandbox)]
    drilling = subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "200"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert drilling.stderr is not None
    for line in drilling.stderr:
        if "starting its daemon" in line:
            break
    data = sandbox / "drill" / "data"
    until = time.monotonic() + 300
    while not of_this_platform(data):
        assert time.monotonic() < until and drilling.poll() is None
        time.sleep(0.2)
    drilling.terminate()
    drilling.communicate(timeout=120)
    assert drilling.returncode == 143
    assert of_this_platform(data) == []
    assert not server_at(sandbox / "postgres").is_running


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["replica-lost"], "There is no damage 'replica-lost'; there are replica-deleted"),
        (["--keep", "."], "is not empty; give an empty folder"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_made(
    cli: Cli, tmp_path: Path, arguments: list[str], word: str
) -> None:
    (tmp_path / "file").touch()
    done = cli("drill", *arguments)
    assert done.returncode == 1
    assert word in done.stderr


@pytest.mark.parametrize("healed_s", [None, 2.0])
def test_the_job_fails_where_something_was_not_healed(
    monkeypatch: pytest.MonkeyPatch, healed_s: float | None
) -> None:
    one = FaultDone("replica-deleted", "a file is deleted", "deleted_repair", 1.0, healed_s)
    report = FaultReport([one], 3.0)
    monkeypatch.setattr("replica_platform.defs.drill.run_drill", lambda progress: report)
    with dg.DagsterInstance.ephemeral() as instance:
        result = drill.execute_in_process(instance=instance, raise_on_error=False)
    assert result.success is (healed_s is not None)
    (failure,) = [event for event in result.all_events if event.is_step_failure] or [None]
    if failure:
        assert "Not healed: replica-deleted" in str(failure.step_failure_data.user_failure_data)
