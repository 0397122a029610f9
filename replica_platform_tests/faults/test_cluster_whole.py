"""The whole on two hosts: outboxes, shards of tables, and a generation that another region reads.

Each host has its data folder, its worker and its outbox. Tables go over both, a master is written
on a, and what follows, the publication on a and the pull on b, is asked for by automation alone. In
the middle of a pull the bucket stands still, or refuses and resets every connection.
"""

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster_graphql.test.utils import execute_dagster_graphql

from replica_platform.outbox import Outbox
from replica_platform.replica import BlockStore, ReplicaReader
from replica_platform_tests.faults.cluster_hosts import (
    OUTBOX,
    TIMEOUT_S,
    Asking,
    Cluster,
    asking,
    free_port,
    missing,
    wait_until,
)
from replica_platform_tests.faults.outbox_proxy import Proxy

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.timeout(TIMEOUT_S),
]
RECORDS = 500
AUTOMATED_WITHIN_S = 180.0
TABLES = """
type: replica_platform.components.XminTables
attributes:
  name: warehouse
  host: shared
  shards: 2
  into: copies
  tables: [{table: shop.*}]
"""
SHOP = """
type: replica_platform.components.DuckDBReplica
attributes:
  name: shop
  host: a
  master: shop.duckdb
  after: [stock]
  blocks: s3://generations/shop
  regions: [{host: b}]
"""
ASSETS = """
import dagster as dg
from replica_platform.app.entries.base import host_pool, host_tags
from replica_platform.replica import Master
from replica_platform.resources.platform import PlatformConfig


@dg.asset(tags=host_tags("a"), pool=host_pool("shop_master", "a"))
def stock(platform: PlatformConfig) -> None:
    with Master(platform.path("shop.duckdb")).write() as connection:
        connection.execute("create table if not exists counted (round int, piece varchar)")
        connection.execute(
            "insert into counted select coalesce((select max(round) from counted), 0) + 1, "
            "md5(random()::varchar) from range(200000)"
        )
"""
SEEN = """
query { assetNodes { assetKey { path } tags { key value }
  assetMaterializations(limit: 1) { runId } } }
"""
KEY = dg.AssetKey(["regions", "b", "shop"])


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A bucket `generations`, behind a proxy that can hold back what is sent, or refuse it."""
    port = free_port()
    with Proxy(("127.0.0.1", port)) as proxy, (tmp_path / "bucket.log").open("wb") as log:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }.items():
            monkeypatch.setenv(name, value)
        server = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(server, stdout=log, stderr=log)
        try:
            wait_until(lambda: _listens(port), "the bucket listens")
            make = urllib.request.Request(f"http://127.0.0.1:{port}/generations", method="PUT")
            urllib.request.urlopen(make).close()
            yield proxy
        finally:
            process.kill()
            process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def away(bucket: Proxy, mode: str) -> Iterator[None]:
    """Let the bucket hold back (`hold`) or reset (`refuse`) every connection."""
    bucket.mode = mode
    if mode == "refuse":
        bucket.reset()
    try:
        yield
    finally:
        bucket.mode = "ok"


def rounds(cluster: Cluster) -> dict[int, int]:
    """The rows of each round that readers in the region see."""
    store = cluster.folder / "b" / "regions" / "b" / "shop"
    with ReplicaReader(store) as reader:
        return dict(reader.query("select round, count(*) from counted group by round order by 1"))


def pulled(ask: Asking) -> int:
    """The newest generation whose pull was reported; 0 before the first one."""
    event = ask.instance.get_latest_materialization_event(KEY)
    if event is None or event.asset_materialization is None:
        return 0
    return int(str(event.asset_materialization.metadata["generation"].value))


def pulls(ask: Asking) -> bool:
    """Whether a run of the region's asset is under way."""
    runs = ask.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    return any(KEY in (run.asset_selection or ()) for run in runs)


