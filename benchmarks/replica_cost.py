"""What a publication costs when little changed, beside `cp` with fsync of the same file in one run.

    python benchmarks/replica_cost.py [--mb 2000] [--rounds 5] [--sizes 500,2000,8000]
                                      [--folder DIR] [--json]

Rows like TPC-H's. After an append of one per cent, and after an update of every thousandth row, a
generation is published; the peer copies the master. Then the same small change in masters of
several sizes (`--sizes`, in megabytes; none by default). Then `status`, also of touched files.

The publisher's processor time is that of this process; the child's, which opens the candidate, is
listed beside it.
"""

import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from replica_publish import cp_and_fsync, rounded
from replicas import measure

from replica_platform.replica import Master, Publication, publish, status
from replica_platform.replica.probe import process

# Of `lineitem`; with its orders and customers.
ROWS_PER_MB = 33_000
TABLES = """
create table customer as select i c_custkey, 'Customer#' || i c_name, md5(i::varchar) c_address,
    (hash(i) % 25)::int c_nationkey, (hash(i + 1) % 1000000) / 100.0 c_acctbal
    from range({rows} // 40) r(i);
create table orders as select i o_orderkey, (hash(i) % ({rows} // 40 + 1))::bigint o_custkey,
    substr('FOP', (1 + hash(i + 1) % 3)::int, 1) o_orderstatus,
    ((hash(i + 2) % 50000000) / 100.0)::decimal(12, 2) o_totalprice,
    date '1992-01-01' + (hash(i + 3) % 2400)::int o_orderdate,
    'Clerk#' || (hash(i + 4) % 8000) o_clerk, md5((i + 5)::varchar)[:20] o_comment
    from range({rows} // 4) r(i);
create table lineitem as select i // 4 l_orderkey, (hash(i) % 1600000)::int l_partkey,
    (hash(i + 1) % 80000)::int l_suppkey, (i % 4)::int l_linenumber,
    (1 + hash(i + 2) % 50)::decimal(12, 2) l_quantity,
    ((hash(i + 3) % 10000000) / 100.0)::decimal(12, 2) l_extendedprice,
    ((hash(i + 4) % 11) / 100.0)::decimal(12, 2) l_discount,
    substr('RAN', (1 + hash(i + 5) % 3)::int, 1) l_returnflag,
    date '1992-01-01' + (hash(i + 6) % 2500)::int l_shipdate,
    ['AIR', 'MAIL', 'RAIL', 'SHIP', 'TRUCK'][(1 + hash(i + 7) % 5)::int] l_shipmode,
    hash(i + 8)::varchar l_comment
    from range({rows}) r(i);
"""


def make_master(path: Path, mb: int) -> Master:
    """Make a master of about `mb` megabytes."""
    master = Master(path)
    with master.write() as connection:
        connection.execute(TABLES.format(rows=mb * ROWS_PER_MB))
    return master


def append(master: Master, rows: int) -> None:
    """Append that many rows to `lineitem`, with their orders."""
    with master.write() as connection:
        connection.execute(
            "insert into orders select * replace (o_orderkey + 1000000000 as o_orderkey) "
            f"from orders limit {rows // 4}"
        )
        connection.execute(
            "insert into lineitem select * replace (l_orderkey + 1000000000 as l_orderkey) "
            f"from lineitem limit {rows}"
        )


def scatter(master: Master, number: int) -> None:
    """Update every thousandth row of `lineitem`."""
    with master.write() as connection:
        connection.execute(
            "update lineitem set l_quantity = l_quantity + 1 "
            f"where hash(l_orderkey, l_linenumber) % 1000 = {number}"
        )


def child_seconds() -> float:
    """Return the processor time of the child that is kept, in seconds."""
    for child in process._idle:
        fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


