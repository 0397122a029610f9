"""Hosts in a `defs.yaml`: tags of assets, pools, and an automation sensor for each host."""

import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from replica_platform.app.configured import configured
from replica_platform.app.entries import WrongEntry
from replica_platform.app.entries.base import HOST_TAG
from replica_platform.app.project import init_project
from replica_platform.app.settings import Settings
from replica_platform.definitions import build_defs

ENTRIES = {
    "DuckDBReplica": """
  name: {name}_master_copy
  after: [bars]
  purposes: {{support: {{tables: {{bars: {{columns: [symbol]}}}}}}}}
""",
    "PurposeReplicas": """
  name: {name}_parts
  purposes: {{sales: {{tables: {{bars: {{columns: [symbol]}}}}}}}}
""",
    "WorkerOutboxes": """
  name: {name}_outbox
  nodes: {{local: outbox}}
""",
    "SqliteBackups": """
  name: {name}_backups
  pool: disk
  files: [{{path: app.db}}]
""",
    "XminTables": """
  name: {name}_tables
  into: {name}
  tables: [{{table: public.*}}, {{table: public.orders}}]
""",
}
ASSETS = 6  # with the purpose of the replica, and without what others write
Build = dict[str, list[str]]


@pytest.fixture(autouse=True)
def _modules() -> Iterator[None]:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "shop":
            del sys.modules[name]


def project(folder: Path, *hosts: str | None) -> dg.Definitions:
    """The definitions of a project with every component once for each host."""
    (folder / "shop").mkdir(parents=True)
    init_project(folder / "shop")
    for number, host in enumerate(hosts):
        name = host or f"plain{number}"
        path = folder / "shop" / "shop" / "defs" / name / "defs.yaml"
        path.parent.mkdir()
        documents = [
            f"type: replica_platform.components.{kind}\nattributes:{text.format(name=name)}"
            + (f"  host: {host}\n" if host else "")
            for kind, text in ENTRIES.items()
        ]
        path.write_text("---\n".join(documents))
    (folder / "shop" / "shop" / "defs" / "bars.py").write_text(
        "import dagster as dg\n\n@dg.asset\ndef bars(): ...\n"
    )
    assert len(configured(folder / "shop" / "shop" / "defs").entries) == len(hosts) * len(ENTRIES)
    settings = Settings(data_dir=folder / "data", sample=False, _env_file=None)
    sys.path.insert(0, str(folder / "shop"))
    try:
        return build_defs(settings, folder / "shop")
    finally:
        sys.path.remove(str(folder / "shop"))


def hosts_by_asset(definitions: dg.Definitions) -> dict[str, str | None]:
    graph = definitions.resolve_asset_graph()
    return {
        key.to_user_string(): graph.get(key).tags.get(HOST_TAG)
        for key in graph.materializable_asset_keys
    }


def automation(definitions: dg.Definitions) -> dict[str, tuple[set[str], set[str]]]:
    """The assets and the checks that each automation sensor looks at."""
    graph = definitions.resolve_asset_graph()
    return {
        sensor.name: (
            {key.to_user_string() for key in sensor.asset_selection.resolve(graph)},
            {key.to_user_string() for key in sensor.asset_selection.resolve_checks(graph)},
        )
        for sensor in definitions.get_repository_def().sensor_defs
        if isinstance(sensor, dg.AutomationConditionSensorDefinition)
    }


def pools(definitions: dg.Definitions) -> set[str]:
    repository = definitions.get_repository_def()
    nodes = [node for job in repository.get_all_jobs() for node in job.all_node_defs]
    return {node.pool for node in nodes if isinstance(node, dg.OpDefinition) and node.pool}


@pytest.mark.parametrize("hosts", [["a"], ["a", "b"], ["a", "b", "c", "d", "e"]])
def test_every_asset_of_an_entry_lives_on_its_host(tmp_path: Path, hosts: list[str]) -> None:
    definitions = project(tmp_path, *hosts)
    found = hosts_by_asset(definitions)
    assert found.pop("bars") is None
    assert len(found) == ASSETS * len(hosts)
    for asset, host in found.items():
        assert host in asset.replace("/", "_").split("_"), asset


@pytest.mark.parametrize("hosts", [["a"], ["a", "b"], ["a", "b", "c", "d", "e"]])
def test_each_host_has_an_automation_sensor(tmp_path: Path, hosts: list[str]) -> None:
    definitions = project(tmp_path, *hosts)
    found = automation(definitions)
    name = "declarative_automation"
    assert set(found) == {name, *(f"{name}_{host}" for host in hosts)}
    by_asset = hosts_by_asset(definitions)
    checks = {
        key.to_user_string(): by_asset[key.asset_key.to_user_string()]
        for key in definitions.resolve_asset_graph().asset_check_keys
        if key.asset_key.to_user_string() in by_asset
    }
    for host in [None, *hosts]:
        assets, checked = found[f"{name}_{host}" if host else name]
        # With what others write, which no sensor asks for.
        assert assets & set(by_asset) == {asset for asset, at in by_asset.items() if at == host}
        assert checked & set(checks) == {check for check, at in checks.items() if at == host}


def test_pools_are_of_one_host(tmp_path: Path) -> None:
    named = pools(project(tmp_path, "a", "b"))
    assert {f"{host}_master_copy_master_{host}" for host in "ab"} <= named
    assert {"disk_a", "disk_b"} <= named
    assert {"a_outbox_a", "b_outbox_b"} <= named
    # One pool for a replica and its purposes, and the tables share source and target.
    assert {"a_tables", "b_tables"} <= named
    assert not any(pool.endswith(("_a_a", "_b_b")) for pool in named)


def test_without_a_host_nothing_changes(tmp_path: Path) -> None:
    definitions = project(tmp_path, None)
    assert set(hosts_by_asset(definitions).values()) == {None}
    assert set(automation(definitions)) == {"declarative_automation"}
    assert {"plain0_master_copy_master", "plain0_outbox", "disk"} <= pools(definitions)


def test_jobs_of_an_op_name_their_host(tmp_path: Path) -> None:
    definitions = project(tmp_path, "a", None)
    jobs = {job.name: job.run_tags for job in definitions.get_repository_def().get_all_jobs()}
    assert jobs["a_tables_sync"][HOST_TAG] == "a"
    assert HOST_TAG not in jobs["plain1_tables_sync"]


def test_checks_of_what_others_write_have_a_host(tmp_path: Path) -> None:
    graph = project(tmp_path, "a").resolve_asset_graph()
    homeless = {
        key.to_user_string()
        for key in graph.asset_check_keys
        if graph.get(key.asset_key).tags.get(HOST_TAG) != "a"
    }
    assert homeless == set()


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("  host: db-1\n", "host: 'db-1' is not a name of letters, digits and _"),
        ("  tags: {replica/host: a}\n", "write `host: a` beside `tags`"),
    ],
)
def test_a_wrong_host_is_refused(tmp_path: Path, text: str, cause: str) -> None:
    (tmp_path / "defs.yaml").write_text(
        "type: replica_platform.components.WorkerOutboxes\nattributes:\n"
        f"  nodes: {{a: outbox}}\n{text}"
    )
    with pytest.raises(WrongEntry) as refused:
        configured(tmp_path)
    assert cause in str(refused.value)
    assert "line 4" in str(refused.value)
