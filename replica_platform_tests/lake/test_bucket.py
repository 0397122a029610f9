"""A lake whose data is in a bucket: written, exported and kept up; and a bucket that is away."""

import threading
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from replica_platform.lake import (
    Lake,
    LakeUnavailable,
    LakeWriter,
    WrongLake,
    export,
    maintain,
    read_lake,
    status,
)
from replica_platform.lake.session import literal
from replica_platform.replica import Master, ReplicaReader, publish
from replica_platform_tests.faults.outbox_proxy import Proxy
from replica_platform_tests.lake.bucket import lake_bucket
from replica_platform_tests.lake.test_write import rows, run


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A bucket `lakes`, behind a proxy that can refuse every connection."""
    with lake_bucket() as (proxy, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield proxy


@pytest.fixture
def lake(bucket: Proxy, target: str, tmp_path: Path) -> Lake:
    """A lake in the bucket, at a place of its own, which nobody has made yet."""
    return Lake(target, "lake", f"s3://lakes/{tmp_path.name}/it's here")


def test_what_is_written_is_read_exported_and_published(lake: Lake, tmp_path: Path) -> None:
    with LakeWriter(lake) as writer:
        writer.write(run("create table t as select range as i from range(1000)"))
        first = writer.write(run("delete from t where i < 10"))
        writer.write(run("insert into t values (-1)"))
        assert rows(writer, "select count(*), min(i) from t") == [(991, -1)]
    with read_lake(lake, at=first.snapshot) as connection:
        assert connection.execute("select count(*) from t").fetchone() == (990,)
    master, store = Master(tmp_path / "exported.duckdb"), tmp_path / "store"
    with master.write() as connection:
        assert export(lake, connection).copied == ("main.t",)
    publish(master.path, store)
    with ReplicaReader(store) as reader:
        assert reader.query("select count(*), min(i) from t") == [(991, -1)]


def test_its_upkeep_removes_what_nothing_needs_and_nothing_else(lake: Lake) -> None:
    with LakeWriter(lake) as writer:
        writer.write(run("create table t (i int)"))
        for number in range(6):
            writer.write(run(f"insert into t select range + {100 * number} from range(100)"))

        def left_behind(connection) -> None:
            connection.execute("insert into t values (1)")
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            writer.write(left_behind)
    before = status(lake, orphan_age_s=0)
    assert before.ok, before.sentence
    done = maintain(lake, keep_s=0, orphan_age_s=0)
    assert done.ok, done.sentence
    assert done.merged == 6 and done.expired > 0
    after = status(lake, orphan_age_s=0)
    assert after.ok and after.orphans == (), after.sentence
    with read_lake(lake) as connection:
        found = connection.execute("select count(*), count(distinct i) from t").fetchone()
    assert found == (600, 600)


def test_a_bucket_that_is_away_loses_nothing_and_is_named(lake: Lake, bucket: Proxy) -> None:
    with LakeWriter(lake) as writer:
        writer.write(run("create table t as select 1 as i"))
        bucket.mode = "refuse"
        bucket.reset()
        with pytest.raises(LakeUnavailable, match="did not answer in 2 attempts") as refused:
            writer.write(run("insert into t select range from range(1000)"), attempts=2)
        with pytest.raises(duckdb.IOException) as unread, read_lake(lake) as connection:
            connection.execute("from t").fetchall()
        bucket.mode = "ok"
        for error in (refused, unread):
            assert "s3cr" not in str(error.value), error.value
        # Nothing of the write is there; the next one goes through, over the same writer.
        assert rows(writer, "select count(*) from t") == [(1,)]
        assert writer.write(run("insert into t values (2)")).ok
        assert rows(writer, "select count(*) from t") == [(2,)]


def test_a_write_waits_for_a_bucket_that_comes_back(lake: Lake, bucket: Proxy) -> None:
    with LakeWriter(lake) as writer:
        writer.write(run("create table t (i int)"))
        bucket.mode = "refuse"
        bucket.reset()
        healing = threading.Timer(1.0, setattr, [bucket, "mode", "ok"])
        healing.start()
        done = writer.write(run("insert into t select range from range(1000)"))
        healing.join()
        assert done.attempts > 1
        assert rows(writer, "select count(*), count(distinct i) from t") == [(1000, 1000)]


def test_what_the_bucket_refuses_is_not_tried_again(lake: Lake) -> None:
    missing = literal(f"{lake.data}nothing.parquet")
    calls = []
    with LakeWriter(lake) as writer:
        writer.write(run("create table t (i int)"))

        def refused(connection: duckdb.DuckDBPyConnection) -> None:
            calls.append(1)
            connection.execute(f"insert into t select 1 from {missing}")

        with pytest.raises(duckdb.HTTPException, match="404"):
            writer.write(refused)
        assert calls == [1]
        assert rows(writer, "select count(*) from t") == [(0,)]


def test_wrong_credentials_and_a_place_that_is_taken(
    lake: Lake, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LakeWriter(lake) as writer:
        writer.write(run("create table t as select 1 as i"))
    with pytest.raises(WrongLake, match="Parquet files that belong to no lake"):
        LakeWriter(Lake(target, "another", lake.data)).__enter__()
    there = Lake(target, "third", "s3://no-such-bucket/x")
    with pytest.raises(LakeUnavailable) as missing, LakeWriter(there) as writer:
        writer.write(run("create table t as select 1 as i"))
    assert "no-such-bucket" in str(missing.value) and "s3cr" not in str(missing.value)
