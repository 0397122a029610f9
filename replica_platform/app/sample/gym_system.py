"""A small, realistic `gym_system.db` to try backups on: members, check-ins, payments.

The same content every time; nothing of it belongs to a real person.
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
    """Make the database at `path` in WAL mode; do nothing when there is a file already."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    dice = random.Random(20250106)
    joined = sorted(OPENED + timedelta(minutes=dice.randrange(300 * 1440)) for _ in range(MEMBERS))
    plans = [dice.choice(list(PLANS)) for _ in range(MEMBERS)]
    names = [f"{dice.choice(FIRST)} {dice.choice(LAST)}" for _ in range(MEMBERS)]
    visits = sorted(
        (joined[who] + timedelta(minutes=dice.randrange(120 * 1440)), who + 1)
        for who in (dice.randrange(MEMBERS) for _ in range(CHECK_INS))
    )
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("pragma journal_mode=wal")
        db.executescript(f"begin;{SCHEMA}")
        db.executemany(
            "insert into member (name, plan, joined_at) values (?, ?, ?)",
            [(n, p, j.isoformat(" ")) for n, p, j in zip(names, plans, joined, strict=True)],
        )
        db.executemany(
            "insert into check_in (member_id, checked_in_at, checked_out_at) values (?, ?, ?)",
            [
                (
                    who,
                    at.isoformat(" "),
                    (at + timedelta(minutes=dice.randrange(20, 150))).isoformat(" "),
                )
                for at, who in visits
            ],
        )
        db.executemany(
            "insert into payment (member_id, amount_cents, paid_at) values (?, ?, ?)",
            [
                (
                    who + 1,
                    PLANS[plans[who]],
                    (joined[who] + timedelta(days=30 * month)).isoformat(" "),
                )
                for month in range(6)
                for who in range(MEMBERS)
            ],
        )
        db.execute("commit")
