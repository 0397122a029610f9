"""A platform without some of its parts, and with several of each: folders removed, sample off."""

import json
import shutil
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

import replica_platform
from replica_platform.app import health
from replica_platform.app.configured import configured
from replica_platform.app.entries import FileEntry, SqliteBackupsEntry, TableEntry, WrongEntry
from replica_platform.app.launch import prepare_sample
from replica_platform.app.settings import Settings
from replica_platform.backup import backups
from replica_platform.components import (
    DuckDBReplica,
    PurposeReplicas,
    SqliteBackups,
    WorkerOutboxes,
    XminTables,
)
from replica_platform.core.sqlite import sqlite3
from replica_platform.definitions import build_defs, build_resources, without_repeats
from replica_platform.resources.platform import PlatformConfig

PACKAGE = Path(replica_platform.__file__).parent
SAMPLE = PACKAGE / "defs" / "sample"
PROGRAM = """
import warnings
warnings.simplefilter("ignore")
from replica_platform.app.launch import prepare_sample
from replica_platform.app.settings import Settings
from replica_platform.definitions import defs
loaded = defs()
loaded.get_repository_def()
print(*sorted(k.to_user_string() for k in loaded.resolve_asset_graph().materializable_asset_keys))
"""
ASSETS = {
    "sample/market": {"symbols", "ohlcv", "indicators", "watchlist"},
    "sample/replica": {"market_replica"},
    "sample/purposes": {"purposes/quotes"},
    "sample/warehouse": {"raw_data/prices", "raw_data/sym_v1_sym_ticker_exchange"},
    "sample/backups": {"backups/gym_system"},
    "sample/outbox": {"conversations"},
}
SHARED = {"watchlist_prices"}  # of the sample's folder itself


@pytest.mark.parametrize(
    "removed",
    [[], ["sample"], ["sample/outbox"], ["sample/warehouse", "sample/backups", "sample/purposes"]],
)
def test_definitions_load_without_a_folder(removed: list[str], tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "replica_platform", ignore=ignored)
    shutil.copy(PACKAGE.parent / "pyproject.toml", tmp_path)
    for folder in removed:
        shutil.rmtree(tmp_path / "replica_platform" / "defs" / folder)
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "REPLICA_DATA_DIR": str(tmp_path / "data")},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    kept = set() if "sample" in removed else set(SHARED)
    for folder, assets in ASSETS.items():
        if not any(folder == one or folder.startswith(f"{one}/") for one in removed):
            kept |= assets
    assert set(finished.stdout.split()) == kept


def test_without_the_sample_nothing_of_it_is_left(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPLICA_SAMPLE", "off")
        assert not Settings(_env_file=None).sample
    off = Settings(data_dir=tmp_path / "data", sample=False, _env_file=None)
    loaded = build_defs(off)
    graph = loaded.resolve_asset_graph()
    assert {key.to_user_string() for key in graph.materializable_asset_keys} == set()
    repository = loaded.get_repository_def()
    assert [one.name for one in repository.schedule_defs] == ["housekeeping"]
    prepare_sample(off)
    assert not (tmp_path / "data").exists()
    assert off.environment()["REPLICA_SAMPLE"] == "off"
    assert configured(sample=False).entries == []


def test_the_general_parts_do_not_name_the_sample() -> None:
    names = ("market", "stock_data", "gym_system", "watchlist", "ohlcv", "fds", "defs.sample")
    general = [PACKAGE / "definitions.py", PACKAGE / "policies.py"]
    for folder in ("app", "components", "resources", "io_managers"):
        general += (PACKAGE / folder).rglob("*.py")
    named = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in general
        for name in names
        if name in path.read_text()
    }
    # The name of the embedded source database is from before there could be others.
    assert named - {"app/settings.py: fds"} == set()
    assert any(name in (SAMPLE / "session.py").read_text() for name in names)


def instances(count: int) -> list[dg.Definitions]:
    """Return `count` entries of each component, each with a name and one thing in common."""
    made: list[dg.Definitions] = []
    for n in range(count):
        suffix = f"_{n}" if n else ""
        part = {"tables": {"watchlist": {"columns": ["symbol"], "left_out": "all"}}}
        components = [
            XminTables(
                name=f"fds{suffix}", into=f"raw_data{suffix}", tables=[TableEntry(table="s.t")]
            ),
            WorkerOutboxes(name=f"conversations{suffix}", nodes={"local": f"outbox{suffix}"}),
            SqliteBackups(
                name=f"backups{suffix}",
                files=[FileEntry(path="a/app.db"), FileEntry(path="b/app.db")],
            ),
            PurposeReplicas(name=f"purposes{suffix}", purposes={"quotes": part}),
            DuckDBReplica(name=f"shop{suffix}", purposes={"quotes": part}),
        ]
        made += [one.build_defs(Context) for one in components]  # type: ignore[arg-type]
    return made


class Context:
    """What a component reads of Dagster's context: the folder of its file."""

    path = Path("/nowhere")


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_several_entries_of_each_component_live_side_by_side(count: int) -> None:
    resources = build_resources(Settings(_env_file=None))
    merged = dg.Definitions.merge(*instances(count), dg.Definitions(resources=resources))
    repository = without_repeats(merged).get_repository_def()
    keys = {key.to_user_string() for key in repository.asset_graph.materializable_asset_keys}
    assert len(keys) == 7 * count
    # A table, an outbox, two files, a purpose; a replica with a purpose of its own.
    assert len(repository.asset_graph.asset_check_keys) == (2 + 3 + 2 * 3 + 4 + 4 + 4) * count
    schedules = [one.name for one in repository.schedule_defs]
    sensors = [
        one.name
        for one in repository.sensor_defs
        if not isinstance(one, dg.AutomationConditionSensorDefinition)
    ]
    assert len(set(schedules)) == len(schedules) == 6 * count
    assert len(set(sensors)) == len(sensors) == 6 * count
    pools = {
        node.pool
        for one in repository.assets_defs_by_key.values()
        if one.is_executable
        for node in [one.op]
        if node.pool
    }
    assert len(pools) == 4 * count  # backups take none
    if count:
        assert {"conversations", "raw_data/t", "purposes/quotes", "shop", "shop/quotes"} <= keys
        assert {"backups/app", "backups/b_app"} <= keys
        assert {
            "fds_sync",
            "outbox_drain",
            "nightly_backups",
            "shop_scrub",
            "purpose_scrub",
        } <= set(schedules)
        assert {"outbox_backlog", "purpose_repair", "shop_repair"} <= set(sensors)
        assert {"outbox_repair", "backups_repair"} <= set(sensors)
    if count == 5:
        assert {"fds_4_sync", "conversations_4_drain", "backups_4_nightly"} <= set(schedules)
        assert {"conversations_4_backlog", "purposes_4_purposes_repair"} <= set(sensors)
        assert {"shop_4_repair", "shop_4_purposes_repair"} <= set(sensors)


def test_entries_of_all_kinds_may_have_one_name() -> None:
    """But a replica and outboxes: the asset of both is called like the entry."""
    part = {"tables": {"t": {"columns": ["a"], "left_out": "all"}}}
    components = [
        XminTables(name="shop", into="shop", tables=[TableEntry(table="s.t")]),
        SqliteBackups(name="shop", files=[FileEntry(path="app.db")]),
        DuckDBReplica(name="shop", purposes={"quotes": part}),
    ]
    made = [one.build_defs(Context) for one in components]  # type: ignore[arg-type]
    resources = build_resources(Settings(_env_file=None))
    merged = dg.Definitions.merge(*made, dg.Definitions(resources=resources))
    repository = without_repeats(merged).get_repository_def()
    assert [job.name for job in repository.get_all_jobs() if job.name == "shop_sync"]


def test_every_schedule_budget_owner_tag_and_pool_is_an_attribute() -> None:
    shared = {"owners": ["team:me"], "tags": {"tier": "gold"}, "group": "mine", "pool": "own"}
    part = {"tables": {"t": {"columns": ["a"], "left_out": "all"}}}
    file = FileEntry(path="a.db")
    cron = {"cron_schedule": "1 2 * * *", "timezone": "Europe/Berlin"}
    components = [
        XminTables(name="x", tables=[TableEntry(table="s.t")], fresh_within_s=60, **shared, **cron),
        WorkerOutboxes(name="o", nodes={"n": "f"}, backlog_within_s=60, **shared, **cron),
        SqliteBackups(name="b", files=[file], fresh_within_s=60, **shared, **cron),
        DuckDBReplica(
            name="r",
            purposes={"p": part},
            fresh_within_s=60,
            scrub_cron_schedule=cron["cron_schedule"],
            timezone=cron["timezone"],
            **shared,
        ),
    ]
    for component in components:
        made = component.build_defs(Context)  # type: ignore[arg-type]
        definitions = dg.Definitions.merge(
            made, dg.Definitions(resources=build_resources(Settings(_env_file=None)))
        )
        repository = definitions.get_repository_def()
        for key in repository.asset_graph.materializable_asset_keys:
            node = repository.asset_graph.get(key)
            assert node.owners == ["team:me"], key
            assert node.tags["tier"] == "gold", key
            assert node.group_name == "mine", key
            assert node.freshness_policy, key
            assert repository.assets_defs_by_key[key].op.pool == "own", key
        for schedule in repository.schedule_defs:
            if not schedule.name.endswith("_new_tables"):
                assert schedule.cron_schedule == "1 2 * * *"
                assert schedule.execution_timezone == "Europe/Berlin"


