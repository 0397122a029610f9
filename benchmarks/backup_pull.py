"""The time of a pull: by rows, by rows again, and as a file.

    python benchmarks/backup_pull.py [--members 200000]
    python benchmarks/backup_pull.py --openssh [--line 10] [--megabytes 500] [--rounds 3]
    python benchmarks/backup_pull.py --server ssh://root@127.0.0.1:22 --key KEY --known-hosts FILE

Both ends are this machine, so the network's speed is not measured; bytes moved are what a network
would carry. With `--line` a forwarder lets that many megabytes a second through, for the peer and
for us. Without an option, asyncssh's own server is between them and the peer is `cp`. With
`--openssh`, which starts Debian's `sshd`, or the address of this machine's OpenSSH server, the
method `scp` is measured against `sftp get`, in turn; then the other methods after 0.1 % of the rows
changed, each on the copy of its own last pull. The medians are printed.
"""

import argparse
import shutil
import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from backup_one_step import make as make_file
from slow_line import slow_line

from replica_platform.backup import Pulled, pull
from replica_platform.core.sqlite import sqlite3
from replica_platform_tests.backup.openssh_server import serving_openssh
from replica_platform_tests.backup.ssh_server import serving


def make(file: Path, members: int) -> None:
    """Make a table of members and one of their visits, in WAL mode."""
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("pragma journal_mode=wal")
        db.execute("create table member (id integer primary key, name text, joined_at text)")
        db.execute("create table visit (member_id int, at text, note text)")
        db.execute("create index visit_by_member on visit (member_id)")
        numbers = "with recursive n (i) as (select 1 union all select i + 1 from n where i < ?) "
        names = "insert into member select i, 'member ' || i, '2026-01-01' from n"
        db.execute(numbers + names, (members,))
        visits = "insert into visit select i, '2026-01-01', hex(randomblob(20)) from n"
        db.execute(numbers + visits, (members,))
        db.execute("pragma wal_checkpoint(truncate)")


def show(what: str, got: Pulled) -> None:
    """Print one line of the table."""
    print(
        f"{what:24} {got.seconds:6.2f} s {got.rows_moved:9,} rows and {got.bytes_moved:12,} bytes"
        f" moved, {got.ranges} ranges compared"
    )


def against_sftp(options: argparse.Namespace, folder: Path) -> None:
    """Pull a file and get it by sftp, in turn; print medians and their ratio."""
    remote = folder / "remote.db"
    make_file(remote, options.megabytes)
    size = remote.stat().st_size
    server = urlsplit(options.server)
    access = {"known_hosts": options.known_hosts, "client_keys": [options.key]}
    sftp = ["sftp", "-q", "-P", str(server.port), "-i", str(options.key), "-o", "BatchMode=yes"]
    sftp += ["-o", f"UserKnownHostsFile={options.known_hosts}"]
    peer, ours = [], []
    again: dict[str, list[float]] = {"query": [], "pages": []}
    moved: dict[str, int] = {}
    for _ in range(options.rounds):
        began = time.perf_counter()
        source = f"{server.username}@{server.hostname}:{remote}"
        subprocess.run([*sftp, source, folder / "sftp.db"], check=True, stdout=subprocess.DEVNULL)
        peer.append(time.perf_counter() - began)
        pulled = pull(f"{options.server}{remote}", folder / "file.db", method="scp", **access)
        ours.append(pulled.seconds)
        (folder / "sftp.db").unlink()
        shutil.copyfile(folder / "file.db", folder / "query.db")
        (folder / "file.db").rename(folder / "pages.db")
        for method in ("pages", "query"):
            with closing(sqlite3.connect(remote, isolation_level=None)) as db:
                (rows,) = db.execute("select max(id) from t").fetchone()
                db.execute(
                    "update t set v = randomblob(400) where id between ? and ?",
                    (rows // 2, rows // 2 + rows // 1000),
                )
            pulled = pull(
                f"{options.server}{remote}", folder / f"{method}.db", method=method, **access
            )
            again[method].append(pulled.seconds)
            moved[method] = pulled.bytes_moved
    got, by_sftp = statistics.median(ours), statistics.median(peer)
    print(
        f"{size / 1e6:.0f} MB: sftp get {by_sftp:.2f} s ({min(peer):.2f} to {max(peer):.2f}), "
        f"pull --method scp {got:.2f} s ({min(ours):.2f} to {max(ours):.2f}): {got / by_sftp:.2f}"
    )
    for method, seconds in again.items():
        middle = statistics.median(seconds)
        print(
            f"pull --method {method} after 0.1 % changed {middle:.2f} s "
            f"({min(seconds):.2f} to {max(seconds):.2f}), {moved[method] / 1e6:.1f} MB moved: "
            f"{middle / by_sftp:.2f}"
        )


def main() -> None:
    """Make the file, pull it by each method, print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--members", type=int, default=200_000)
    options.add_argument("--openssh", action="store_true", help="Start an OpenSSH server.")
    options.add_argument("--line", type=float, help="MB/s of the line; --openssh only.")
    options.add_argument("--server", help="ssh://user@host:port of an OpenSSH server here.")
    options.add_argument("--key", type=Path)
    options.add_argument("--known-hosts", type=Path)
    options.add_argument("--megabytes", type=int, default=500)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as name:
        folder = Path(name)
        if given.openssh:
            with serving_openssh(folder) as host, ExitStack() as line:
                given.key, given.known_hosts = folder / "client", folder / "known_hosts"
                if given.line:
                    port = line.enter_context(slow_line(host.port, given.line * 1e6))
                    known = given.known_hosts.read_text()
                    given.known_hosts.write_text(known.replace(f":{host.port} ", f":{port} "))
                    host = replace(host, port=port)
                given.server = host.url(Path("/")).removesuffix("/")
                against_sftp(given, folder)
            return
        if given.server:
            against_sftp(given, folder)
            return
        remote = folder / "remote.db"
        make(remote, given.members)
        print(f"{remote.stat().st_size / 1e6:.0f} MB, {2 * given.members:,} rows")
        began = time.perf_counter()
        subprocess.run(["cp", remote, folder / "cp.db"], check=True)
        print(f"{'cp, same machine':24} {time.perf_counter() - began:6.2f} s")
        with serving(folder) as host:
            url, rows, file = host.url(remote), folder / "rows.db", folder / "file.db"
            show("query, first time", pull(url, rows, method="query", **host.access))
            with closing(sqlite3.connect(remote, isolation_level=None)) as db:
                db.execute("delete from visit where rowid = 1000")
                db.execute("update member set name = 'another' where id in (7, 90000)")
                db.execute("insert into visit values (1, '2026-02-01', 'new')")
            show("query, after 4 changes", pull(url, rows, method="query", **host.access))
            show("query, after none", pull(url, rows, method="query", **host.access))
            show("scp", pull(url, file, method="scp", **host.access))


if __name__ == "__main__":
    main()
