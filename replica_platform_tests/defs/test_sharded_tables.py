"""An entry in shards: a step, a job and a schedule each, reported while the others go on."""

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr

from replica_platform.app.entries.base import HOST_TAG
from replica_platform.app.settings import Settings
from replica_platform.components import running_sync
from replica_platform.components.machine import Machine, loading_on
from replica_platform.components.xmin_tables import SHARD_TAG, TableEntry, XminTables
from replica_platform.definitions import build_resources, without_repeats

# Loading a component outside of `defs/` warns of what Dagster's own loading uses as well.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Function `Definitions.with_reconstruction_metadata`"
)

TABLES = ("a", "b", "c", "d", "parent", "child")


@dataclass
class Platform:
    """A source of six tables, two of them joined, and an instance for runs."""

    settings: Settings
    instance: dg.DagsterInstance

    def load(self, *tables: TableEntry, **attributes: object) -> dg.Definitions:
        entry = XminTables(
            name="fds", tables=tables or [TableEntry(table="public.*")], **attributes
        )
        with loading_on(Machine(self.settings.data_dir, self.settings.source)):
            made = entry.build_defs(None)  # type: ignore[arg-type]  # it has no file
        resources = dg.Definitions(
            resources=build_resources(self.settings), executor=dg.in_process_executor
        )
        return without_repeats(dg.Definitions.merge(made, resources))

    def run(self, definitions: dg.Definitions, job: str) -> dg.ExecuteInProcessResult:
        return definitions.resolve_job_def(job).execute_in_process(
            instance=self.instance, raise_on_error=False
        )

    def on_source(self, *statements: str) -> None:
        with psycopg.connect(self.settings.source, autocommit=True) as source:
            for statement in statements:
                source.execute(statement)  # type: ignore[arg-type]

    def check(self, definitions: dg.Definitions, name: str) -> dg.AssetCheckEvaluation:
        selection = dg.AssetSelection.checks(dg.AssetCheckKey(dg.AssetKey("fds_catalog"), name))
        job = dg.define_asset_job("checked", selection=selection)
        (found,) = self.run(
            dg.Definitions.merge(definitions, dg.Definitions(jobs=[job])), "checked"
        ).get_asset_check_evaluations()
        return found


@pytest.fixture
def platform(database: Callable[[str], str], tmp_path: Path) -> Iterator[Platform]:
    settings = Settings(
        data_dir=tmp_path,
        source_dsn=database("source"),
        target_dsn=database("target"),
        _env_file=None,
    )
    with dg.DagsterInstance.ephemeral() as instance:
        made = Platform(settings, instance)
        for name in TABLES:
            made.on_source(
                f"create table {name} (id int primary key, v int)",
                f"insert into {name} values (1, 1), (2, 1)",
            )
        made.on_source("alter table child add foreign key (v) references parent (id)")
        yield made


def steps(definitions: dg.Definitions) -> dict[str, set[str]]:
    """Return the tables of each step that syncs."""
    found: dict[str, set[str]] = {}
    for one in definitions.get_repository_def().assets_defs_by_key.values():
        if one.is_executable:
            found[one.op.name] = {key.path[-1] for key in one.keys}
    return found


def materialised(result: dg.ExecuteInProcessResult) -> set[str]:
    return {
        event.asset_key.path[-1]
        for event in result.all_events
        if event.is_step_materialization and event.asset_key
    }


def pool_of(job: dg.JobDefinition) -> str | None:
    """Return the pool of the only step of a job."""
    (node,) = job.nodes
    assert isinstance(node.definition, dg.OpDefinition)
    return node.definition.pool


def schedules(definitions: dg.Definitions) -> dict[str, str]:
    found = definitions.get_repository_def().schedule_defs
    return {one.name: one.job_name for one in found if not one.name.endswith("_new_tables")}


@pytest.mark.parametrize("shards", [None, 1])
def test_without_shards_names_have_no_number(platform: Platform, shards: int | None) -> None:
    definitions = platform.load(**({"shards": shards} if shards else {}))
    assert steps(definitions) == {"fds_tables": set(TABLES)}
    assert schedules(definitions) == {"fds_sync": "fds_sync"}
    job = definitions.resolve_job_def("fds_sync")
    assert pool_of(job) == "fds"
    assert SHARD_TAG not in job.tags
    check_keys = definitions.resolve_asset_graph().asset_check_keys
    assert "joined_tables_share_a_shard" not in {key.name for key in check_keys}


