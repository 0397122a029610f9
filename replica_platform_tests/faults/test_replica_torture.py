"""The publisher is killed at every step while four processes read: no query fails or is torn.

The common methods run in the same harness and must fail. REPLICA_KILLS and REPLICA_ANSWERS make the
long form longer: 1000 and 1000000 take hours; REPLICA_PAUSE_S=0 lets readers ask without a pause.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from replica_platform.replica import status, verify
from replica_platform.replica.store.layout import Layout
from replica_platform_tests.faults import replica_torture

READERS = 4


def run(
    method: str, folder: Path, kills: int, readers: int = READERS, answers: int = 0
) -> dict[str, Any]:
    """Publish a few, then kill `kills` publications while readers query; return the counts."""
    for _ in range(4 if method == "ours" else 1):
        replica_torture.batch(method, folder, lambda _: None)
    module = [sys.executable, "-m", "replica_platform_tests.faults.replica_torture"]
    reading = [
        subprocess.Popen(
            [*module, "reader", method, str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(readers)
    ]
    try:
        time.sleep(1)
        finished = subprocess.run(
            [*module, "publisher", method, str(folder), str(kills), str(answers), "7"],
            capture_output=True,
            text=True,
        )
        assert finished.returncode == 0, finished.stderr[-500:]
        published = json.loads(finished.stdout)
        time.sleep(1)
    finally:
        for reader in reading:
            reader.terminate()
        outputs = [reader.communicate()[0] for reader in reading]
    codes = [reader.returncode for reader in reading]
    counted = [json.loads(output) for output in outputs if output]
    total: dict[str, int] = {}
    for one in counted:
        for name, times in one["counts"].items():
            total[name] = total.get(name, 0) + times
    print(
        f"\n{method}: {published}, readers {total}, versions {[one['versions'] for one in counted]}"
    )
    return {
        "published": published,
        "total": total,
        "dead": sum(code != 0 for code in codes),
        "stale": sum(one["last"] != published["version"] for one in counted),
    }


def failures(result: dict[str, Any]) -> int:
    total = result["total"]
    return int(total.get("failed", 0) + total.get("torn", 0) + result["dead"] + result["stale"])


@pytest.mark.timeout(6 * 3600)
def test_readers_are_unaffected_by_kills_at_every_step(tmp_path: Path, torture: bool) -> None:
    kills = int(os.environ.get("REPLICA_KILLS", "200")) if torture else 36
    answers = int(os.environ.get("REPLICA_ANSWERS", "0")) if torture else 0
    result = run("ours", tmp_path, kills, answers=answers)
    killed = sum(times for step, times in result["published"]["at"].items() if step != "lived")
    print(f"killed {killed}")
    assert killed >= kills
    assert killed == kills or answers
    assert set(result["published"]["at"]) >= {*replica_torture.STEPS, "any moment", "lived"}
    assert result["published"]["at"].get("failed", 0) == 0
    assert result["total"]["whole"] > max(100, answers)
    assert failures(result) == 0
    store = tmp_path / "store"
    assert status(store, tmp_path / "master.duckdb").in_sync
    assert verify(store).ok
    layout = Layout(store)
    assert list(layout.candidates.iterdir()) == []
    assert len(list(layout.generations.glob("*.duckdb"))) <= 3


@pytest.mark.parametrize("method", ["copy2 in place", "copy2 and rename"])
def test_a_common_method_does_not_pass(tmp_path: Path, method: str) -> None:
    assert failures(run(method, tmp_path, kills=12, readers=2)) > 0