class Published:
    """Publications of one master, and copies of it, in turn."""

    def __init__(self, master: Master, store: Path) -> None:
        self.master, self.store = master, store
        self.peer: list[float] = []
        self.took: list[float] = []
        self.cpu: list[float] = []
        self.child_cpu: list[float] = []
        self.last: Publication | None = None

    def publish(self) -> Publication:
        return publish(self.master.path, self.store, keep=1, min_age_s=0)

    def round(self) -> None:
        os.sync()
        self.peer.append(cp_and_fsync(self.master.path, self.store.with_name("peer.duckdb")))
        os.sync()
        cpu, child, started = time.process_time(), child_seconds(), time.perf_counter()
        self.last = self.publish()
        self.took.append(time.perf_counter() - started)
        self.cpu.append(time.process_time() - cpu)
        self.child_cpu.append(child_seconds() - child)
        assert (self.last.how, self.last.compared_all) == ("patch", ""), self.last.sentence

    def result(self) -> dict[str, object]:
        assert self.last is not None
        took, peer = statistics.median(self.took), statistics.median(self.peer)
        return {
            "cp_fsync_s": [round(one, 3) for one in self.peer],
            "publication_s": [round(one, 3) for one in self.took],
            "to_cp": round(took / peer, 3),
            "cpu_s": round(statistics.median(self.cpu), 3),
            "child_cpu_s": round(statistics.median(self.child_cpu), 3),
            "blocks_read": self.last.blocks_read,
            "blocks_written": self.last.blocks_written,
            "of_blocks": len(self.last.manifest.block_digests),
            "steps": rounded(self.last.steps),
        }


def rounds_of(
    master: Master, store: Path, change: Callable[[int], None], rounds: int
) -> dict[str, object]:
    """Return what publications cost after a change; before, a spare is made."""
    published = Published(master, store)
    for number in range(rounds + 3):
        change(number)
        if number < 3:
            published.publish()
        else:
            published.round()
    return published.result()


def looks(master: Path, store: Path) -> dict[str, float]:
    """Return the milliseconds of `status`, as it is and after files were touched."""

    def ms() -> float:
        started = time.perf_counter()
        status(store, master)
        return round((time.perf_counter() - started) * 1e3, 1)

    found = {"unchanged": min(ms() for _ in range(3))}
    os.utime(master)
    found["master touched"] = ms()
    os.utime((store / "stock_data_replica.db").resolve())
    found["both touched"] = ms()
    publish(master, store)
    found["published again"] = ms()
    return found


def growth(folder: Path, sizes: list[int], rounds: int) -> dict[str, object]:
    """Return the cost of one small change in masters of several sizes."""
    rows = min(sizes) * ROWS_PER_MB // 100
    found = {}
    for mb in sizes:
        master = make_master(folder / f"{mb}.duckdb", mb)
        result = rounds_of(
            master, folder / f"store-{mb}", lambda _, m=master: append(m, rows), rounds
        )
        found[mb] = {name: result[name] for name in ("publication_s", "to_cp", "cpu_s", "steps")}
        shutil.rmtree(folder / f"store-{mb}")
        master.path.unlink()
    medians = {mb: statistics.median(one["publication_s"]) for mb, one in found.items()}
    ratio = medians[max(sizes)] / medians[min(sizes)]
    return {**found, "largest_to_smallest": round(ratio, 2)}


def run(folder: Path, mb: int, rounds: int, sizes: str) -> dict[str, object]:
    master, store = make_master(folder / "master.duckdb", mb), folder / "store"
    one_per_cent = mb * ROWS_PER_MB // 100
    return {
        "megabytes": round(master.path.stat().st_size / 1e6),
        "append_1_percent": rounds_of(
            master, store, lambda _: append(master, one_per_cent), rounds
        ),
        "update_0.1_percent": rounds_of(
            master, store, lambda number: scatter(master, number), rounds
        ),
        "status_ms": looks(master.path, store),
        "growth": growth(folder, [int(one) for one in sizes.split(",")], rounds) if sizes else None,
        "targets": {
            "to_cp": 0.2,
            "cpu_s of 1 %": 0.15,
            "largest_to_smallest": 1.3,
            "status_ms": 30,
        },
    }


if __name__ == "__main__":
    measure(__doc__, run, mb=2000, rounds=5, sizes="")