@pytest.mark.parametrize(("shards", "expected"), [(2, 2), (3, 3), (50, 5)])
def test_each_shard_has_its_step_job_schedule_pool_and_tag(
    platform: Platform, shards: int, expected: int
) -> None:
    """With more shards than tables there is one for each, and one for those that are joined."""
    definitions = platform.load(shards=shards)
    found = steps(definitions)
    assert len(found) == expected
    assert set.union(*found.values()) == set(TABLES)
    assert sum(map(len, found.values())) == len(TABLES)
    assert [tables for tables in found.values() if "child" in tables and "parent" in tables]
    numbers = sorted(int(step.removeprefix("fds_tables_")) for step in found)
    names = {f"fds_sync_{number}" for number in numbers}
    assert schedules(definitions) == {name: name for name in names}
    repository = definitions.get_repository_def()
    for number in numbers:
        job = definitions.resolve_job_def(f"fds_sync_{number}")
        assert [node.name for node in job.nodes] == [f"sync_fds_{number}"]
        assert pool_of(job) == f"fds_{number}"
        assert job.tags[SHARD_TAG] == str(number)
        for table in found[f"fds_tables_{number}"]:
            key = dg.AssetKey(["raw_data", table])
            assert repository.asset_graph.get(key).tags[SHARD_TAG] == str(number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Dagster's parser uses what it warns of
            chosen = dg.AssetSelection.from_string(f'tag:"{SHARD_TAG}"="{number}"')
        assert {key.path[-1] for key in chosen.resolve(repository.asset_graph)} == (
            found[f"fds_tables_{number}"]
        )
    checks = {one.op.name for one in repository.asset_checks_defs_by_key.values()}
    assert {f"fds_tables_checks_{number}" for number in numbers} <= checks


def test_a_pool_that_is_given_is_that_of_all_shards(platform: Platform) -> None:
    definitions = platform.load(shards=3, pool="target")
    pools = {
        one.op.pool
        for one in definitions.get_repository_def().assets_defs_by_key.values()
        if one.is_executable
    }
    assert pools == {"target"}


@pytest.mark.parametrize(
    ("attributes", "sizes"),
    [
        ("", [6]),
        ("shards: 1", [6]),
        ("shards: 2", [3, 3]),
        ("shards: 40", [1, 1, 2, 2]),
        ("shards: 40\nkeep_joined: false", [1, 1, 1, 1, 2]),
    ],
)
def test_the_yaml_says_which_tables_share_a_shard(
    platform: Platform, attributes: str, sizes: list[int]
) -> None:
    tables = "[{table: a, together: x}, {table: b, together: x}, {table: public.*}]"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Dagster's parser uses what pydantic warns of
        entry = XminTables.resolve_from_yaml(f"name: fds\ntables: {tables}\n{attributes}")
    with loading_on(Machine(platform.settings.data_dir, platform.settings.source)):
        made = entry.build_defs(None)  # type: ignore[arg-type]
    steps = [one for one in made.assets or () if isinstance(one, dg.AssetsDefinition)]
    assert sorted(len(list(one.keys)) for one in steps) == sizes


def test_a_shard_of_a_queue_has_both_tags(platform: Platform) -> None:
    """So that each run of a shard is taken by a free worker of the queue."""
    definitions = platform.load(shards=2, host="warehouse")
    for number in ("1", "2"):
        tags = definitions.resolve_job_def(f"fds_sync_{number}").tags
        assert (tags[HOST_TAG], tags[SHARD_TAG]) == ("warehouse", number)
    nodes = definitions.resolve_asset_graph().asset_nodes
    assert {
        (node.tags[HOST_TAG], node.tags[SHARD_TAG]) for node in nodes if node.is_materializable
    } == {("warehouse", "1"), ("warehouse", "2")}


def test_two_entries_have_their_own_shards(platform: Platform) -> None:
    both = dg.Definitions.merge(
        platform.load(TableEntry(table="a"), TableEntry(table="b"), shards=2),
        dg.Definitions(
            assets=(other := _other(platform)).assets,
            asset_checks=other.asset_checks,
            jobs=other.jobs,
            schedules=other.schedules,
        ),
    )
    assert set(schedules(both)) == {"fds_sync_1", "fds_sync_2", "shop_sync_1", "shop_sync_2"}


def _other(platform: Platform) -> dg.Definitions:
    tables = [TableEntry(table="c"), TableEntry(table="d")]
    entry = XminTables(name="shop", into="shop", tables=tables, shards=2, keep_joined=False)
    with loading_on(Machine(platform.settings.data_dir, platform.settings.source)):
        return entry.build_defs(None)  # type: ignore[arg-type]


def test_the_runs_of_all_shards_sync_every_table_once(platform: Platform) -> None:
    definitions = platform.load(shards=3)
    found = steps(definitions)
    for step, tables in found.items():
        result = platform.run(definitions, step.replace("tables", "sync"))
        assert result.success
        assert materialised(result) == tables
        assert all(one.passed for one in result.get_asset_check_evaluations())
        assert len(result.get_asset_check_evaluations()) == 2 * len(tables)
    with psycopg.connect(platform.settings.target) as target:
        for name in TABLES:
            query = sql.SQL("select count(*) from {}").format(sql.Identifier("raw_data", name))
            assert target.execute(query).fetchone() == (2,)
    idle = platform.run(definitions, next(iter(found)).replace("tables", "sync"))
    assert idle.success
    assert materialised(idle) == set()
    assert len(platform.instance.all_logs(idle.run_id)) < 12


def test_a_shard_that_fails_does_not_hold_the_others_back(platform: Platform) -> None:
    """In a run of its own, and in one run of all."""
    definitions = platform.load(shards=3)
    found = steps(definitions)
    failing = next(step for step, tables in found.items() if "a" in tables)
    platform.on_source("drop table a")
    everything = platform.run(definitions, "__ASSET_JOB")
    assert not everything.success
    assert materialised(everything) == set(TABLES) - {"a"}
    failed = {event.node_name for event in everything.all_events if event.is_step_failure}
    assert failed == {failing}
    platform.on_source(*(f"insert into {name} values (3, 1)" for name in TABLES[1:]))
    outcomes = {
        step: platform.run(definitions, step.replace("tables", "sync")).success for step in found
    }
    assert outcomes == {step: step != failing for step in found}


def test_a_foreign_key_that_came_later_is_named_until_the_next_reload(platform: Platform) -> None:
    definitions = platform.load(shards=50)
    name = "joined_tables_share_a_shard"
    assert platform.check(definitions, name).passed
    number = {
        table: step.removeprefix("fds_tables_")
        for step, tables in steps(definitions).items()
        for table in tables
    }
    platform.on_source("alter table b add foreign key (v) references a (id)")
    found = platform.check(definitions, name)
    assert not found.passed
    assert found.severity is dg.AssetCheckSeverity.WARN
    assert (
        f"public.b (shard {number['b']}) refers to public.a (shard {number['a']}): they are "
        "copied at two snapshots. Reload the definitions" in str(found.description)
    )
    again = platform.load(shards=50)
    assert platform.check(again, name).passed
    assert [tables for tables in steps(again).values() if tables == {"a", "b"}]


def test_shards_of_named_tables_use_the_list_that_is_kept(platform: Platform) -> None:
    """Foreign keys are known while the source is away, and without a pattern too."""
    named = [TableEntry(table=name) for name in TABLES]
    before = steps(platform.load(*named, shards=50))
    assert {"parent", "child"} in before.values()
    away = SecretStr("postgresql://nobody@127.0.0.1:1/nothing")
    platform.settings = platform.settings.model_copy(update={"source_dsn": away})
    assert steps(platform.load(*named, shards=50)) == before


class Blocked:
    """A run in a thread, held up at a table of the target."""

    def __init__(self, platform: Platform, job: dg.JobDefinition, table: str) -> None:
        self._lock = psycopg.connect(platform.settings.target)
        self._lock.execute(sql.SQL("lock table {}").format(sql.Identifier("raw_data", table)))
        self.result: dg.ExecuteInProcessResult | None = None

        def run() -> None:
            self.result = job.execute_in_process(
                instance=platform.instance, raise_on_error=False, run_id=RUN
            )

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def release(self) -> dg.ExecuteInProcessResult:
        self._lock.close()
        self._thread.join(60)
        assert self.result is not None
        return self.result


RUN = "6a4f4d9e-3c3c-4f6e-9d3a-0f4f3f0f6f5a"


def within(seconds: float, is_true: Callable[[], bool]) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if is_true():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("job", ["fds_sync", "__ASSET_JOB"])
def test_a_table_is_reported_while_others_still_wait(
    platform: Platform, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running_sync, "LOG_EVERY_S", 0.5)
    definitions = platform.load()
    assert platform.run(definitions, job).success
    platform.on_source(*(f"insert into {name} values (3, 1)" for name in TABLES))
    blocked = Blocked(platform, definitions.resolve_job_def(job), "c")

    def reported() -> set[str]:
        return {
            entry.dagster_event.asset_key.path[-1]
            for entry in platform.instance.all_logs(RUN)
            if entry.dagster_event
            and entry.dagster_event.is_step_materialization
            and entry.dagster_event.asset_key
        }

    def logged() -> bool:
        return any(
            "2 of 6 tables are committed" in entry.user_message
            for entry in platform.instance.all_logs(RUN)
        )

    try:
        assert within(20, lambda: reported() == {"a", "b"})
        assert within(20, logged)
        assert reported() == {"a", "b"}
    finally:
        result = blocked.release()
    assert result.success
    assert reported() == set(TABLES)
