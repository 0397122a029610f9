"""Time small runs on workers: one at a time from submission to its end, and many at once.

    python benchmarks/scale_runs.py [--runs 1000] [--alone 20]

It starts a cluster of its own (Postgres, Redis, code server, daemon, one worker). Its peer is the
target: 1 s at the median, 2.5 runs a second, and 1.7 times as many with a second process. That
needs cores: the CPU of a run, which is printed, tells how many runs a machine can do at most.
"""

import argparse
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from replica_platform.app.embedded import running
from replica_platform_tests.faults.cluster_hosts import Asking, Cluster, asking, missing

MEDIAN_S, RUNS_PER_S, SECOND_PROCESS = 1.0, 2.5, 1.7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--alone", type=int, default=20)
    given = parser.parse_args()
    if missing():
        print(f"Left out: {missing()}.")
        return
    with (
        tempfile.TemporaryDirectory(prefix="rp-") as folder,
        running(Path(folder) / "pg") as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name in ("dagster", "target"):
            server.make_database(name)
        cluster = Cluster(Path(folder), server.dsn("dagster"), server.dsn("target"))
        try:
            cluster.start_all("a", processes=1)
            with asking(cluster, patch) as ask:
                median_s = _alone(ask, given.alone)
            one = _many(cluster, given.runs // 2, patch)
            cluster.kill("worker_a")
            cluster.start_worker("a", processes=2)
            cluster.wait_for_worker("a")
            two = _many(cluster, given.runs - given.runs // 2, patch)
        finally:
            cluster.stop_all()
    cores, load = os.cpu_count(), os.getloadavg()[0]
    print(f"one small run, submission to end: median {median_s:.2f} s (target {MEDIAN_S:g} s)")
    print(f"many small runs, one process: {one:.2f} a second (target {RUNS_PER_S:g})")
    print(f"many small runs, two processes: {two:.2f} a second (target {RUNS_PER_S:g})")
    print(f"second process: {two / one:.2f} times as many (target {SECOND_PROCESS:g})")
    print(f"on {cores} cores, load average {load:.1f} at the end")


def _alone(ask: Asking, count: int) -> float:
    """Return the median seconds of a run from submission to end, one after another."""
    took = []
    for _ in range(count + 1):
        run_id = ask.launch("quick_a")
        ask.wait(run_id)
        assert ask.status(run_id) == "SUCCESS", ask.messages(run_id)
        record = ask.instance.get_run_record_by_id(run_id)
        assert record is not None and record.end_time is not None
        took.append(record.end_time - record.create_timestamp.timestamp())
    return statistics.median(took[1:])  # the first one opens connections


def _many(cluster: Cluster, count: int, patch: pytest.MonkeyPatch) -> float:
    """Return runs a second, from the first submission to the last end, and print the CPU."""
    before = {name: _cpu_s(process.pid) for name, process in cluster.processes.items()}
    done = len(cluster.work("quick_a"))
    began = time.monotonic()
    with asking(cluster, patch) as ask, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: ask.launch("quick_a"), range(count)))
        submitted_s = time.monotonic() - began
        while len(cluster.work("quick_a")) < done + count:
            time.sleep(0.2)
    took_s = time.monotonic() - began
    ids = [run_id for run_id, *_ in cluster.work("quick_a")]
    assert len(ids) == len(set(ids)) == done + count
    cpu = ", ".join(
        f"{name} {(_cpu_s(process.pid) - before.get(name, 0)) / count * 1000:.0f} ms"
        for name, process in cluster.processes.items()
    )
    print(f"{count} runs in {took_s:.1f} s, submitted in {submitted_s:.1f} s; CPU a run: {cpu}")
    return count / took_s


def _cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process and of those that it has started."""
    total = 0.0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        times = process.cpu_times()
        total += times.user + times.system + times.children_user + times.children_system
    return total


if __name__ == "__main__":
    main()
