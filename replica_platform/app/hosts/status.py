"""The state of every host in words: its workers, what runs there, and what waits for it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from replica_platform.app.hosts.heartbeats import Heartbeats, Worker, run_of
from replica_platform.app.hosts.waiting import OpenRun, open_runs
from replica_platform.core.reports import ReportFields, format_age

SHOWN_RUNS = 5


@dataclass(frozen=True)
class HostStatus(ReportFields):
    """The state of a host or of a queue that several hosts serve.

    Attributes:
        name: The name of the host or queue.
        workers: The live workers that take its runs.
        last: The worker that was heard last; None if none ever was.
        running: The runs that its workers execute.
        waiting: The runs that no worker has begun with.
    """

    name: str
    workers: Sequence[Worker] = ()
    last: Worker | None = None
    running: Sequence[OpenRun] = ()
    waiting: Sequence[OpenRun] = ()

    @property
    def ok(self) -> bool:
        """Whether a worker lives, or none is needed at present since it was stopped in order."""
        if self.workers:
            return True
        return self.last is not None and self.last.stopped and not self.waiting

    @property
    def away(self) -> str:
        """In words since when no worker is there; empty where one is."""
        return "" if self.workers else away(self.name, self.last)

    @property
    def sentence(self) -> str:
        """What its workers do, or since when they are away and what waits for them."""
        waiting = f"{_count(len(self.waiting), 'run')}: {_named(self.waiting)}"
        if not self.workers:
            if not self.waiting:
                return f"{self.away} {start_it(self.name)}"
            wait = "waits" if len(self.waiting) == 1 else "wait"
            return f"{self.away} {waiting} {wait} for it. {start_it(self.name)}"
        processes = sum(worker.processes for worker in self.workers)
        text = f"{self.name}: {_count(len(self.workers), 'worker')}, {_count(processes, 'process')}"
        text += f"; runs {_named(self.running)}" if self.running else "; nothing runs"
        return f"{text}; {waiting} in the queue." if self.waiting else f"{text}."


@dataclass(frozen=True)
class HostsStatus(ReportFields):
    """The state of all hosts.

    Attributes:
        hosts: Each host and queue, by name.
        versions: The versions of the platform that live workers have loaded.
    """

    hosts: Sequence[HostStatus] = ()
    versions: Sequence[str] = ()

    @property
    def ok(self) -> bool:
        """Whether every host has a worker, and all have loaded the same version."""
        return all(host.ok for host in self.hosts) and len(self.versions) < 2

    @property
    def sentence(self) -> str:
        """What is wrong and what to do next, or how many hosts there are."""
        problems = [host.sentence for host in self.hosts if not host.ok]
        if len(self.versions) > 1:
            problems.append(
                f"Workers have loaded different versions ({', '.join(self.versions)}); install one "
                "version on all hosts, and start their workers again."
            )
        if problems:
            return " ".join(problems)
        if not self.hosts:
            return "No host is named, and no worker has ever run; everything runs on one machine."
        running = sum(len(host.running) for host in self.hosts)
        names = ", ".join(host.name for host in self.hosts)
        return f"{names}: every host is there; {_count(running, 'run')} under way."


def away(name: str, last: Worker | None) -> str:
    """Return in words since when no worker serves a host or queue."""
    if last is None:
        return f"{name}: no worker has ever served it."
    what = "was stopped" if last.stopped else "is silent since"
    since = f"{last.beat_at:%Y-%m-%d %H:%M:%S %Z}".rstrip()
    link = " at" if last.stopped else ""
    return f"{name}: its worker {what}{link} {since}, {format_age(last.beat_age_s)} ago."


def start_it(name: str) -> str:
    """Return what to do where a host has no worker."""
    return f"Start it there with `replica worker --host {name}`."


def serving(queue: str, workers: Iterable[Worker]) -> tuple[list[Worker], Worker | None]:
    """Return the live workers of a queue, and the one of its workers that was heard last."""
    own = [worker for worker in workers if queue in worker.queues]
    last = min(own, key=lambda worker: worker.beat_age_s, default=None)
    return [worker for worker in own if worker.live], last


def hosts_status(dsn: str, named: Iterable[str] = ()) -> HostsStatus:
    """Return the state of every host.

    Args:
        dsn: Dagster's database.
        named: The hosts that entries name; a host whose worker was heard counts without it.

    Raises:
        CannotConnect: The database does not answer.
    """
    heartbeats = Heartbeats(dsn)
    try:
        workers = heartbeats.workers()
    finally:
        heartbeats.close()
    runs = open_runs(dsn)
    names = {*named, *(worker.host for worker in workers)}
    names |= {run.queue for run in runs if run.queue}
    live = [worker for worker in workers if worker.live]
    executed = {run_of(task): worker.host for worker in live for task in worker.tasks}
    return HostsStatus(
        hosts=[_host(name, workers, runs, executed) for name in sorted(names)],
        versions=sorted({worker.version for worker in live}),
    )


def _host(
    name: str, workers: Sequence[Worker], runs: Sequence[OpenRun], executed: dict[str, str]
) -> HostStatus:
    live, last = serving(name, workers)
    return HostStatus(
        name,
        live,
        last,
        running=[run for run in runs if not run.waits and executed.get(run.run_id) == name],
        waiting=[run for run in runs if run.waits and run.queue == name],
    )


def _count(number: int, what: str) -> str:
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{number:,} {what if number == 1 else plural}"


def _named(runs: Sequence[OpenRun]) -> str:
    shown = ", ".join(f"{run.job} ({run.run_id[:8]})" for run in runs[:SHOWN_RUNS])
    left = len(runs) - SHOWN_RUNS
    return f"{shown} and {left:,} more" if left > 0 else shown
