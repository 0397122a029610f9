"""Workers and batch bytes are chosen from the machine, shown with the measurement, overridable."""

import subprocess
import sys
import time

import pytest

from replica_platform.app.embedded import Server
from replica_platform.xmin import sync, tune
from replica_platform.xmin.copy.measure import Speed
from replica_platform.xmin.copy.tune import (
    LEAST_BATCH_BYTES,
    MOST_BATCH_BYTES,
    fitting_batch_bytes,
)
from replica_platform_tests.faults.outbox_proxy import Proxy
from replica_platform_tests.xmin.helpers import execute, rows


def test_the_measurement_is_reported_and_quick(source: str, target: str) -> None:
    began = time.monotonic()
    chosen = tune(source, target)
    assert time.monotonic() - began < 5
    assert LEAST_BATCH_BYTES <= chosen.batch_bytes <= MOST_BATCH_BYTES
    assert "MB/s were moved" in chosen.why["batch_bytes"]
    assert "limited by" in chosen.why["workers"]
    assert rows(target, "select count(*) from pg_class where relname ~ 'replica_'") == [(0,)]


def test_a_far_server_gets_larger_ranges(source: str, target: str, server: Server) -> None:
    near = started_in_ms(tune(source, target).why["batch_bytes"])
    with Proxy(server.socket_dir) as far:
        far.delay_s, far.mode = 0.02, "delay"
        assert started_in_ms(tune(far.dsn("xmin_source"), target).why["batch_bytes"]) > near + 30


def started_in_ms(why: str) -> float:
    """Return the milliseconds of a start, from the sentence."""
    return float(why.split("starting a COPY took ")[1].split(" ms")[0])


@pytest.mark.parametrize(
    ("start_s", "bytes_per_s", "mebibytes"),
    [(0.002, 157_286_400, 30), (0.05, 20_971_520, 100), (0.0001, 1e8, 8), (1.0, 1e9, 256)],
)
def test_the_smallest_range_that_fits_is_chosen(
    start_s: float, bytes_per_s: float, mebibytes: int
) -> None:
    assert fitting_batch_bytes(Speed(start_s, bytes_per_s)) == mebibytes << 20


def test_a_large_first_copy_is_measured(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    execute(
        source, "create table t as select i as id, repeat('x', 99) from generate_series(1, 999) i"
    )
    with caplog.at_level("INFO"):
        sync(source, target, "t", into="small")
        assert "not measured" in caplog.text
        caplog.clear()
        monkeypatch.setattr(sys.modules["replica_platform.xmin.group"], "MEASURED_FROM_BYTES", 1)
        sync(source, target, "t", into="large")
        assert "MB/s were moved" in caplog.text


def test_the_platforms_settings_are_not_read(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XMIN_WORKERS", "3")
    monkeypatch.setenv("XMIN_BATCH_BYTES", "65536")
    assert not [why for why in tune(source, target).why.values() if "asked for" in why]
    program = (
        "import pkgutil, sys, replica_platform.xmin as xmin\n"
        "names = [m.name for m in pkgutil.walk_packages(xmin.__path__, 'replica_platform.xmin.')]\n"
        "for name in names: __import__(name)\n"
        "print(len(names), 'replica_platform.app.settings' in sys.modules)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    modules, knows_settings = finished.stdout.split()
    assert int(modules) > 20 and knows_settings == "False"


def test_given_values_win(source: str, target: str) -> None:
    given: dict[str, int] = {"workers": 3, "batch_bytes": 65536}
    tuned = tune(source, target, **given)
    assert (tuned.workers, tuned.batch_bytes) == (3, 65536)
    assert tuned.why == {"workers": "3 were asked for.", "batch_bytes": "65,536 were asked for."}
    # Three workers on one snapshot, many ranges, first copy and changes.
    execute(
        source,
        "create table t (id int primary key, x text)",
        "insert into t select i, repeat('x', 100) from generate_series(1, 20000) i",
    )
    assert sync(source, target, "t", **given).rows == 20000
    execute(source, "update t set x = 'y' where id % 2 = 0", "delete from t where id % 10 = 1")
    report = sync(source, target, "t", **given)
    assert (report.rows_updated, report.rows_deleted) == (10000, 2000)
    query = "select id, x from t order by id"
    assert rows(source, query) == rows(target, query)
