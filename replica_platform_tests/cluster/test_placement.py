"""Which queue a run gets, however it is asked for; and the settings of a cluster."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster_graphql.test.utils import execute_dagster_graphql

from replica_platform.app.project import CLUSTER_INSTANCE, INSTANCE
from replica_platform_tests.faults.cluster_hosts import (
    LAUNCH,
    OUTBOX,
    Asking,
    Cluster,
    Refused,
    asking,
)

pytest.importorskip("dagster_celery", reason="the extra `cluster` is not installed")
TABLES = """
type: replica_platform.components.XminTables
attributes:
  name: orders
  host: warehouse
  tables: [{table: public.orders}]
"""
# What a cluster has of its own.
OWN = {"run_coordinator", "run_launcher", "run_queue", "run_monitoring", "run_retries"}


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def ask(
    server: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch_module: pytest.MonkeyPatch
) -> Iterator[Asking]:
    """A code server without a broker, a daemon or a worker: runs are placed when submitted."""
    for name in ("placement_dagster", "placement_target"):
        server.make_database(name)
    cluster = Cluster(
        tmp_path_factory.mktemp("placement"),
        server.dsn("placement_dagster"),
        server.dsn("placement_target"),
        entries=[OUTBOX.format(host="a"), TABLES],
    )
    cluster.start_code_server()
    with asking(cluster, monkeypatch_module) as found:
        yield found
    cluster.stop_all()


def queue(ask: Asking, run_id: str) -> str:
    return ask.run(run_id).tags["dagster-celery/queue"]


@pytest.mark.parametrize(
    ("asset", "host"),
    [
        ("quick_a", "a"),
        ("quick_b", "b"),
        ("records_a", "a"),
        ("slow_shared", "shared"),
        ("raw_data/orders", "warehouse"),
        ("plain", "central"),
    ],
)
def test_assets_go_to_their_host(ask: Asking, asset: str, host: str) -> None:
    assert queue(ask, ask.launch(asset)) == host


def test_assets_of_one_host_share_a_run(ask: Asking) -> None:
    assert queue(ask, ask.launch("quick_a", "records_a", "slow_a")) == "a"


def launched(ask: Asking, job: str, **selector: Any) -> str:
    params = {
        "selector": {
            "repositoryLocationName": "shop",
            "repositoryName": "__repository__",
            "pipelineName": job,
            **selector,
        },
        "mode": "default",
        "runConfigData": {},
    }
    context = ask.context.create_request_context()
    answer = execute_dagster_graphql(context, LAUNCH, variables={"p": params})
    return str(answer.data["launchPipelineExecution"]["run"]["runId"])


def test_a_check_goes_to_the_host_of_its_asset(ask: Asking) -> None:
    check = {"assetKey": {"path": ["records_a"]}, "name": "no_row_is_dead"}
    run = launched(ask, "__ASSET_JOB", assetSelection=[], assetCheckSelection=[check])
    assert queue(ask, run) == "a"


@pytest.mark.parametrize(
    ("job", "host"),
    [("records_a_drain", "a"), ("orders_sync", "warehouse"), ("housekeeping", "central")],
)
def test_jobs_of_schedules_go_to_their_host(ask: Asking, job: str, host: str) -> None:
    assert queue(ask, launched(ask, job)) == host


def test_a_queue_that_was_asked_for_is_kept(ask: Asking) -> None:
    assert queue(ask, ask.launch("quick_a", tags={"dagster-celery/queue": "b"})) == "b"


@pytest.mark.parametrize("other", ["quick_b", "plain", "raw_data/orders"])
def test_assets_of_two_hosts_are_refused_once(ask: Asking, other: str) -> None:
    before = set(ask.instance.get_run_ids())
    with pytest.raises(Refused, match="live on several hosts") as refused:
        ask.launch("quick_a", other)
    assert "a (quick_a)" in str(refused.value) and other in str(refused.value)
    (run,) = set(ask.instance.get_run_ids()) - before
    assert ask.status(run) == "FAILURE"
    assert ask.run(run).tags["dagster/max_retries"] == "0"


def test_a_run_says_that_its_host_is_away(ask: Asking) -> None:
    run = ask.launch("quick_b")
    assert ask.status(run) == "QUEUED"
    assert (
        "This run waits for a worker. b: no worker has ever served it. Start it there with "
        "`replica worker --host b`."
    ) in ask.messages(run)


def test_without_a_worker_or_a_broker_no_queue_takes_runs(ask: Asking) -> None:
    config = ask.instance.get_concurrency_config().run_queue_config
    assert config is not None
    # The broker of this cluster does not run.
    assert {"key": "dagster-celery/queue", "limit": 0} in config.tag_concurrency_limits


def test_a_cluster_has_the_settings_of_one_machine_besides_its_own() -> None:
    one, several = (yaml.safe_load(file.read_text()) for file in (INSTANCE, CLUSTER_INSTANCE))
    assert set(several) - set(one) == {"run_coordinator", "run_launcher"}
    one["concurrency"].pop("runs")
    for name in set(one) - OWN:
        assert several[name] == one[name], name


def test_a_project_of_a_cluster(tmp_path: Path, cli: Callable[..., Any]) -> None:
    made = cli("init", "--cluster", tmp_path / "shop")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "shop" / "dagster.yaml").read_text() == CLUSTER_INSTANCE.read_text()
    assert "REPLICA_BROKER_URL" in (tmp_path / "shop" / ".env").read_text()
