"""Torture: writers and drains killed with -9, Postgres stopped, a network that fails.

Every acknowledged record must be in the target, once and with its content. The negative controls
are a drain that marks rows before it sends them, and one that does not recognise resent rows.
"""

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from replica_platform.app.embedded import Server, running
from replica_platform.outbox import Outbox, backlog, drain, reconcile
from replica_platform.outbox.file import open_existing
from replica_platform_tests.faults.outbox_proxy import Proxy

WRITERS, DRAINERS = 3, 2
ACKNOWLEDGED = 50_000
# Drawn without replacement, so that a short run has every fault too.
FAULTS = ["writer"] * 4 + ["drainer"] * 4 + ["drop_commit"] * 3 + ["reset"] * 2
FAULTS += ["refuse", "delay", "silent"]


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A Postgres that may be killed without disturbing other tests."""
    with tempfile.TemporaryDirectory(prefix="rp-") as folder, running(Path(folder) / "pg") as one:
        yield one


@dataclass
class Processes:
    """The writers and drainers; each can be killed and started again."""

    folder: Path
    dsn: str
    pause_s: float
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str) -> None:
        role, number = name.split("-")
        if role == "writer":
            arguments = [
                f"{self.folder}/outbox/worker-{number}.db",
                f"{self.folder}/acknowledged-{number}",
                str(self.pause_s),
            ]
        else:
            arguments = [f"{self.folder}/outbox", self.dsn]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.outbox_{role}", *arguments], stderr=log
            )

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

    def end(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def acknowledged(self) -> dict[str, str]:
        found = {}
        for log in self.folder.glob("acknowledged-*"):
            # Each line is written by one write(2), so a kill leaves whole lines only.
            for line in log.read_text().splitlines():
                id, _, content = line.partition(" ")
                found[id] = content
        return found


def inject_faults(
    workers: Processes, proxy: Proxy, server: Server, seconds: float, seed: int
) -> Counter[str]:
    """Inject a fault about every quarter of a second for the given time; return what was done.

    It takes longer on a slow machine, until enough records were acknowledged.
    """
    chance = random.Random(seed)
    done: Counter[str] = Counter()
    end = time.monotonic() + seconds
    next_stop = time.monotonic() + 4
    remaining: list[str] = []
    while time.monotonic() < end or len(workers.acknowledged()) < ACKNOWLEDGED:
        time.sleep(chance.uniform(0.05, 0.45))
        if time.monotonic() > next_stop:
            server.stop("immediate")
            time.sleep(0.2)
            server.start()
            done["Postgres stopped immediately"] += 1
            next_stop = time.monotonic() + 6
            continue
        if not remaining:
            remaining = chance.sample(FAULTS, len(FAULTS))
        fault = remaining.pop()
        if fault in ("writer", "drainer"):
            name = f"{fault}-{chance.randrange(WRITERS if fault == 'writer' else DRAINERS)}"
            workers.kill(name)
            workers.start(name)
            done[f"{fault} killed"] += 1
        elif fault == "reset":
            proxy.reset()
            done["connections reset"] += 1
        elif fault == "drop_commit":
            proxy.mode = "drop_commit"
            time.sleep(0.3)
            proxy.mode = "ok"
        else:
            proxy.mode = fault
            # Longer than the drains' deadline of 2 s, which has to end the wait.
            time.sleep(2.5 if fault == "silent" else 0.4)
            proxy.mode = "ok"
            done[f"network: {fault}"] += 1
    done["replies of COMMIT dropped"] = proxy.commits_dropped
    return done


def rows_of(dsn: str) -> tuple[dict[str, str], int]:
    """Return the target's rows, and how many contents it has more than once."""
    with psycopg.connect(dsn) as connection:
        rows = connection.execute("select id::text, payload from outbox.record").fetchall()
        (twice,) = connection.execute(
            "select count(*) from (select from outbox.record group by kind, payload "
            "having count(*) > 1)"
        ).fetchone() or (-1,)
    return {id: json.dumps(payload, sort_keys=True) for id, payload in rows}, twice


