"""Names of metrics, the alert rules and the dashboard: valid, and about metrics that there are."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from replica_platform.app.launch import PROJECT
from replica_platform.app.metrics import METRICS, PREFIX
from replica_platform.app.watch_metrics import WATCH_METRICS, WatchCollector

ALERTS = PROJECT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = PROJECT / "deploy" / "grafana" / "replica_platform.json"
UNITS = ("_seconds", "_bytes", "_records", "_rows", "_messages", "_symbols")
COUNTS_AND_STATES = {
    *("info", "healthy", "idle", "table_there", "replica_generation", "replica_in_sync"),
    *("replica_readers", "backup_copies", "failed_schedules"),
}
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
# Of each alert: series that let it fire, and some that must not. A value for each minute from 0 on.
NOW, LONG_AGO = "0+60x60", "-100000x60"
FIRES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "PillarUnhealthy": ({"healthy{}": "0x60"}, {"healthy{}": "1x60"}),
    "MetricsAreOld": (
        {"collected_timestamp_seconds{}": LONG_AGO},
        {"collected_timestamp_seconds{}": NOW},
    ),
    "DaemonSilent": (
        {"daemon_heartbeat_timestamp_seconds{}": LONG_AGO},
        {"daemon_heartbeat_timestamp_seconds{}": NOW},
    ),
    "RecordsAreDead": ({"outbox_dead_records{}": "1x60"}, {"outbox_dead_records{}": "0x60"}),
    "RecordsWait": (
        {"outbox_oldest_pending_timestamp_seconds{}": LONG_AGO},
        {"outbox_oldest_pending_timestamp_seconds{}": NOW},
    ),
    "ReplicaBehind": ({"replica_in_sync{}": "0x60"}, {"replica_in_sync{}": "1x60"}),
    "BackupOld": ({"backup_timestamp_seconds{}": LONG_AGO}, {"backup_timestamp_seconds{}": NOW}),
    "SchedulesFail": ({"failed_schedules{}": "1x60"}, {"failed_schedules{}": "0x60"}),
    "AgentBehind": (
        {"drain_pending_records{}": "5x60"},
        {"drain_pending_records{}": "5x50 0 5x8"},
    ),
    "WatchedTableFails": (
        {"sync_failures_total{}": "0+1x60"},
        {"sync_failures_total{}": "7x60"},
    ),
    "WatchedSyncOld": (
        {"last_sync_timestamp_seconds{}": LONG_AGO, "sync_rounds_total{}": "1x60"},
        # Of `replica metrics`: a table may have a schedule of a day.
        {"last_sync_timestamp_seconds{}": LONG_AGO},
    ),
    "QuotesSkipped": (
        {"quotes_skipped_messages_total{}": "0+1x60"},
        {"quotes_skipped_messages_total{}": "7x60"},
    ),
    "QuotesSilent": (
        {"quotes_last_round_timestamp_seconds{}": LONG_AGO},
        {"quotes_last_round_timestamp_seconds{}": NOW},
    ),
}
EVALUATED_AT = "55m"


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def promtool(*arguments: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [str(PROMTOOL), *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("metrics", [METRICS, WATCH_METRICS], ids=["looked at", "counted"])
def test_names_and_units_are_those_of_prometheus(
    metrics: Mapping[str, tuple[tuple[str, ...], str]],
) -> None:
    for name, (labels, text) in metrics.items():
        assert re.fullmatch(r"[a-z][a-z_]*[a-z]", name)
        unit = name.removesuffix("_total")
        known = unit.endswith(UNITS) or name.endswith("_total") or name in COUNTS_AND_STATES
        assert known, name
        assert text.endswith(".")
        assert "seconds" not in labels
    assert not [name for name in METRICS if name.endswith("_total")], "those are counters"


def test_a_name_means_the_same_in_both() -> None:
    shared = METRICS.keys() & WATCH_METRICS.keys()
    assert shared == {"info", "last_sync_timestamp_seconds"}
    assert all(METRICS[name] == WATCH_METRICS[name] for name in shared)


def test_alerts_and_dashboard_ask_for_metrics_that_there_are() -> None:
    assert len({rule["alert"] for rule in rules()}) == len(rules()) > 5
    asked = [rule["expr"] for rule in rules()]
    asked += [target["expr"] for panel in panels() for target in panel["targets"]]
    there = METRICS.keys() | WATCH_METRICS.keys()
    for expression in asked:
        names = re.findall(rf"{PREFIX}_(\w+)", expression)
        assert names, expression
        assert there >= set(names), expression


def test_panels_neither_overlap_nor_share_an_id() -> None:
    assert len({panel["id"] for panel in panels()}) == len(panels())
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in panels())
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_labels_that_panels_and_alerts_show_are_there() -> None:
    added = {"instance", "job"}  # by Prometheus itself
    every = METRICS | WATCH_METRICS
    texts = [(rule["expr"], json.dumps(rule["annotations"])) for rule in rules()]
    texts += [
        (target["expr"], target["legendFormat"])
        for panel in panels()
        for target in panel["targets"]
    ]
    for expression, text in texts:
        labels = set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", text))
        (name, *_) = re.findall(rf"{PREFIX}_(\w+)", expression)
        assert labels <= added | set(every[name][0]), (expression, text)


@needs_promtool
def test_promtool_accepts_the_rules(tmp_path: Path) -> None:
    done = promtool("check", "rules", ALERTS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules())} rules found" in done.stdout
    wrong = tmp_path / "alerts.yml"
    wrong.write_text(ALERTS.read_text().replace("== 0", "=== 0"))
    assert promtool("check", "rules", wrong).returncode != 0


@needs_promtool
def test_promtool_accepts_the_names() -> None:
    collector = WatchCollector()
    for name, (labels, _) in WATCH_METRICS.items():
        collector.set(name, tuple("a" for _ in labels), 1)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    text = generate_latest(registry).decode()
    done = promtool("check", "metrics", stdin=text)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    wrong = text.replace("drain_batches_total", "drain_batches")
    assert "_total" in promtool("check", "metrics", stdin=wrong).stderr


@needs_promtool
def test_each_alert_fires_and_keeps_silent(tmp_path: Path) -> None:
    assert FIRES.keys() == {rule["alert"] for rule in rules()}
    tests = [
        {
            "interval": "1m",
            "input_series": [
                {"series": f"{PREFIX}_{name}", "values": values} for name, values in series.items()
            ],
            "promql_expr_test": [
                {
                    "expr": f"count(ALERTS{{alertname='{alert}', alertstate='firing'}})",
                    "eval_time": EVALUATED_AT,
                    "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
                }
            ],
        }
        for alert, both in FIRES.items()
        for fires, series in zip((True, False), both, strict=True)
    ]
    file = tmp_path / "tests.yml"
    given = {"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}
    file.write_text(yaml.safe_dump(given))
    done = promtool("test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr
