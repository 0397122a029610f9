"""Errors of the environment end in one sentence and a non-zero exit code, nothing half-written."""

import subprocess
from pathlib import Path

from replica_platform_tests.conftest import Cli


def assert_one_sentence(finished: subprocess.CompletedProcess[str], part: str) -> None:
    assert finished.returncode == 1
    assert part in finished.stderr
    assert "Traceback" not in finished.stderr
    assert len(finished.stderr.strip().splitlines()) == 1


def test_a_dsn_that_does_not_connect(cli: Cli) -> None:
    dead = "postgresql://u:secret@127.0.0.1:1/d"
    finished = cli("sync", "s.t", "--source", dead, "--target", dead)
    assert_one_sentence(finished, "Cannot connect to postgresql://u:***@127.0.0.1:1/d")
    assert "secret" not in finished.stderr


def test_a_text_that_is_not_a_dsn(cli: Cli) -> None:
    finished = cli("validate", "s.t", "--source", "nonsense", "--target", "nonsense")
    assert_one_sentence(finished, "is not a Postgres connection string")


def test_a_configured_dsn_that_does_not_connect(cli: Cli) -> None:
    dead = "postgresql://u:secret@127.0.0.1:1/d"
    finished = cli(
        "run",
        REPLICA_SOURCE_DSN=dead,
        REPLICA_TARGET_DSN=dead,
        REPLICA_DAGSTER_DSN=dead,
    )
    assert_one_sentence(finished, "Cannot connect to")
    assert "secret" not in finished.stderr


def test_a_setting_that_is_not_valid(cli: Cli) -> None:
    assert_one_sentence(cli("status", REPLICA_PORT="99999999"), "REPLICA_PORT is not valid")


def test_a_data_folder_that_cannot_be_written(cli: Cli) -> None:
    # sysfs refuses new folders, root's too.
    finished = cli("run", REPLICA_DATA_DIR="/sys/replica")
    assert_one_sentence(finished, "/sys/replica: permission is missing")


def test_a_file_where_the_data_folder_should_be(cli: Cli, folder: Path) -> None:
    (folder / "data").write_text("mine")
    assert_one_sentence(cli("run"), "a file stands where a folder is needed")
    assert (folder / "data").read_text() == "mine"


def test_status_is_red_and_names_the_cause_when_the_target_is_away(cli: Cli) -> None:
    finished = cli("status", REPLICA_TARGET_DSN="postgresql://u:secret@127.0.0.1:1/d")
    assert finished.returncode == 1
    warehouse = next(line for line in finished.stdout.splitlines() if "warehouse" in line)
    assert "RED" in warehouse
    assert "Cannot connect to postgresql://u:***@127.0.0.1:1/d" in warehouse


def test_status_of_a_folder_without_a_platform_creates_nothing(cli: Cli, folder: Path) -> None:
    finished = cli("status")
    assert finished.returncode == 1
    assert f"Nothing is in {folder / 'data'} yet" in finished.stdout
    assert list(folder.iterdir()) == []
    assert cli("status", REPLICA_TARGET_DSN="postgresql://127.0.0.1:1/d").returncode == 1
    assert list(folder.iterdir()) == []


def test_a_master_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    finished = cli("publish", "--master", tmp_path / "no.duckdb", "--store", tmp_path / "store")
    assert finished.returncode == 2
    assert "does not exist" in finished.stderr
    assert not (tmp_path / "store").exists()


def test_a_line_that_is_no_json_loses_only_itself(cli: Cli, tmp_path: Path) -> None:
    box = tmp_path / "box.db"
    finished = cli("append", "--outbox", box, "--kind", "note", stdin='{"a": 1}\nnonsense\n[2]\n')
    assert finished.returncode == 1
    assert "line 2 was not appended" in finished.stderr
    assert len(finished.stdout.split()) >= 1
