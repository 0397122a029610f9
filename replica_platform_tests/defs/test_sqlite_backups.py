"""A SQLite file of another host: copied here over SSH, backed up, verified, checked."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from replica_platform.app.entries.sqlite_files import DrillEntry, FileEntry
from replica_platform.backup import backups
from replica_platform.components import SqliteBackups
from replica_platform.core.sqlite import sqlite3
from replica_platform.resources.platform import PlatformConfig
from replica_platform_tests.backup.ssh_server import Host, serving


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with serving(tmp_path) as host:
        yield host


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """The open database of a program on the other host."""
    (tmp_path / "remote").mkdir()
    with closing(sqlite3.connect(tmp_path / "remote" / "gym.db", isolation_level=None)) as db:
        db.execute("pragma journal_mode=wal")
        db.execute("create table visit (id integer primary key, member text)")
        db.execute("insert into visit (member) values ('ada'), ('grace')")
        yield db


@pytest.fixture
def component(host: Host, remote: sqlite3.Connection, tmp_path: Path) -> SqliteBackups:
    file = FileEntry(
        path="remote/remote_gym_system.db",
        pulled_from=host.url(tmp_path / "remote" / "gym.db"),
        known_hosts=str(host.known_hosts),
        client_key=str(host.client_key),
    )
    return SqliteBackups(files=[file])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def definitions_of(data: Path, *components: SqliteBackups) -> dg.Definitions:
    platform = PlatformConfig(data_dir=str(data), backup_dir=str(data / "backups"))
    return dg.Definitions.merge(
        *(one.build_defs(None) for one in components),  # type: ignore[arg-type]
        dg.Definitions(resources={"platform": platform}),
    )


def run(component: SqliteBackups, data: Path) -> dg.ExecuteInProcessResult:
    definitions = definitions_of(data, component)
    with dg.DagsterInstance.ephemeral() as instance:
        return definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance, raise_on_error=False
        )


def members(data: Path) -> list[str]:
    """Return the members in the newest backup."""
    newest = backups(data / "backups", "remote_gym_system")[0].file
    with closing(sqlite3.connect(f"{newest.as_uri()}?mode=ro&immutable=1", uri=True)) as db:
        return [member for (member,) in db.execute("select member from visit order by id")]


def test_copied_here_backed_up_and_checked(
    component: SqliteBackups, remote: sqlite3.Connection, data: Path
) -> None:
    first = run(component, data)
    assert first.success
    assert all(check.passed for check in first.get_asset_check_evaluations())
    assert members(data) == ["ada", "grace"]
    remote.execute("insert into visit (member) values ('edsger')")
    remote.execute("delete from visit where member = 'ada'")
    assert run(component, data).success
    assert members(data) == ["grace", "edsger"]


def test_a_host_with_an_unknown_key_leaves_the_newest_backup(
    component: SqliteBackups, data: Path, tmp_path: Path
) -> None:
    assert run(component, data).success
    (tmp_path / "no_host").touch()
    stranger = component.files[0].model_copy(update={"known_hosts": str(tmp_path / "no_host")})
    result = run(SqliteBackups(files=[stranger]), data)
    assert not result.success
    (failure,) = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    assert "127.0.0.1" in str(failure.event_specific_data)
    assert members(data) == ["ada", "grace"]


def test_each_entry_and_kind_has_its_schedule(component: SqliteBackups, data: Path) -> None:
    def crons(*components: SqliteBackups) -> dict[str, str]:
        merged = definitions_of(data, *components)
        return {one.name: one.cron_schedule for one in merged.get_repository_def().schedule_defs}

    here = SqliteBackups(files=[FileEntry(path="app.db")])
    other = SqliteBackups(
        name="other",
        files=[FileEntry(path="other.db")],
        cron_schedule="30 1 * * *",
        timezone="Europe/Berlin",
    )
    assert crons(component) == {"remote_pulls": "0 9 * * *"}
    far = component.model_copy(update={"name": "far"})
    assert crons(here, other, far) == {
        "nightly_backups": "0 3 * * *",
        "other_nightly": "30 1 * * *",
        "far_pulls": "0 9 * * *",
    }


def test_a_file_that_sqlite_cannot_check_in_full_is_kept_and_warned_about(data: Path) -> None:
    data.mkdir()
    with closing(sqlite3.connect(data / "cards.db", isolation_level=None)) as db:
        db.create_collation("unicase", lambda a, b: (a > b) - (a < b))
        db.execute("create table card (name text unique collate unicase)")
    result = run(SqliteBackups(files=[FileEntry(path="cards.db")]), data)
    assert result.success
    found = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert not found["is_intact"].passed
    assert found["is_intact"].severity == dg.AssetCheckSeverity.WARN
    assert "not fully checkable: collation unicase" in str(found["is_intact"].description)
    assert found["is_fresh"].passed


@pytest.mark.parametrize(("members", "queries"), [(0, 0), (1, 1), (2, 2), (5, 5)])
def test_a_kept_backup_is_restored_each_night_and_asked(
    data: Path, members: int, queries: int
) -> None:
    def a_night_passes() -> None:
        for one in backups(data / "backups", "gym"):
            drilled_at = one.drilled_at and one.drilled_at - timedelta(days=1)
            replace(one, drilled_at=drilled_at).save()

    data.mkdir()
    with closing(sqlite3.connect(data / "gym.db", isolation_level=None)) as db:
        db.execute("create table member (name text)")
        db.executemany("insert into member values (?)", [("ada",)] * members)
    asked = [DrillEntry(sql="select count(*) from member", at_least=2)] * queries
    component = SqliteBackups(files=[FileEntry(path="gym.db", drill=asked)])
    run(component, data)
    with closing(sqlite3.connect(data / "gym.db", isolation_level=None)) as db:
        db.execute("create table visit (at text)")  # an unchanged file gets no second backup
    a_night_passes()
    result = run(component, data)
    assert result.success  # a failed drill blocks nothing
    found = {check.check_name: check for check in result.get_asset_check_evaluations()}
    restorable = found["is_restorable"]
    assert restorable.passed == (members >= 2 or not queries)
    assert restorable.metadata["restore_seconds"].value > 0
    assert restorable.metadata["backups_with_a_drill"].value == 2
    assert restorable.metadata["oldest_drill_age_seconds"].value >= 0
    assert restorable.metadata["answers"].value == [members] * queries
    assert [one.drilled_at is not None for one in backups(data / "backups", "gym")] == [True] * 2


def test_a_drill_that_passed_is_not_repeated_in_one_night_and_one_that_failed_is(
    data: Path,
) -> None:
    data.mkdir()
    with closing(sqlite3.connect(data / "gym.db", isolation_level=None)) as db:
        db.execute("create table member (name text)")

    def restorable(at_least: int) -> dg.AssetCheckEvaluation:
        asked = [DrillEntry(sql="select count(*) from member", at_least=at_least)]
        result = run(SqliteBackups(files=[FileEntry(path="gym.db", drill=asked)]), data)
        return next(
            check
            for check in result.get_asset_check_evaluations()
            if check.check_name == "is_restorable"
        )

    def drilled_at() -> list[datetime | None]:
        return [one.drilled_at for one in backups(data / "backups", "gym")]

    assert not restorable(at_least=1).passed
    failed = drilled_at()
    assert restorable(at_least=0).passed  # the query was mended: drilled again at once
    passed = drilled_at()
    assert passed != failed
    again = restorable(at_least=0)
    assert again.passed and drilled_at() == passed
    assert "restored as a drill" in (again.description or "")


def test_backups_as_blocks_are_configured_and_checked(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPLICA_BACKUP_KEY", "0f" * 32)
    data.mkdir()
    with closing(sqlite3.connect(data / "app.db", isolation_level=None)) as db:
        db.execute("create table t (v)")
    file = FileEntry(path="app.db", blocks="blocks", encrypted=True)
    done = run(SqliteBackups(files=[file]), data)
    assert done.success
    assert all(check.passed for check in done.get_asset_check_evaluations())
    (taken,) = backups(data / "backups", "app")
    assert taken.blocks == str(data / "blocks") and taken.key_id and not taken.file.exists()
    assert taken.drilled_at is not None
    # A key that is gone is a failure in words, not a damaged backup.
    monkeypatch.delenv("REPLICA_BACKUP_KEY")
    checks = definitions_of(
        data, SqliteBackups(files=[file])
    ).resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        failed = checks.execute_in_process(
            instance=instance,
            raise_on_error=False,
            asset_selection=[],
            op_selection=["backups__app_checks"],
        )
    assert not failed.success
    assert "REPLICA_BACKUP_KEY" in str(failed.all_events)
    assert backups(data / "backups", "app")[0].ok


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_damaged_newest_backup_is_taken_again_by_the_sensor(data: Path, count: int) -> None:
    files = [FileEntry(path=f"app_{number}.db") for number in range(3)]
    data.mkdir()
    for file in files:
        with closing(sqlite3.connect(data / file.path)) as db:
            db.execute("create table t (x)")
    component = SqliteBackups(files=files)
    definitions = definitions_of(data, component)
    repository = definitions.get_repository_def()

    def tick() -> list[dg.RunRequest]:
        platform = PlatformConfig(data_dir=str(data), backup_dir=str(data / "backups"))
        with (
            dg.DagsterInstance.ephemeral() as instance,
            dg.build_sensor_context(
                instance=instance, repository_def=repository, resources={"platform": platform}
            ) as context,
        ):
            found = repository.get_sensor_def("backups_repair").evaluate_tick(context)
        return list(found.run_requests or [])

    assert tick() == []  # the first backup is the schedule's
    assert run(component, data).success
    assert tick() == []
    for number in range(count):
        newest = backups(data / "backups", f"app_{number}")[0].file
        newest.chmod(0o644)
        with newest.open("r+b") as file:
            file.truncate(newest.stat().st_size // 2)
    requests = tick()
    assert [one.asset_selection for one in requests] == [
        [dg.AssetKey(["backups", f"app_{number}"])] for number in range(count)
    ]
    assert len({one.run_key for one in requests}) == count
    assert run(component, data).success
    assert tick() == []
    assert all(backups(data / "backups", f"app_{number}")[0].ok for number in range(count))