def test_the_whole(
    clusters: Callable[..., Cluster],
    monkeypatch: pytest.MonkeyPatch,
    torture: bool,
    bucket: Proxy,
) -> None:
    entries = [OUTBOX.format(host="a"), OUTBOX.format(host="b"), TABLES, SHOP]
    cluster = clusters("whole", assets=ASSETS, entries=entries)
    count = 200 if torture else 20
    with psycopg.connect(cluster.target, autocommit=True) as source:
        source.execute("create schema shop")
        for number in range(count):
            source.execute(
                f"create table shop.t{number} as select g id, g * {number} v "
                "from generate_series(1, 50) g"
            )
            source.execute(f"alter table shop.t{number} add primary key (id)")
    for host in "ab":
        box = cluster.folder / host / "outbox" / "worker-1.db"
        box.parent.mkdir(parents=True)
        with Outbox(box) as outbox:
            outbox.append_many("sale", [{"host": host, "n": n} for n in range(RECORDS)])
    cluster.start_all("a", "b")
    with asking(cluster, monkeypatch) as ask:
        runs = [ask.launch(f"records_{host}") for host in "ab"]
        runs.append(ask.launch(*(f"copies/t{number}" for number in range(count))))
        runs.append(ask.launch("stock"))
        for run in runs:
            ask.wait(run, within_s=AUTOMATED_WITHIN_S)
            assert ask.status(run) == "SUCCESS", ask.messages(run)
        # Publication on a and pull on b follow by themselves.
        wait_until(
            lambda: pulled(ask) == 1,
            "b has pulled the first generation",
            cluster.log("daemon"),
            within_s=AUTOMATED_WITHIN_S,
        )
        assert rounds(cluster) == {1: 200_000}
        assert_delivered_and_equal(cluster, count)
        assert_seen(cluster, ask, count)
        times = 20 if torture else 1
        for _ in range(times):
            for mode in ("hold", "refuse"):
                in_mid_pull(cluster, ask, bucket, mode)
    print(
        f"two hosts: {2 * RECORDS:,} records once, {count} tables equal, generation pulled by "
        f"automation; in {times} rounds of a bucket that stood still or refused in mid-pull, "
        "readers kept the earlier one"
    )


def assert_delivered_and_equal(cluster: Cluster, count: int) -> None:
    rows = cluster.query(
        cluster.target,
        "select payload->>'host', count(*), count(distinct id) from outbox.record group by 1",
    )
    assert sorted(rows) == [("a", RECORDS, RECORDS), ("b", RECORDS, RECORDS)]
    for number in range(count):
        (different,) = cluster.query(
            cluster.target,
            f"select count(*) from (select id, v from shop.t{number} except "
            f"select id, v from copies.t{number}) x",
        )[0]
        (there,) = cluster.query(cluster.target, f"select count(*) from copies.t{number}")[0]
        assert (different, there) == (0, 50), number


def assert_seen(cluster: Cluster, ask: Asking, count: int) -> None:
    """All of it is in one UI, and each run ran on the host of its asset."""
    nodes = execute_dagster_graphql(ask.context.create_request_context(), SEEN).data["assetNodes"]
    homes: dict[str, Any] = {}
    for node in nodes:
        if node["assetMaterializations"]:
            tags = {tag["key"]: tag["value"] for tag in node["tags"]}
            run = ask.run(node["assetMaterializations"][0]["runId"])
            homes["/".join(node["assetKey"]["path"])] = tags["replica/host"]
            assert run.tags["dagster-celery/queue"] == tags["replica/host"], node
    tables = {f"copies/t{number}": "shared" for number in range(count)}
    hosts = {"records_a": "a", "records_b": "b", "stock": "a", "shop": "a", "regions/b/shop": "b"}
    assert homes == tables | hosts


def in_mid_pull(cluster: Cluster, ask: Asking, bucket: Proxy, mode: str) -> None:
    store = BlockStore("s3://generations/shop")
    seen = rounds(cluster)
    generation = len(seen) + 1
    before = ask.launch("stock")
    ask.wait(before, within_s=AUTOMATED_WITHIN_S)
    wait_until(
        lambda: (store.current() or NEVER).generation == generation,
        "the next generation is pushed",
        cluster.log("daemon"),
        within_s=AUTOMATED_WITHIN_S,
    )
    with away(bucket, mode):
        run = ask.launch("regions/b/shop")
        # Automation may have begun with it before; ours then waits for that run.
        wait_until(lambda: pulls(ask), "a pull is under way", lambda: ask.messages(run))
        # Readers of the region are not held up, and see no half of the next generation.
        for _ in range(20):
            assert rounds(cluster) == seen
            time.sleep(0.25)
    wait_until(
        lambda: pulled(ask) == generation,
        "b has pulled the next generation",
        lambda: ask.messages(ask.newest(run).run_id),
        within_s=AUTOMATED_WITHIN_S,
    )
    assert rounds(cluster) == seen | {generation: 200_000}


class _Never:
    generation = 0


NEVER = _Never()
