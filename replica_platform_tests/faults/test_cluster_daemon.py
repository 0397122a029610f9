"""Dagster's daemon dies, and a host is frozen, drained and asked to stop: what becomes of runs."""

import signal
import time
from collections.abc import Callable

import pytest

from replica_platform_tests.faults.cluster_hosts import TIMEOUT_S, Asking, Cluster, asking, missing

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.timeout(TIMEOUT_S),
]


def test_a_killed_daemon_and_a_frozen_host(
    clusters: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch, torture: bool
) -> None:
    cluster = clusters("own")
    cluster.start_all("a")
    with asking(cluster, monkeypatch) as ask:
        for _ in range(20 if torture else 1):
            kill_daemon(cluster, ask)
            freeze_host(cluster, ask)
        drain(cluster, ask)
    quick = cluster.work("quick_a")
    assert len(quick) == len({run_id for run_id, *_ in quick})
    print(f"daemon killed and host frozen: {len(quick)} quick runs, each once; no run went on")


def kill_daemon(cluster: Cluster, ask: Asking) -> None:
    """A run ends without the daemon, and what is asked for meanwhile runs when it is back."""
    slow = ask.begin("slow_a")
    cluster.kill("daemon")
    asked = [ask.launch("quick_a") for _ in range(3)]
    cluster.release()
    ask.wait(slow)
    assert ask.status(slow) == "SUCCESS"
    assert {ask.status(run) for run in asked} == {"QUEUED"}
    cluster.start_daemon()
    for run in asked:
        ask.wait(run)
        assert ask.status(run) == "SUCCESS", ask.messages(run)


def freeze_host(cluster: Cluster, ask: Asking) -> None:
    """The run of a host that is silent is given up; when the host is back, its process is ended."""
    slow = ask.begin("slow_a")
    cluster.kill("worker_a", signal.SIGSTOP)
    ask.wait(slow, within_s=45)
    assert ask.status(slow) == "FAILURE"
    again = ask.retried(slow)
    assert cluster.steps_of(again) == 0
    time.sleep(5)
    cluster.kill("worker_a", signal.SIGCONT)
    ask.wait_for_steps(again)
    seen = cluster.steps_of(slow)
    time.sleep(2)
    # Its process is gone: otherwise both would write.
    assert cluster.steps_of(slow) == seen
    log = (cluster.folder / "worker_a.log").read_text()
    assert f"Run {slow} was given up while this host was away" in log
    cluster.release()
    ask.wait(again)
    assert (ask.status(slow), ask.status(again)) == ("FAILURE", "SUCCESS")


def drain(cluster: Cluster, ask: Asking) -> None:
    """SIGTERM lets the run that is under way end; a run from then on waits, and says why."""
    slow = ask.begin("slow_a")
    worker = cluster.processes["worker_a"]
    worker.terminate()
    time.sleep(3)
    assert worker.poll() is None
    cluster.release()
    ask.wait(slow)
    assert ask.status(slow) == "SUCCESS"
    assert worker.wait(30) == 0
    quick = ask.launch("quick_a")
    assert "its worker was stopped at" in ask.messages(quick)
    shown = cluster.cli("cluster", "status").stdout
    assert "a: its worker was stopped at" in shown
    assert quick[:8] in shown
    cluster.start_worker("a")
    ask.wait(quick)
    assert ask.status(quick) == "SUCCESS"