def test_two_files_of_one_name_have_their_own_backups(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        with closing(sqlite3.connect(tmp_path / folder / "app.db", isolation_level=None)) as db:
            db.execute(f"create table {folder} (x)")
    files = [FileEntry(path="a/app.db"), FileEntry(path="b/app.db", keep_count=1, keep_days=0)]
    components = [SqliteBackups(files=files), SqliteBackups(name="more", files=files)]
    platform = PlatformConfig(data_dir=str(tmp_path), backup_dir=str(tmp_path / "backups"))
    definitions = dg.Definitions.merge(
        *(one.build_defs(Context) for one in components),  # type: ignore[arg-type]
        dg.Definitions(resources={"platform": platform}),
    )
    with dg.DagsterInstance.ephemeral() as instance:
        job = definitions.resolve_implicit_global_asset_job_def()
        result = job.execute_in_process(instance=instance)
    assert all(one.passed for one in result.get_asset_check_evaluations())
    folders = ["backups", "backups/b_app", "backups/more", "backups/more/b_app"]
    for folder, table in zip(folders, ["a", "b", "a", "b"], strict=True):
        (taken,) = backups(tmp_path / folder, "app")
        assert taken.tables == {table: 0}
    settings = Settings(data_dir=tmp_path, _env_file=None)
    entry = SqliteBackupsEntry(files=[FileEntry(path=one.path) for one in files])
    ok, sentence, _ = health._backups(settings, [entry])
    assert ok, sentence


def test_an_entry_that_is_renamed_finds_its_backups_again() -> None:
    entry = SqliteBackupsEntry(name="mine", folder=".", files=[FileEntry(path="app.db")])
    assert entry.backups_of(Path("backups"), entry.files[0], "app") == Path("backups")


def test_names_that_are_still_the_same_are_refused() -> None:
    files = [FileEntry(path="x/a/app.db"), FileEntry(path="a/app.db"), FileEntry(path="y/a/app.db")]
    with pytest.raises(WrongEntry, match="would both be called 'a_app'"):
        SqliteBackups(files=files).build_defs(Context)  # type: ignore[arg-type]


def test_an_unchanged_file_has_no_second_copy_of_the_same_day(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "app.db", isolation_level=None)) as db:
        db.execute("create table t (x)")
    component = SqliteBackups(files=[FileEntry(path="app.db")])
    platform = PlatformConfig(data_dir=str(tmp_path), backup_dir=str(tmp_path / "backups"))
    definitions = dg.Definitions.merge(
        component.build_defs(Context),  # type: ignore[arg-type]
        dg.Definitions(resources={"platform": platform}),
    )
    job = definitions.resolve_implicit_global_asset_job_def()

    def run() -> list[str]:
        with dg.DagsterInstance.ephemeral() as instance:
            assert job.execute_in_process(instance=instance).success
        return [one.file.name for one in backups(tmp_path / "backups", "app")]

    first = run()
    assert len(first) == 1
    assert run() == first
    (manifest,) = (tmp_path / "backups").glob("*.json")
    content = json.loads(manifest.read_text())
    taken_at = datetime.now(UTC) - timedelta(hours=23)
    manifest.write_text(json.dumps({**content, "taken_at": taken_at.isoformat()}))
    assert len(run()) == 2  # the next night has a copy, which may outlive the first
    with closing(sqlite3.connect(tmp_path / "app.db", isolation_level=None)) as db:
        db.execute("insert into t values (1)")
    assert len(run()) == 3
    newest = backups(tmp_path / "backups", "app")[0].file
    newest.chmod(0o644)
    newest.write_bytes(newest.read_bytes()[:-1] + b"x")
    assert len(run()) == 4  # a damaged copy replaces nothing
