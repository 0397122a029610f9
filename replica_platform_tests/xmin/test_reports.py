"""Every result says whether all is well, in a sentence, and is fit for JSON."""

import json
from typing import Any

import pandas as pd
import pytest

from replica_platform import xmin
from replica_platform.core.reports import Report
from replica_platform.xmin import TableSpec, WriteMethod, sync, sync_group
from replica_platform_tests.xmin.helpers import execute


def check(report: Report, *, ok: bool) -> dict[str, Any]:
    """Check what is common to all reports; return the report as JSON has it."""
    assert report.ok is ok
    assert report.sentence
    read: dict[str, Any] = json.loads(json.dumps(report.as_dict()))
    assert (read["ok"], read["sentence"]) == (ok, report.sentence)
    return read


@pytest.fixture
def table(source: str, target: str) -> None:
    execute(source, "create table t (id int primary key, x text)", "insert into t values (1, 'a')")


def test_reports_of_a_sync(source: str, target: str, table: None) -> None:
    alone = check(sync(source, target, "t"), ok=True)
    assert (alone["changed"], alone["rows_inserted"]) == (True, 1)
    group = sync_group(source, target, [TableSpec("t"), TableSpec("absent")])
    read = check(group, ok=False)
    assert read["reports"]["public.t"]["mode"] in ("scan", "none")
    assert "public.absent failed" in group.sentence


def test_status_and_proof(source: str, target: str, table: None) -> None:
    assert xmin.status(target) == []
    sync(source, target, "t")
    check(xmin.verify(source, target, "t"), ok=True)
    (found,) = xmin.status(target)
    assert check(found, ok=True)["target_table"] == "public.t"
    execute(source, "insert into t values (2, 'b')")
    check(xmin.validate(source, target, "t"), ok=False)
    execute(target, "drop table t")
    (gone,) = xmin.standings(target)
    assert "sync it again" in check(gone, ok=False)["sentence"]


def test_tuning_and_upsert(source: str, target: str) -> None:
    check(xmin.tune(source, target, workers=2, batch_bytes=65536), ok=True)
    check(xmin.merge_frame(target, "t", pd.DataFrame({"k": [1]}), ["k"]), ok=True)


def test_the_way_of_writing_is_reported(source: str, target: str, table: None) -> None:
    execute(source, "create table bag (a int)", "insert into bag values (1)")
    assert sync(source, target, "t").written_by == WriteMethod.FIRST_COPY
    assert sync(source, target, "bag").written_by == WriteMethod.FIRST_COPY
    execute(source, "insert into t values (2, 'b')")
    assert sync(source, target, "t").written_by == WriteMethod.MERGE
    assert sync(source, target, "t", mode="full").written_by == WriteMethod.REPLACE
    assert sync(source, target, "t", mode="full", deletes="never").written_by == WriteMethod.MERGE
    assert sync(source, target, "bag").written_by == WriteMethod.MULTISET
    execute(target, "delete from t where id = 1", "update replica_platform.mark set rows = 1")
    assert sync(source, target, "t").written_by == WriteMethod.REPAIR
