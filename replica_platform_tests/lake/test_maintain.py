"""Upkeep: small files merged, snapshots and files removed, nothing of another lake's."""

from dataclasses import replace
from pathlib import Path

import pytest

from replica_platform.lake import (
    Lake,
    LakeMissing,
    LakeWriter,
    WrongLake,
    maintain,
    read_lake,
    status,
)
from replica_platform_tests.lake.conftest import MakeLake
from replica_platform_tests.lake.test_write import run


def files(lake: Lake) -> list[Path]:
    return sorted(Path(lake.data).rglob("*.parquet"))


def test_status_and_upkeep(make_lake: MakeLake) -> None:
    lake = make_lake()
    missing = status(lake)
    assert not missing.ok and "its first write makes it" in missing.sentence
    with pytest.raises(LakeMissing, match="correct its name"):
        maintain(lake)
    with LakeWriter(lake) as writer:
        writer.write(run("create table t (i int)"))
        for number in range(4):
            writer.write(run(f"insert into t values ({number})"))
        writer.write(run("delete from t where i = 0"))
        orphan = files(lake)[0].with_name("ducklake-of-a-killed-writer.parquet")
        orphan.write_bytes(b"half")

        found = status(lake)  # too young to be an orphan
        assert found.ok and found.listed and found.orphans == ()
        assert (found.newest, found.snapshots, found.tables, found.files) == (6, 7, 1, 3)
        found = status(lake, orphan_age_s=0)
        assert found.ok and found.orphans == (str(orphan),)
        assert "`replica lake maintain` removes 1 orphans" in found.sentence
        assert not status(lake, files=False).listed

        done = maintain(lake)  # nothing is old enough to go
        assert (done.ok, done.expired, done.removed, done.orphans) == (True, 0, 0, 0)
        assert done.merged == 3
        assert orphan.exists()
        done = maintain(lake, keep_s=0, orphan_age_s=0)
        assert done.expired >= 6 and done.removed >= 3 and done.orphans == 1
        assert not orphan.exists()
        found = status(lake, orphan_age_s=0)
        assert (found.ok, found.snapshots, found.orphans, found.scheduled) == (True, 1, (), 0)
        assert found.files == 1
        with read_lake(lake) as connection:
            rows = connection.execute("from t order by i").fetchall()
        assert rows == [(1,), (2,), (3,)]

        files(lake)[0].unlink()
        found = status(lake)
        assert not found.ok and len(found.missing) == 1
        assert "lacks 1 files" in found.sentence and "backup of its data" in found.sentence


def test_the_files_of_another_lake_are_not_orphans(make_lake: MakeLake) -> None:
    """Without the refusal, the upkeep of the outer lake removes the files of the inner one."""
    outer = make_lake("outer")
    inner = replace(make_lake("inner"), data=f"{outer.data}inner")
    for lake in (outer, inner):
        with LakeWriter(lake) as writer:
            writer.write(run("create table t as select 1 as i"))
    before = files(inner)
    assert before
    for lake in (outer, inner):
        with pytest.raises(WrongLake, match="one would remove the other's files"):
            maintain(lake, orphan_age_s=0)
    assert files(inner) == before
    with read_lake(outer, read_only=False) as plain:  # what the refusal prevents
        plain.execute("call ducklake_delete_orphaned_files('lake', cleanup_all => true)")
    assert files(inner) == []


def test_a_place_with_files_becomes_no_lake(make_lake: MakeLake) -> None:
    lake = make_lake()
    precious = Path(lake.data) / "2026" / "precious.parquet"
    precious.parent.mkdir(parents=True)
    precious.write_bytes(b"PAR1")
    with pytest.raises(WrongLake, match=r"1 Parquet files that belong to no lake.*empty place"):
        LakeWriter(lake)
    assert not status(lake).exists
    precious.rename(precious.with_suffix(".moved"))
    with LakeWriter(lake) as writer:
        assert writer.write(run("create table t (i int)")).snapshot == 1
