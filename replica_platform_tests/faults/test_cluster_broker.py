"""A broker that dies, does not answer, or forgets: runs go on, wait, and are never run twice."""

import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from replica_platform_tests.faults.cluster_hosts import (
    TIMEOUT_S,
    Asking,
    Cluster,
    asking,
    missing,
    wait_until,
)
from replica_platform_tests.faults.outbox_proxy import Proxy

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.timeout(TIMEOUT_S),
]
# How long the control needs to fail its run and to start it a second time.
CONTROL_WITHIN_S = 60.0
# A run that no worker takes has failed after `start_timeout_seconds`, which is 60.
GIVEN_UP_WITHIN_S = 90.0


def runs_of(cluster: Cluster, asset: str) -> set[str]:
    return {run_id for run_id, *_ in cluster.work(asset)}


def test_a_broker_that_dies_or_does_not_answer(
    clusters: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch, torture: bool
) -> None:
    cluster = clusters("own")
    cluster.start_all("a")
    with asking(cluster, monkeypatch) as ask:
        for _ in range(20 if torture else 1):
            kill_and_freeze(cluster, ask)
    ran = [run_id for run_id, *_ in cluster.work("quick_a")]
    assert len(ran) == len(set(ran))
    print(f"broker killed and frozen: {len(ran)} runs waited for it, and each ran once")


def kill_and_freeze(cluster: Cluster, ask: Asking) -> None:
    slow = ask.begin("slow_a")
    waited = {killed(cluster, ask), silent(cluster, ask)}
    # The run that was under way has seen nothing of this.
    assert ask.status(slow) == "STARTED"
    cluster.release()
    ask.wait(slow)
    assert ask.status(slow) == "SUCCESS"
    assert ask.retries(slow) == []
    assert runs_of(cluster, "quick_a") >= waited


def killed(cluster: Cluster, ask: Asking) -> str:
    """Kill the broker, ask for a run, and start the broker again."""
    cluster.kill("broker")
    quick = ask.launch("quick_a")
    time.sleep(3)
    assert ask.status(quick) == "QUEUED"
    cluster.start_broker()
    ask.wait(quick)
    assert ask.status(quick) == "SUCCESS", ask.messages(quick)
    return quick


def silent(cluster: Cluster, ask: Asking) -> str:
    """Freeze the broker, ask for a run, and let the broker go on."""
    cluster.kill("broker", signal.SIGSTOP)
    quick = ask.launch("quick_a")
    time.sleep(12)
    assert ask.status(quick) == "QUEUED", ask.messages(quick)
    cluster.kill("broker", signal.SIGCONT)
    ask.wait(quick)
    assert ask.status(quick) == "SUCCESS", ask.messages(quick)
    return quick


def test_a_broker_that_forgets(
    clusters: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch, torture: bool
) -> None:
    cluster, control = clusters("own"), clusters("stock", stock=True)
    cluster.start_all("a")
    control.start_all("a", code_of=cluster)
    rounds = 20 if torture else 1
    for _ in range(rounds):
        forget_both(cluster, control, monkeypatch)
    ran, control_ran = len(runs_of(cluster, "slow_a")), len(runs_of(control, "slow_a"))
    assert ran == rounds
    assert control_ran >= 2 * rounds
    print(f"broker forgot {rounds} times: {ran} runs, each once; the control made {control_ran}")


def forget_both(cluster: Cluster, control: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with asking(cluster, monkeypatch) as ask:
        slow = ask.begin("slow_a")
    with asking(control, monkeypatch) as ask:
        doubled = ask.begin("slow_a", queue="a")
        forget(cluster)
        forget(control)
        # The control fails its run and starts it again, while it goes on: both write.
        ask.wait(doubled, within_s=CONTROL_WITHIN_S)
        again = ask.retried(doubled)
        ask.wait_for_steps(again)
        ask.wait_for_steps(doubled, control.steps_of(doubled))
        control.release()
        ask.wait(again)
    # Ours goes on, once.
    with asking(cluster, monkeypatch) as ask:
        assert ask.status(slow) == "STARTED"
        assert ask.retries(slow) == []
        cluster.release()
        ask.wait(slow)
        assert ask.status(slow) == "SUCCESS"


def forget(cluster: Cluster) -> None:
    """Kill the broker, and start one that knows nothing."""
    cluster.kill("broker")
    for file in sorted((cluster.folder / "broker").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    cluster.start_broker()


def test_a_broker_that_forgets_a_run_in_its_queue(
    clusters: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch, torture: bool
) -> None:
    cluster = clusters("own", start_timeout_s=15)
    cluster.start_all("a")
    rounds = 20 if torture else 1
    with asking(cluster, monkeypatch) as ask:
        for _ in range(rounds):
            forgotten_in_the_queue(cluster, ask)
    assert len(cluster.work("quick_a")) == rounds
    print(f"broker forgot a run in its queue {rounds} times: each was retried, and ran once")


def forgotten_in_the_queue(cluster: Cluster, ask: Asking) -> None:
    """Let the broker forget a run that no worker has taken: it fails in time, and is retried."""
    cluster.kill("worker_a", signal.SIGSTOP)
    # A worker that waits for a run is sent it at once, even while it is stopped.
    cut_off = ["redis-cli", "-p", str(cluster.port), "client", "kill", "type", "normal"]
    subprocess.run(cut_off, check=True, stdout=subprocess.DEVNULL)
    quick = ask.launch("quick_a")
    wait_until(lambda: "Sent to the queue a" in ask.messages(quick), "the run is sent")
    forget(cluster)
    cluster.kill("worker_a", signal.SIGCONT)
    ask.wait(quick, within_s=GIVEN_UP_WITHIN_S)
    assert ask.status(quick) == "FAILURE"
    again = ask.retried(quick)
    ask.wait(again)
    assert ask.status(again) == "SUCCESS"
    assert (cluster.steps_of(quick), cluster.steps_of(again)) == (0, 1)


def test_a_host_that_is_cut_off_from_the_broker(
    clusters: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch, torture: bool
) -> None:
    cluster = clusters("own")
    cluster.start_broker()
    rounds = 20 if torture else 1
    with Proxy(("127.0.0.1", cluster.port)) as proxy:
        cluster.broker_ports["a"] = proxy.port
        cluster.start_worker("a")
        cluster.start_code_server()
        cluster.start_daemon()
        cluster.wait_for_worker("a")
        with asking(cluster, monkeypatch) as ask:
            for _ in range(rounds):
                cut_off(cluster, ask, proxy, 60.0 if torture else 5.0)
    ran = cluster.work("quick_a")
    assert len(ran) == rounds
    print(f"a host cut off from the broker {rounds} times: {len(ran)} runs waited, each ran once")


def cut_off(cluster: Cluster, ask: Asking, proxy: Proxy, seconds: float) -> None:
    """Cut a host off from the broker, ask for a run meanwhile, and let both speak again."""
    slow = ask.begin("slow_a")
    seen = len(cluster.work("quick_a"))
    proxy.mode = "hold"
    quick = ask.launch("quick_a")
    ask.wait(quick, "STARTING")
    time.sleep(seconds)
    # It was sent, and did not arrive; the run that was under way has gone on.
    assert len(cluster.work("quick_a")) == seen
    assert ask.status(slow) == "STARTED"
    proxy.mode = "ok"
    ask.wait_until_done(quick, GIVEN_UP_WITHIN_S)
    assert len(cluster.work("quick_a")) == seen + 1
    cluster.release()
    ask.wait(slow)
    assert (ask.status(slow), ask.retries(slow)) == ("SUCCESS", [])
