"""Every check passes before the damage and fails after it, with advice in its sentence."""

import json
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from replica_platform.core.sqlite import sqlite3
from replica_platform.defs.sample import session
from replica_platform.outbox import Outbox
from replica_platform.replica import Master, ReplicaReader
from replica_platform_tests.defs.conftest import Platform

Damage = Callable[[Platform], None]


def on_master(statement: str) -> Damage:
    def damage(platform: Platform) -> None:
        with Master(platform.master).write() as connection:
            connection.execute(statement)

    return damage


def on_target(statement: str) -> Damage:
    def damage(platform: Platform) -> None:
        with psycopg.connect(platform.settings.target) as target:
            target.execute(statement)

    return damage


def on_source(statement: str) -> Damage:
    def damage(platform: Platform) -> None:
        with psycopg.connect(platform.settings.source) as source:
            source.execute(statement)

    return damage


def flip_a_bit(path: Path) -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def flip_a_bit_of_the_replica(platform: Platform) -> None:
    flip_a_bit((platform.settings.store / "stock_data_replica.db").resolve())


def shorten_the_replica(platform: Platform) -> None:
    path = (platform.settings.store / "stock_data_replica.db").resolve()
    path.chmod(0o644)
    os.truncate(path, path.stat().st_size - 4096)


def shorten_the_quotes(platform: Platform) -> None:
    folder = platform.settings.store / "purposes" / "quotes"
    path = (folder / "stock_data_replica.db").resolve()
    path.chmod(0o644)
    os.truncate(path, path.stat().st_size - 4096)


def flip_a_bit_of_the_backup(platform: Platform) -> None:
    (copy,) = platform.settings.backup_dir.glob("*.db")
    flip_a_bit(copy)


def age_the_backup(platform: Platform) -> None:
    (manifest,) = platform.settings.backup_dir.glob("*.json")
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "taken_at": "2020-01-01T00:00:00+00:00"}))


def lose_a_bar(platform: Platform) -> None:
    with Master(platform.master).write() as connection:
        connection.execute("delete from ohlcv where day = '2013-03-01'")


def leave_a_record_waiting(platform: Platform) -> None:
    with Outbox(platform.settings.outbox_dir / "worker-1.db") as outbox:
        outbox.append("conversation", {"message": "later"})
    with sqlite3.connect(outbox.path) as connection:
        connection.execute("update record set created_at = created_at - 3600")
    connection.close()


def send_a_record_that_is_refused(platform: Platform) -> None:
    on_target("alter table outbox.record add constraint no_bad check (not payload ? 'bad')")(
        platform
    )
    with Outbox(platform.settings.outbox_dir / "worker-1.db") as outbox:
        outbox.append("conversation", {"bad": 1})
        outbox.append_many("conversation", [{"message": str(n)} for n in range(30)])
    platform.materialise("conversations")


CASES: list[tuple[str, str, Damage, str]] = [
    (
        "symbols",
        "rules_hold",
        on_master("update symbols set name = null"),
        "every symbol is named",
    ),
    ("ohlcv", "rules_hold", on_master("update ohlcv set low = high + 1"), "prices are sane"),
    ("ohlcv", "newest_bar_is_fresh", lose_a_bar, "see whether its delivery is late"),
    ("indicators", "rules_hold", on_master("delete from indicators"), "one row a bar"),
    ("watchlist", "rules_hold", on_master("delete from watchlist"), "something is watched"),
    (
        "market_replica",
        "published_bytes_are_intact",
        flip_a_bit_of_the_replica,
        "Publish again",
    ),
    ("market_replica", "kept_bytes_are_intact", shorten_the_replica, "give a block store"),
    ("purposes/quotes", "kept_bytes_are_intact", shorten_the_quotes, "give a block store"),
    (
        "market_replica",
        "replica_is_in_sync",
        on_master("create table more as select 1 a"),
        "ublish",
    ),
    (
        "purposes/quotes",
        "every_column_is_listed",
        on_master("alter table watchlist add column owner varchar"),
        "watchlist.owner",
    ),
    (
        "raw_data/prices",
        "is_intact",
        on_target("delete from raw_data.prices where volume > 1e8"),
        "missing",
    ),
    (
        "raw_data/prices",
        "is_intact",
        on_target("update raw_data.prices set source_xmin = 3"),
        "stale",
    ),
    (
        "raw_data/prices",
        "is_fresh",
        on_target("update replica_platform.mark set synced_at = now() - interval '2 hours'"),
        "see whether the schedule runs",
    ),
    (
        "watchlist_prices",
        "prices_are_the_replicas",
        on_target("update analytics.watchlist_prices set last_price = 1 where symbol = 'IBM'"),
        "for IBM",
    ),
    (
        "conversations",
        "nothing_is_missing",
        on_target("delete from outbox.record"),
        "48 rows",
    ),
    ("conversations", "no_row_is_dead", send_a_record_that_is_refused, "replica dead"),
    ("conversations", "backlog_is_fresh", leave_a_record_waiting, "1 rows wait"),
    ("backups/gym_system", "is_intact", flip_a_bit_of_the_backup, ""),
    ("backups/gym_system", "is_fresh", age_the_backup, ""),
]


@pytest.mark.parametrize(("asset", "check", "damage", "advice"), CASES)
def test_passes_then_fails(
    platform: Platform,
    asset: str,
    check: str,
    damage: Damage,
    advice: str,
) -> None:
    assert platform.materialise(asset).success
    before = platform.check(asset, check)
    assert before.passed, before.description
    damage(platform)
    after = platform.check(asset, check)
    assert not after.passed
    assert advice in (after.description or "")


def test_a_publication_before_the_last_close_is_not_fresh(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert platform.materialise("market_replica").success
    assert platform.check("market_replica", "published_since_the_last_session").passed
    # In ten days several sessions will have closed.
    monkeypatch.setattr(session, "PIPELINE_TAKES", timedelta(days=-10))
    late = platform.check("market_replica", "published_since_the_last_session")
    assert not late.passed
    assert "why the pipeline did not run" in (late.description or "")


def test_an_unsound_candidate_leaves_readers_on_the_current_generation(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert platform.materialise("market_replica").success
    with ReplicaReader(platform.settings.store) as reader:
        before = reader.query("select count(*) from watchlist")
        generation = reader.generation
        # Without the table's check, which would stop it earlier: this is about the candidate.
        on_master("update watchlist set last_price = -1")(platform)
        failed = platform.run_only("market_replica")
        assert not failed.success
        audit = {one.check_name: one for one in failed.get_asset_check_evaluations()}
        assert not audit["candidate_is_sound"].passed
        assert "readers stay on the generation they have" in audit["candidate_is_sound"].description
        assert reader.query("select count(*) from watchlist") == before
        assert reader.generation == generation
