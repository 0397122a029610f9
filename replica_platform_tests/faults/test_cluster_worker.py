"""A host that dies in mid-run: its runs fail in time, and are retried where their home allows."""

from collections.abc import Callable

import pytest

from replica_platform.outbox import Outbox
from replica_platform_tests.faults.cluster_hosts import (
    TIMEOUT_S,
    Asking,
    Cluster,
    asking,
    missing,
    wait_until,
)

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.timeout(TIMEOUT_S),
]
RECORDS = 3000
# What docs/scale.md promises, and the time that a loaded machine may take besides.
FAILED_WITHIN_S, SLACK_S = 30.0, 15.0


def append(cluster: Cluster, host: str, count: int) -> None:
    box = cluster.folder / host / "outbox" / "worker-1.db"
    box.parent.mkdir(parents=True, exist_ok=True)
    with Outbox(box) as outbox:
        outbox.append_many("conversation", [{"number": n} for n in range(count)])


def delivered(cluster: Cluster) -> tuple[int, int]:
    """How many records are in the target, and how many different ones."""
    (found,) = cluster.query(
        cluster.target, "select count(*), count(distinct payload) from outbox.record"
    )
    return found


def test_a_killed_host(
    clusters: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch, torture: bool
) -> None:
    cluster, control = clusters("own"), clusters("stock", stock=True)
    cluster.start_all("a")
    control.start_all("a", code_of=cluster)
    for number in range(20 if torture else 1):
        with asking(control, monkeypatch) as ask:
            hanging = ask.begin("slow_a", queue="a")
        with asking(cluster, monkeypatch) as ask:
            kill_host(cluster, control, ask, number)
        with asking(control, monkeypatch) as ask:
            # The control: whatever the stock launcher is asked, the run of the dead host goes on.
            assert ask.status(hanging) == "STARTED"
            ask.instance.report_run_canceled(ask.run(hanging))
        control.start_worker("a")


def kill_host(cluster: Cluster, control: Cluster, ask: Asking, number: int) -> None:
    # Only a is there, so that the run that may go to any host of `shared` begins on a.
    append(cluster, "a", RECORDS)
    slow, shared = ask.begin("slow_a"), ask.begin("slow_shared")
    drain = ask.launch("records_a")
    cluster.kill("worker_a")
    control.kill("worker_a")
    cluster.start_worker("b", "--queue", "shared")
    took = max(ask.wait(run, within_s=FAILED_WITHIN_S + SLACK_S) for run in (slow, shared))
    assert ask.status(slow) == ask.status(shared) == "FAILURE"
    assert "silent since" in ask.messages(slow)
    cluster.release()
    # What may go to any host of its queue is retried on the other one.
    again = ask.retried(shared)
    ask.wait(again)
    assert ask.status(again) == "SUCCESS", ask.messages(again)
    assert {host for run, _, host in cluster.work("slow_shared") if run == again} == {"b"}
    # What lives on a waits for a, and says so.
    waiting = ask.retried(slow)
    wait_until(lambda: "replica worker --host a" in ask.messages(waiting), "the run says why")
    assert ask.status(waiting) == "QUEUED"
    shown = cluster.cli("cluster", "status")
    assert shown.returncode == 1
    assert "a: its worker is silent since" in shown.stdout
    assert waiting[:8] in shown.stdout and drain[:8] in shown.stdout
    cluster.start_worker("a", "--queue", "shared")
    ask.wait(waiting)
    assert ask.status(waiting) == "SUCCESS", ask.messages(waiting)
    ran = [(step, host) for run, step, host in cluster.work("slow_a") if run == waiting]
    assert ran == [(0, "a")]
    ask.wait(drain)
    assert ask.status(drain) == "SUCCESS", ask.messages(drain)
    assert delivered(cluster)[0] == RECORDS * (number + 1)
    cluster.kill("worker_b")
    print(
        f"host killed {number + 1} times: failed within {took:.1f} s, retried on the right host; "
        f"{RECORDS * (number + 1):,} records delivered once; the control's run never ended"
    )
