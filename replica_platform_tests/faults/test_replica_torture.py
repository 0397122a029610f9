"""The publisher killed at every step while four processes read: nothing fails, nothing is torn.

The common ways run in the same harness and must not pass it.
"""

import json
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


def run(way: str, folder: Path, kills: int, readers: int = READERS) -> dict[str, Any]:
    """Publish a few, then kill `kills` publications while readers ask; what each counted."""
    for _ in range(4 if way == "ours" else 1):
        replica_torture.batch(way, folder, lambda _: None)
    module = [sys.executable, "-m", "replica_platform_tests.faults.replica_torture"]
    asking = [
        subprocess.Popen(
            [*module, "reader", way, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        for _ in range(readers)
    ]
    try:
        time.sleep(1)
        finished = subprocess.run(
            [*module, "publisher", way, str(folder), str(kills), "7"],
            capture_output=True,
            text=True,
        )
        assert finished.returncode == 0, finished.stderr[-500:]
        published = json.loads(finished.stdout)
        time.sleep(1)
    finally:
        for reader in asking:
            reader.terminate()
        said = [reader.communicate()[0] for reader in asking]
    codes = [reader.returncode for reader in asking]
    heard = [json.loads(words) for words in said if words]
    total: dict[str, int] = {}
    for one in heard:
        for name, times in one["counts"].items():
            total[name] = total.get(name, 0) + times
    print(f"\n{way}: {published}, readers {total}, versions {[one['versions'] for one in heard]}")
    return {
        "published": published,
        "total": total,
        "dead": sum(code != 0 for code in codes),
        "stale": sum(one["last"] != published["version"] for one in heard),
    }


def failures(result: dict[str, Any]) -> int:
    total = result["total"]
    return int(total.get("failed", 0) + total.get("torn", 0) + result["dead"] + result["stale"])


@pytest.mark.timeout(1200)
def test_killed_at_every_step_readers_never_notice(tmp_path: Path, torture: bool) -> None:
    result = run("ours", tmp_path, kills=200 if torture else 36)
    killed = sum(times for step, times in result["published"]["at"].items() if step != "lived")
    print(f"killed {killed}")
    assert killed == (200 if torture else 36)
    assert set(result["published"]["at"]) >= {*replica_torture.STEPS, "any moment", "lived"}
    assert result["published"]["at"].get("failed", 0) == 0
    assert result["total"]["whole"] > 100
    assert failures(result) == 0
    store = tmp_path / "store"
    assert status(store, tmp_path / "master.duckdb").in_sync
    assert verify(store).ok
    layout = Layout(store)
    assert list(layout.candidates.iterdir()) == []
    assert len(list(layout.generations.glob("*.duckdb"))) <= 3


@pytest.mark.parametrize("way", ["copy2 in place", "copy2 and rename"])
def test_the_common_way_does_not_pass(tmp_path: Path, way: str) -> None:
    assert failures(run(way, tmp_path, kills=12, readers=2)) > 0
