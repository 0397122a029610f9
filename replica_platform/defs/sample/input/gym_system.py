"""A small `gym_system.db` to try backups on: members, check-ins, payments.

The content is random, the same every time, and of no real person.
"""

import random
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

from replica_platform.core.sqlite import sqlite3

MEMBERS, CHECK_INS = 240, 4000
OPENED = datetime(2025, 1, 6, 6, 0)
PLANS = {"basic": 2900, "plus": 4900, "family": 7900}
FIRST = ("Ada", "Ben", "Chiara", "Deniz", "Elif", "Felix", "Grace", "Hanna", "Ivan", "Jun")
LAST = ("Abel", "Braun", "Costa", "Demir", "Eder", "Fischer", "Gruber", "Huang", "Ito", "Jansen")
SCHEMA = """
create table member (
    id integer primary key, name text not null, plan text not null, joined_at text not null
);
create table check_in (
    id integer primary key, member_id integer not null references member (id),
    checked_in_at text not null, checked_out_at text
);
create index check_in_by_member on check_in (member_id, checked_in_at);
create table payment (
    id integer primary key, member_id integer not null references member (id),
    amount_cents integer not null check (amount_cents > 0), paid_at text not null
);
create index payment_by_time on payment (paid_at);
"""


def sample_gym_system(path: Path) -> None:
    """Make the database at `path` in WAL mode; do nothing if the file exists."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = random.Random(20250106)
    joined = sorted(OPENED + timedelta(minutes=rng.randrange(300 * 1440)) for _ in range(MEMBERS))
    plans = [rng.choice(list(PLANS)) for _ in range(MEMBERS)]
    names = [f"{rng.choice(FIRST)} {rng.choice(LAST)}" for _ in range(MEMBERS)]
    visits = sorted(
        (joined[member] + timedelta(minutes=rng.randrange(120 * 1440)), member + 1)
        for member in (rng.randrange(MEMBERS) for _ in range(CHECK_INS))
    )
    members = [(n, p, j.isoformat(" ")) for n, p, j in zip(names, plans, joined, strict=True)]
    check_ins = [
        (member_id, at.isoformat(" "), _check_out(at, rng).isoformat(" "))
        for at, member_id in visits
    ]
    payments = [
        (member + 1, PLANS[plans[member]], _due(joined[member], month).isoformat(" "))
        for month in range(6)
        for member in range(MEMBERS)
    ]
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("pragma journal_mode=wal")
        db.executescript(f"begin;{SCHEMA}")
        db.executemany("insert into member (name, plan, joined_at) values (?, ?, ?)", members)
        db.executemany(
            "insert into check_in (member_id, checked_in_at, checked_out_at) values (?, ?, ?)",
            check_ins,
        )
        db.executemany(
            "insert into payment (member_id, amount_cents, paid_at) values (?, ?, ?)", payments
        )
        db.execute("commit")


def _check_out(checked_in: datetime, rng: random.Random) -> datetime:
    return checked_in + timedelta(minutes=rng.randrange(20, 150))


def _due(joined: datetime, month: int) -> datetime:
    return joined + timedelta(days=30 * month)