@pytest.mark.timeout(1200)
def test_every_acknowledged_record_arrives_once(
    own_server: Server, tmp_path: Path, torture: bool
) -> None:
    seconds = 600.0 if torture else 60.0
    (tmp_path / "outbox").mkdir()
    dsn = own_server.dsn("target")
    with psycopg.connect(own_server.dsn(), autocommit=True) as admin:
        admin.execute("create database target")
    with Proxy(own_server.socket_dir) as proxy:
        workers = Processes(tmp_path, proxy.dsn("target"), 0.002)
        for number in range(WRITERS):
            workers.start(f"writer-{number}")
        for number in range(DRAINERS):
            workers.start(f"drainer-{number}")
        try:
            done = inject_faults(workers, proxy, own_server, seconds, seed=7)
        finally:
            workers.end()
    report = drain([tmp_path / "outbox"], dsn, force=True)
    assert report.ok, report.sentence
    acknowledged, (arrived, doubled) = workers.acknowledged(), rows_of(dsn)
    lost = acknowledged.keys() - arrived.keys()
    changed = [id for id in acknowledged.keys() & arrived.keys() if acknowledged[id] != arrived[id]]
    print(f"\n{seconds:.0f} s; {dict(done)}")
    print(
        f"acknowledged {len(acknowledged)}, arrived {len(arrived)}, lost {len(lost)}, "
        f"doubled {doubled}, changed {len(changed)}, committed but not acknowledged "
        f"{len(arrived.keys() - acknowledged.keys())}"
    )
    assert (len(lost), doubled, changed) == (0, 0, [])
    assert len(acknowledged) >= ACKNOWLEDGED
    assert done["writer killed"] and done["drainer killed"] and done["Postgres stopped immediately"]
    assert backlog([tmp_path / "outbox"]).pending == 0
    assert reconcile([tmp_path / "outbox"], dsn).ok
    for path in (tmp_path / "outbox").glob("*.db"):
        with closing(open_existing(path)) as local:
            assert local.execute("pragma integrity_check").fetchone() == ("ok",)


def naive_drain(dsn: str, path: Path, mark_first: bool, crash_in_batch: int = -1) -> None:
    """Drain as it is often written; optionally crash between the two writes."""
    with closing(open_existing(path)) as local, psycopg.connect(dsn) as connection:
        connection.execute("create table if not exists naive (id text, payload text)")
        connection.commit()
        for batch in range(1000):
            rows = local.execute(
                "select seq, id, payload from record where seq > coalesce((select "
                "cast(value as integer) from meta where key = 'naive'), 0) order by seq limit 100"
            ).fetchall()
            if not rows:
                return
            for step in ("mark", "send") if mark_first else ("send", "mark"):
                if step == "mark":
                    local.execute(
                        "insert or replace into meta values ('naive', ?)", (str(rows[-1][0]),)
                    )
                else:
                    connection.cursor().executemany(
                        "insert into naive values (%s, %s)", [row[1:] for row in rows]
                    )
                    connection.commit()
                if batch == crash_in_batch:
                    return


@pytest.mark.parametrize("mark_first", [True, False])
def test_a_naive_drain_loses_or_doubles_rows_in_one_crash(
    tmp_path: Path, target: str, mark_first: bool
) -> None:
    path = tmp_path / "worker-1.db"
    with Outbox(path) as box:
        box.append_many("note", [{"n": n} for n in range(300)])
    naive_drain(target, path, mark_first, crash_in_batch=1)
    naive_drain(target, path, mark_first)
    with psycopg.connect(target) as connection:
        total, distinct = connection.execute(
            "select count(*), count(distinct id) from naive"
        ).fetchone() or (0, 0)
    lost, doubled = 300 - distinct, total - distinct
    print(f"\nnaive, mark {'first' if mark_first else 'last'}: lost {lost}, doubled {doubled}")
    assert (lost, doubled) == ((100, 0) if mark_first else (0, 100))
