"""The job of a group's schedule: events of what changed, of the others once in a while."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from dagster._core.definitions.asset_daemon_cursor import AssetDaemonCursor
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME
from dagster._core.remote_representation.external_data import asset_node_snaps_from_repo

from replica_platform.app.settings import Settings
from replica_platform.components.machine import Machine, loading_on
from replica_platform.components.xmin_tables import TableEntry, XminTables
from replica_platform.definitions import build_resources
from replica_platform.history import Span, read
from replica_platform.policies import AFTER_PARENTS

# Loading a component outside of `defs/` warns of what Dagster's own loading uses as well.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Function `Definitions.with_reconstruction_metadata`"
)

TABLES = ("a", "b", "c")
KEYS = [dg.AssetKey(["raw_data", name]) for name in TABLES]


@dataclass
class Group:
    """A group of three tables of a source, and the instance that its runs are in."""

    settings: Settings
    instance: dg.DagsterInstance

    def definitions(self, **attributes: object) -> dg.Definitions:
        @dg.asset(deps=[KEYS[0]], automation_condition=AFTER_PARENTS)
        def dependent() -> None: ...

        entries = [TableEntry(table=f"public.{name}") for name in TABLES]
        component = XminTables(**{"name": "fds", "tables": entries} | attributes)
        with loading_on(Machine(self.settings.data_dir, self.settings.source)):
            tables = component.build_defs(None)  # type: ignore[arg-type]  # it has no file
        return dg.Definitions.merge(
            tables,
            dg.Definitions(
                assets=[dependent],
                resources=build_resources(self.settings),
                executor=dg.in_process_executor,
            ),
        )

    def sync(self, **attributes: object) -> dg.ExecuteInProcessResult:
        """Run the job of the schedule."""
        job = self.definitions(**attributes).resolve_job_def("fds_sync")
        return job.execute_in_process(instance=self.instance, raise_on_error=False)

    def materialise(self) -> dg.ExecuteInProcessResult:
        """Run a job of the same assets and checks, as a schedule of assets would."""
        selection = dg.AssetSelection.assets(*KEYS)
        job = dg.define_asset_job("selected", selection=selection)
        definitions = dg.Definitions.merge(self.definitions(), dg.Definitions(jobs=[job]))
        return definitions.resolve_job_def("selected").execute_in_process(instance=self.instance)

    def events(self, result: dg.ExecuteInProcessResult) -> int:
        """Return the number of events of a run in the database."""
        return len(self.instance.all_logs(result.run_id))

    def change(self) -> None:
        with psycopg.connect(self.settings.source) as source:
            source.execute("update a set name = name || '!'")


@pytest.fixture
def group(database: Callable[[str], str], tmp_path: Path) -> Iterator[Group]:
    source = database("source")
    with psycopg.connect(source) as connection:
        for name in TABLES:
            connection.execute(f"create table {name} (id int primary key, name text)")
            connection.execute(f"insert into {name} values (1, 'one'), (2, 'two')")
    settings = Settings(
        data_dir=tmp_path, source_dsn=source, target_dsn=database("target"), _env_file=None
    )
    with dg.DagsterInstance.ephemeral() as instance:
        yield Group(settings, instance)


def materialised(result: dg.ExecuteInProcessResult) -> list[str]:
    return [
        event.asset_key.path[-1]
        for event in result.all_events
        if event.is_step_materialization and event.asset_key
    ]


def checked(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    return {
        f"{one.asset_key.path[-1]}.{one.check_name}": one.passed
        for one in result.get_asset_check_evaluations()
    }


def test_a_table_that_did_not_change_costs_no_event(group: Group) -> None:
    first = group.sync()
    assert first.success
    assert materialised(first) == list(TABLES)
    assert checked(first) == {
        f"{name}.{check}": True for name in TABLES for check in ("is_intact", "is_fresh")
    }
    idle = group.sync()
    assert idle.success
    assert materialised(idle) == []
    assert checked(idle) == {}
    assert group.events(idle) < 12
    # The control: a job of the assets writes events for each of them.
    assert group.events(group.materialise()) > 40


@pytest.mark.parametrize(("name", "jobs"), [("fds", ["fds_sync"]), ("Fds", [])])
def test_a_table_names_the_job_that_syncs_it(group: Group, name: str, jobs: list[str]) -> None:
    repository = group.definitions(name=name).get_repository_def()
    tables = [one for one in asset_node_snaps_from_repo(repository) if one.asset_key in KEYS]
    # The first one is that of a materialisation by hand; Dagster asks it for the asset's step.
    assert [one.job_names for one in tables] == [[IMPLICIT_ASSET_JOB_NAME, *jobs]] * len(KEYS)


def test_a_table_that_changed_is_reported_and_checked(group: Group) -> None:
    group.sync()
    group.change()
    changed = group.sync()
    assert materialised(changed) == ["a"]
    assert checked(changed) == {"a.is_intact": True, "a.is_fresh": True}
    newest = group.instance.get_latest_materialization_event(KEYS[0])
    assert newest is not None
    assert newest.run_id == changed.run_id
    assert newest.asset_materialization is not None
    assert newest.asset_materialization.metadata["rows_moved"].value == 2


def test_the_others_are_reported_when_their_time_has_come(group: Group) -> None:
    group.sync()
    assert materialised(group.sync(report_unchanged_s=3600)) == []
    time.sleep(1.1)
    assert materialised(group.sync(report_unchanged_s=1)) == list(TABLES)


def test_a_blocking_check_that_fails_ends_the_run_red_after_the_others(group: Group) -> None:
    red = group.sync(threshold=1)
    assert not red.success
    assert materialised(red) == list(TABLES)
    failure = red.failure_data_for_node("sync_fds")
    assert failure is not None
    assert failure.user_failure_data is not None
    assert "raw_data/a: raw_data.a is in sync" in str(failure.user_failure_data.description)


def test_what_was_moved_and_checked_is_in_the_history(group: Group) -> None:
    group.sync()
    group.change()
    group.sync()
    group.materialise()  # by the assets, with their checks: nothing is moved
    found = read(group.settings.target, ["rows_moved", "integrity"], Span.DAY, 2)
    moved = {name: sum(v or 0 for v in row) for name, row in found["rows_moved"].values.items()}
    assert sorted(moved.values()) == [2] * (len(TABLES) - 1) + [4]
    scores = [value for row in found["integrity"].values.values() for value in row if value]
    assert set(scores) == {1}
    assert found["integrity"].values.keys() == moved.keys()


def test_a_table_whose_score_is_capped_is_intact(group: Group) -> None:
    with psycopg.connect(group.settings.source) as source:
        source.execute("alter table b drop constraint b_pkey")
    synced = group.sync()
    assert synced.success
    assert checked(synced)["b.is_intact"]
    scores = {
        one.asset_key.path[-1]: one.metadata["score"].value
        for one in synced.get_asset_check_evaluations()
        if one.check_name == "is_intact"
    }
    assert scores["b"] <= 0.8 < scores["a"]


def intact(group: Group) -> tuple[bool, dg.AssetCheckSeverity]:
    """Return the outcome of the check of a table that is not synced before."""
    key = dg.AssetCheckKey(KEYS[0], "is_intact")
    job = dg.define_asset_job("checks", selection=dg.AssetSelection.checks(key))
    definitions = dg.Definitions.merge(group.definitions(), dg.Definitions(jobs=[job]))
    result = definitions.resolve_job_def("checks").execute_in_process(
        instance=group.instance, raise_on_error=False
    )
    (found,) = result.get_asset_check_evaluations()
    return found.passed, found.severity


def test_what_the_next_sync_brings_is_no_damage(group: Group) -> None:
    """On a busy source rows change between the sync of a small table and its check."""
    group.sync()
    group.change()
    assert intact(group)[0]
    with psycopg.connect(group.settings.source) as source:
        source.execute("delete from a where id = 1")
    assert intact(group) == (False, dg.AssetCheckSeverity.WARN)
    assert group.sync().success
    with psycopg.connect(group.settings.target) as target:
        target.execute("delete from raw_data.a")
    assert intact(group) == (False, dg.AssetCheckSeverity.ERROR)


def test_a_failed_table_ends_the_run_red_and_the_others_are_reported(group: Group) -> None:
    group.sync()
    group.change()
    with psycopg.connect(group.settings.source) as source:
        source.execute("drop table b")
    red = group.sync()
    assert not red.success
    assert materialised(red) == ["a"]


@pytest.mark.parametrize(("threshold", "asked_for"), [(0.9, True), (1, False)])
def test_dependents_follow_a_change_whose_checks_passed(
    group: Group, threshold: float, asked_for: bool
) -> None:
    definitions = group.definitions()

    def tick(cursor: AssetDaemonCursor | None = None) -> dg.EvaluateAutomationConditionsResult:
        return dg.evaluate_automation_conditions(
            definitions,
            instance=group.instance,
            asset_selection=dg.AssetSelection.assets("dependent"),
            cursor=cursor,
        )

    group.sync()
    before = tick()
    assert tick(before.cursor).total_requested == 0
    group.change()
    group.sync(threshold=threshold)
    assert tick(before.cursor).total_requested == int(asked_for)
