"""Purposes in a `defs.yaml`: an asset for each, and a warning about unlisted columns."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import duckdb
import pytest
from dagster.components.core.component_tree import ComponentTreeException
from dagster.components.testing import create_defs_folder_sandbox

from replica_platform.components import PurposeReplicas
from replica_platform.io_managers.published_replica import PublishedReplicaIOManager
from replica_platform.replica import Master
from replica_platform.resources.platform import PlatformConfig

CHECK = "every_column_is_listed"

# Dagster's own code raises these while it loads a `defs.yaml`.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*parse_obj_as"),
    pytest.mark.filterwarnings("ignore:Parameter `owners` of initializer"),
    pytest.mark.filterwarnings("ignore:Class `.*CodeReference.*` is currently in beta"),
]


@pytest.fixture
def master(tmp_path: Path) -> Master:
    master = Master(tmp_path / "master.duckdb")
    with master.write() as connection:
        connection.execute("create table ohlcv as select date '2026-01-02' as day, 'IBM' as symbol")
        connection.execute("create table watchlist as select 'IBM' as symbol, 1 as last_price")
    return master


@contextmanager
def loaded(purposes: str, resources: dict[str, object]) -> Iterator[dg.Definitions]:
    """The definitions that Dagster loads from a `defs.yaml` with that text."""
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(PurposeReplicas)
        (path / "defs.yaml").write_text(
            "type: replica_platform.components.PurposeReplicas\n"
            f"attributes:\n  master: master.duckdb\n  purposes:{purposes}\n"
        )
        with sandbox.load_component_and_build_defs(path) as (_, definitions):
            running = dg.Definitions(resources=resources, executor=dg.in_process_executor)
            yield dg.Definitions.merge(definitions, running)


@pytest.fixture
def resources(master: Master, tmp_path: Path) -> dict[str, object]:
    platform = PlatformConfig(data_dir=str(tmp_path), backup_dir=str(tmp_path / "backups"))
    return {
        "platform": platform,
        "published_replica": PublishedReplicaIOManager(platform=platform),
    }


def run(definitions: dg.Definitions, selection: dg.AssetSelection) -> dg.ExecuteInProcessResult:
    job = dg.define_asset_job("selected", selection=selection)
    both = dg.Definitions.merge(definitions, dg.Definitions(jobs=[job]))
    return both.resolve_job_def("selected").execute_in_process()


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_none_one_two_and_many_purposes(
    count: int, resources: dict[str, object], tmp_path: Path
) -> None:
    purposes = "".join(
        f"\n    p{n}: {{tables: {{watchlist: {{columns: [symbol], left_out: [last_price]}}}}}}"
        for n in range(count)
    )
    with loaded(purposes or " {}", resources) as definitions:
        keys = definitions.resolve_asset_graph().materializable_asset_keys
        assert {key.to_user_string() for key in keys} == {f"purposes/p{n}" for n in range(count)}
        if count == 0:
            return
        result = run(definitions, dg.AssetSelection.all())
    passed = {
        (one.asset_key.path[-1], one.check_name): one.passed
        for one in result.get_asset_check_evaluations()
    }
    assert len(passed) == 4 * count
    assert all(passed.values())
    for n in range(count):
        replica = tmp_path / "replica" / "purposes" / f"p{n}" / "stock_data_replica.db"
        with duckdb.connect(str(replica), read_only=True) as reader:
            assert reader.execute("from watchlist").fetchall() == [("IBM",)]


def test_unlisted_columns_are_a_warning_that_names_them(
    resources: dict[str, object], master: Master
) -> None:
    purposes = (
        "\n    one: {tables: {watchlist: {columns: [symbol, last_price]}}}"
        "\n    two: {tables: {watchlist: {columns: [symbol], left_out: all}}}"
    )
    with loaded(purposes, resources) as definitions:

        def evaluate() -> dict[str, dg.AssetCheckEvaluation]:
            result = run(definitions, dg.AssetSelection.all())
            assert result.success
            found = result.get_asset_check_evaluations()
            return {one.asset_key.path[-1]: one for one in found if one.check_name == CHECK}

        before = evaluate()
        assert before["one"].passed
        with master.write() as connection:
            connection.execute("alter table watchlist add column phone varchar default '555'")
        after = evaluate()
        with master.write() as connection:
            connection.execute("alter table watchlist add column mail varchar default '@'")
        many = evaluate()
        graph = definitions.resolve_asset_graph()
        key = dg.AssetCheckKey(dg.AssetKey(["purposes", "one"]), CHECK)
        assert not graph.get_check_spec(key).blocking
    assert not after["one"].passed
    assert after["one"].severity == dg.AssetCheckSeverity.WARN
    assert "watchlist.phone" in str(after["one"].description)
    assert "watchlist.mail, watchlist.phone" in str(many["one"].description)
    assert after["two"].passed
    assert many["two"].passed


def test_the_check_can_be_run_without_a_publication(resources: dict[str, object]) -> None:
    with loaded("\n    one: {tables: {watchlist: {columns: all}}}", resources) as definitions:
        run(definitions, dg.AssetSelection.assets(dg.AssetKey(["purposes", "one"])))
        key = dg.AssetCheckKey(dg.AssetKey(["purposes", "one"]), CHECK)
        result = run(definitions, dg.AssetSelection.checks(key))
    assert CHECK in [one.check_name for one in result.get_asset_check_evaluations()]


@pytest.mark.parametrize(
    ("purposes", "message"),
    [
        ("\n    one: {tables: {watchlist: {colums: [symbol]}}}", "do you mean 'columns'"),
        ("\n    one: {tables: {watchlist: {columns: []}}}", "columns is empty"),
        ("\n    one: {tables: {watchlist: }}", "needs columns"),
        (
            "\n    one:\n      tables:\n        watchlist:\n          columns: [symbol]\n"
            "          mask: {symbol: 'null'}\n          mask: {last_price: 'null'}",
            "the key mask is written twice",
        ),
    ],
)
def test_an_ambiguous_purpose_is_not_loaded(purposes: str, message: str) -> None:
    with pytest.raises(ComponentTreeException) as raised, loaded(purposes, {}):
        pass
    causes = []
    error: BaseException | None = raised.value
    while error is not None:
        causes.append(str(error))
        error = error.__cause__
    assert any(message in cause for cause in causes), causes
