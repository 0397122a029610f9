"""Each engine by its commands: the simple case, the JSON and the exit code."""

import json
import subprocess
from pathlib import Path
from typing import Any

import click
import duckdb
import psycopg
import pytest
from click.testing import CliRunner

from replica_platform.cli import warehouse
from replica_platform.cli.main import replica
from replica_platform.core.sqlite import sqlite3
from replica_platform.replica import BlockStore, Master
from replica_platform.xmin.decide import MODES
from replica_platform_tests.conftest import Cli


@pytest.fixture
def master(tmp_path: Path) -> Path:
    path = tmp_path / "master.duckdb"
    with Master(path).write() as connection:
        connection.execute("create table t as select range n, 'secret' || range s from range(1000)")
    return path


def test_sync_offers_the_modes_that_the_engine_has(cli: Cli) -> None:
    (mode,) = (option for option in warehouse.sync.params if option.name == "mode")
    assert isinstance(mode.type, click.Choice)
    assert sorted(mode.type.choices) == sorted(MODES)
    refused = cli("sync", "t", "--source", "x", "--target", "x", "--mode", "wal")
    assert refused.returncode == 2
    assert "'wal' is not one of" in refused.stderr


def result(finished: subprocess.CompletedProcess[str]) -> Any:
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return json.loads(finished.stdout)


def test_publish_verify_roll_back(cli: Cli, master: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert result(cli("publish", "--master", master, "--store", store, "--json"))["generation"] == 1
    again = cli("publish", "--master", master, "--store", store)
    assert "nothing was copied" in again.stdout
    with Master(master).write() as connection:
        connection.execute("insert into t values (1000, 'new')")
    assert result(cli("publish", "--master", master, "--store", store, "--json"))["generation"] == 2
    assert result(cli("verify-generation", "--store", store, "--json"))["ok"]
    assert result(cli("rollback-generation", "--store", store, "--json"))["generation"] == 1
    with duckdb.connect(str(store / "stock_data_replica.db"), read_only=True) as reader:
        assert reader.execute("select count(*) from t").fetchone() == (1000,)


def test_a_damaged_generation_is_found_and_repaired(cli: Cli, master: Path, tmp_path: Path) -> None:
    store, blocks = tmp_path / "store", tmp_path / "blocks"
    assert cli("publish", "--master", master, "--store", store).returncode == 0
    assert (
        result(cli("push-generation", "--store", store, "--blocks", blocks, "--json"))[
            "blocks_sent"
        ]
        > 0
    )
    generation = (store / "stock_data_replica.db").resolve()
    generation.chmod(0o644)
    generation.write_bytes(generation.read_bytes()[:-4096])
    damaged = cli("verify-generation", "--store", store)
    assert damaged.returncode == 1
    assert "damaged" in damaged.stderr
    assert cli("repair-store", "--store", store, "--blocks", blocks).returncode == 0
    assert result(cli("verify-generation", "--store", store, "--json"))["ok"]
    elsewhere = tmp_path / "elsewhere"
    assert cli("pull-generation", "--store", elsewhere, "--blocks", blocks).returncode == 0
    with duckdb.connect(str(elsewhere / "stock_data_replica.db"), read_only=True) as reader:
        assert reader.execute("select count(*) from t").fetchone() == (1000,)


def test_pruning_keeps_the_newest_generations(cli: Cli, master: Path, tmp_path: Path) -> None:
    store, blocks = tmp_path / "store", tmp_path / "blocks"
    for row in range(2):
        with Master(master).write() as connection:
            connection.execute("insert into t values (?, 'new')", [row])
        assert cli("publish", "--master", master, "--store", store).returncode == 0
        assert cli("push-generation", "--store", store, "--blocks", blocks).returncode == 0
    first = BlockStore(blocks).index.find(1).published_at
    earlier = ["--store", tmp_path / "earlier", "--blocks", blocks, "--at"]
    restored = cli("pull-generation", *earlier, first.isoformat(), "--json")
    assert result(restored)["generation"] == 1
    assert result(cli("pull-generation", *earlier, "2", "--json"))["generation"] == 2
    for wrong, advice in (("yesterday", "day or time"), ("2026-01-31T18:00", "no time zone")):
        refused = cli("pull-generation", *earlier, wrong)
        assert (refused.returncode, advice in refused.stderr) == (2, True)
    pruned = result(cli("prune-blocks", "--blocks", blocks, "--keep", "1", "--json"))
    assert (pruned["generations"], pruned["removed"]) == ([1], 0)
    pulled = cli("pull-generation", "--store", tmp_path / "elsewhere", "--blocks", blocks, "--json")
    assert result(pulled)["generation"] == 2


def test_two_generations_are_compared(cli: Cli, tmp_path: Path) -> None:
    master, store = tmp_path / "master.duckdb", tmp_path / "store"
    for statements in (
        "create table t (n int primary key, s varchar); create table other as select 1 a;"
        "insert into t values (1, 'one'), (2, '[two]'), (3, 'three')",
        "delete from t where n = 1; update t set s = null where n = 2;"
        f"insert into t values (4, '{'long' * 20}'); alter table other add b int",
    ):
        with Master(master).write() as connection:
            connection.execute(statements)
        assert cli("publish", "--master", master, "--store", store).returncode == 0
    shown = cli("diff", "--store", store, "--rows", "2")
    assert shown.returncode == 0, shown.stderr
    for line in (
        "t + n=4, s=" + "long" * 15 + "…",
        "t - n=1, s=one",
        "t ~ n=2, s=[two] → NULL",
        "column b added (INTEGER)",
        "Between generations 1 and 2 2 of 2 tables differ: 1 rows added, 1 removed, 1 changed.",
    ):
        assert line in shown.stdout
    one = result(cli("diff", "1", "2", "--store", store, "--table", "t", "--rows", "1", "--json"))
    assert [table["table"] for table in one["tables"]] == ["t"]
    assert one["tables"][0]["samples"][0]["after"]["s"] == "long" * 20
    for wrong, code, advice in (
        (["yesterday"], 2, "write 12, 2026-01-31"),
        (["2020-01-01"], 1, "kept are 2 (20"),
    ):
        refused = cli("diff", *wrong, "--store", store)
        assert (refused.returncode, advice in refused.stderr) == (code, True), refused.stderr


def test_a_scrub_finds_and_repairs_damage(cli: Cli, master: Path, tmp_path: Path) -> None:
    store, blocks = tmp_path / "store", tmp_path / "blocks"
    assert cli("publish", "--master", master, "--store", store).returncode == 0
    assert cli("push-generation", "--store", store, "--blocks", blocks).returncode == 0
    assert result(cli("scrub-store", "--store", store, "--within-days", "0", "--json"))["ok"]
    (store / "stock_data_replica.db").resolve().unlink()
    damaged = cli("scrub-store", "--store", store)
    assert damaged.returncode == 1
    assert "give a block store" in damaged.stderr
    repaired = result(cli("scrub-store", "--store", store, "--blocks", blocks, "--json"))
    assert repaired["repaired"] == [1]
    assert result(cli("verify-generation", "--store", store, "--json"))["ok"]


def test_a_purpose_holds_its_part_only(cli: Cli, master: Path, tmp_path: Path) -> None:
    (tmp_path / "purposes.yaml").write_text(
        "few:\n  tables:\n    t: {columns: [n], where: n < 10}\n"
    )
    store = tmp_path / "few"
    options = ("--master", master, "--store", store, "--purposes", tmp_path / "purposes.yaml")
    assert cli("publish", *options, "--purpose", "few").returncode == 0
    with duckdb.connect(str(store / "stock_data_replica.db"), read_only=True) as reader:
        assert reader.execute("select count(*), min(n) from t").fetchone() == (10, 0)
    assert b"secret" not in (store / "stock_data_replica.db").read_bytes()
    assert cli("publish", *options, "--purpose", "many").returncode == 2


def test_sync_and_validate(cli: Cli, source: str, target: str) -> None:
    with psycopg.connect(source) as connection:
        connection.execute("create table t (id int primary key, note text)")
        connection.execute("insert into t select n, 'x' from generate_series(1, 100) n")
    where = ("public.t", "--source", source, "--target", target, "--into", "copied")
    report = result(cli("sync", *where, "--json"))["reports"]["copied.t"]
    assert report["rows_inserted"] == 100
    assert "copied.t" in cli("sync", *where).stdout
    found = result(cli("validate", *where, "--json"))[0]
    assert found["in_sync"]
    assert found["score"] > 0.99
    with psycopg.connect(target) as connection:
        connection.execute("update copied.t set note = 'y' where id < 8")
    repaired = cli("sync", *where, "--prove", "0")
    assert "7 differed" in repaired.stdout
    assert "7 were repaired" in repaired.stdout
    assert "100 rows was compared" in cli("sync", *where, "--prove", "0").stdout
    assert cli("sync", *where, "--prove", "-1").returncode == 2
    with psycopg.connect(target) as connection:
        connection.execute("delete from copied.t where id = 7")
    broken = cli("validate", *where)
    assert broken.returncode == 1
    assert "RED" in broken.stdout
    missing = cli("sync", "public.nowhere", *where[1:])
    assert missing.returncode == 1
    assert "public.nowhere" in missing.stderr


def test_sync_and_validate_leave_out_and_mask_columns(cli: Cli, source: str, target: str) -> None:
    with psycopg.connect(source) as connection:
        connection.execute("create table t (id int primary key, a text, b text, c text, d text)")
        connection.execute("insert into t values (1, 'ada', 'b=b', 'see', 'dee')")
        connection.execute("create table u (id int primary key, a text)")
    where = ("--source", source, "--target", target, "--into", "copied")
    masks = ("--mask", "a=hash", "--mask", "b=fixed:x=y:z", "--mask", "c=null")
    chosen = ("--leave-out", "d", *masks, "--salt-env", "SALT")
    copied = cli("sync", "public.t", "public.u", *where, *chosen, SALT="pepper")
    assert copied.returncode == 0, copied.stderr
    with psycopg.connect(target) as connection:
        (row,) = connection.execute("select to_jsonb(t) - 'source_ctid' from copied.t t").fetchone()
    assert row.keys() == {"id", "a", "b", "c", "source_xmin"}
    assert len(row["a"]) == 64 and (row["b"], row["c"]) == ("x=y:z", None)

    # A masked column is refused as it is, and compared with its mask only.
    forgotten = cli("sync", "public.t", *where)
    assert "Name the mask or the left out column again" in forgotten.stderr
    unknown = cli("validate", "public.t", *where, "--content")
    assert "the masks of the last sync" in unknown.stderr
    salted = (*masks, "--salt-env", "SALT")
    found = cli("validate", "public.t", *where, "--content", *salted, "--json", SALT="pepper")
    assert (result(found)[0]["in_sync"], result(found)[0]["content_rows"]) == (True, 1)

    only = cli("sync", "public.t", *where[:-1], "few", "--column", "id", "--column", "c")
    assert only.returncode == 0, only.stderr
    with psycopg.connect(target) as connection:
        (row,) = connection.execute("select to_jsonb(t) from few.t t").fetchone()
    assert row.keys() == {"id", "c", "source_xmin", "source_ctid"}


def test_masks_that_are_wrong_are_refused_in_words() -> None:
    call = ("sync", "t", "--source", "x", "--target", "x")
    for masks, sentence in (
        (["--mask", "a"], "'a' is none of COLUMN=null"),
        (["--mask", "a=blur"], "'blur' is no mask"),
        (["--mask", "a=null", "--mask", "a=fixed:1"], "a is masked twice"),
        (["--mask", "a=hash"], "as --salt-env"),
        (["--salt-env", "SALT", "--mask", "a=hash"], "SALT is not set"),
    ):
        refused = CliRunner().invoke(replica, [*call, *masks])
        assert refused.exit_code == 2
        assert sentence in " ".join(refused.output.split()), refused.output


def test_append_and_drain(cli: Cli, target: str, tmp_path: Path) -> None:
    box = tmp_path / "box.db"
    lines = "".join(json.dumps({"n": n}) + "\n" for n in range(20))
    appended = cli("append", "--outbox", box, "--kind", "note", stdin=lines)
    assert len(appended.stdout.split()) == 20
    assert result(cli("drain", "--outbox", box, "--target", target, "--json"))["delivered"] == 20
    with psycopg.connect(target) as connection:
        landed = connection.execute("select id::text from outbox.record order by seq").fetchall()
    assert [row[0] for row in landed] == appended.stdout.split()
    assert "No row is dead" in cli("dead", "--outbox", box).stdout
    findings = findings_of(cli("doctor", "--outbox", box, "--target", target, "--json"))
    assert {"ok", "name", "sentence"} <= set(findings[0])


def test_dead_records_of_a_folder(cli: Cli, target: str, tmp_path: Path) -> None:
    folder = tmp_path / "boxes"
    folder.mkdir()
    empty = cli("dead", "--outbox", folder)
    assert empty.returncode == 1
    assert f"There is no outbox in {folder}" in empty.stderr
    for name in ("a", "b"):
        cli("append", "--outbox", folder / f"{name}.db", "--kind", "note", stdin='{"n": 1}')
    assert "No row is dead" in cli("dead", "--outbox", folder).stdout
    cli("drain", "--outbox", folder, "--target", target)
    with psycopg.connect(target) as connection:
        connection.execute(
            "alter table outbox.record add constraint no_bad check (not payload ? 'bad')"
        )
    cli("append", "--outbox", folder / "b.db", "--kind", "note", stdin='{"bad": 1}\n{"n": 2}\n')
    cli("drain", "--outbox", folder, "--target", target)
    listed = cli("dead", "--outbox", folder)
    assert listed.returncode == 1
    assert "b.db" in listed.stdout and "a.db" not in listed.stdout
    (row,) = json.loads(cli("dead", "--outbox", folder, "--json").stdout)["dead"]
    assert row["path"].endswith("b.db")
    replayed = result(cli("dead", "--outbox", folder, "--replay", "--json"))
    assert replayed == {"replayed": 1}


def test_drain_repairs_and_refills(cli: Cli, target: str, tmp_path: Path) -> None:
    box, mappings = tmp_path / "box.db", tmp_path / "mappings.yaml"
    lines = "".join(json.dumps({"n": n}) + "\n" for n in range(20))
    cli("append", "--outbox", box, "--kind", "note", stdin=lines)
    drain = ("drain", "--outbox", box, "--target", target)
    assert result(cli(*drain, "--json"))["delivered"] == 20
    with psycopg.connect(target) as connection:
        connection.execute("delete from outbox.record where seq in (3, 5)")
        connection.execute("create table note (id uuid primary key, n int)")
    assert result(cli(*drain, "--json"))["delivered"] == 0
    assert result(cli(*drain, "--repair", "--json"))["delivered"] == 2
    mappings.write_text("note: {table: note, columns: {id: $id, n: n}}")
    refill = ("drain", "--target", target, "--mappings", mappings, "--refill", "note")
    assert result(cli(*refill, "--json"))["filled"] == 20
    assert "0 of 20 records were missing" in cli(*refill).stdout
    cli("append", "--outbox", box, "--kind", "note", stdin='{"n": 20}\n')
    assert result(cli(*drain, "--mappings", mappings, "--json"))["delivered"] == 1
    with psycopg.connect(target) as connection:
        assert connection.execute("select count(*) from note").fetchone() == (21,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--watch", "--repair"), "--repair"),
        (("--refill", "note"), "--mappings"),
        ((), "--outbox"),
    ],
)
def test_drain_refuses_options_that_do_not_go_together(
    cli: Cli, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    finished = cli("drain", "--target", "postgresql://nowhere", *options)
    assert finished.returncode == 2
    assert message in finished.stderr


def findings_of(finished: object) -> list[dict[str, object]]:
    return json.loads(finished.stdout)  # type: ignore[attr-defined,no-any-return]


def test_back_up_and_restore(cli: Cli, tmp_path: Path) -> None:
    file, to = tmp_path / "gym.db", tmp_path / "backups"
    with sqlite3.connect(file) as connection:
        connection.execute("create table visit (id integer primary key)")
        connection.execute("insert into visit values (1), (2)")
    connection.close()
    made = result(cli("backup", file, "--to", to, "--cleanup", "--md5", "--json"))
    assert made["backup"]["tables"] == {"visit": 2} and len(made["backup"]["md5"]) == 32
    assert result(cli("backup", file, "--to", to, "--stats-only", "--json"))["count"] == 1
    restored = tmp_path / "restored.db"
    assert cli("restore-backup", made["backup"]["file"], "--to", restored).returncode == 0
    with sqlite3.connect(restored) as connection:
        assert connection.execute("select count(*) from visit").fetchone() == (2,)
    connection.close()
    refused = cli("restore-backup", made["backup"]["file"], "--to", restored)
    assert refused.returncode == 1 and "--replace" in refused.stderr
    replaced = cli("restore-backup", made["backup"]["file"], "--to", restored, "--replace")
    assert replaced.returncode == 0
    assert len(list(tmp_path.glob("restored_before_restore_*.db"))) == 1
    key, store = {"REPLICA_BACKUP_KEY": "0f" * 32}, tmp_path / "store"
    kept = cli("backup", file, "--to", tmp_path / "k", "--blocks", store, "--encrypt", **key)
    assert kept.returncode == 0, kept.stderr
    assert f"of it new in {store}" in kept.stdout.replace("\n", " ")
    (found,) = result(cli("fetch-manifests", store, "--to", tmp_path / "l", "--json", **key))[
        "found"
    ]
    assert cli("verify-backup", found["file"], **key).returncode == 0
    assert cli("restore-backup", found["file"], "--to", tmp_path / "m.db", **key).returncode == 0
    assert "0f0f" not in kept.stdout + json.dumps(found)
    without = cli("restore-backup", found["file"], "--to", tmp_path / "n.db")
    assert without.returncode == 1 and "REPLICA_BACKUP_KEY" in without.stderr
    backup = Path(made["backup"]["file"])
    assert result(cli("verify-backup", backup, "--json"))["ok"] is True
    backup.write_bytes(backup.read_bytes()[:-1])
    refused = cli("verify-backup", backup)
    assert refused.returncode == 1 and "cannot be relied on" in refused.stderr


def test_pull_refuses_a_host_that_does_not_answer(cli: Cli, tmp_path: Path) -> None:
    finished = cli("pull-sqlite", "ssh://u@127.0.0.1:1/x.db", "--to", tmp_path / "x.db")
    assert finished.returncode == 1
    assert "127.0.0.1" in finished.stderr
    assert not (tmp_path / "x.db").exists()


def test_forget_a_table(cli: Cli, source: str, target: str) -> None:
    with psycopg.connect(source) as connection:
        connection.execute("create table t (id int primary key)")
    given = ("--source", source, "--target", target, "--into", "raw")
    assert cli("sync", "public.t", *given).returncode == 0
    forgotten = cli("forget-table", "raw.t", "--target", target)
    assert forgotten.returncode == 0
    assert "raw.t is forgotten" in forgotten.stdout
    again = cli("forget-table", "raw.t", "--target", target)
    assert again.returncode == 1
    assert "Nothing is remembered of raw.t" in again.stderr


def test_tune_says_why(cli: Cli, source: str, target: str) -> None:
    tuned = cli("tune", "--source", source, "--target", target)
    assert tuned.returncode == 0
    assert "XMIN_WORKERS=" in tuned.stdout
    assert "# workers: " in tuned.stdout
    assert "MB/s were moved" in tuned.stdout
    settings = {"XMIN_WORKERS": "3", "XMIN_BATCH_BYTES": "65536"}
    tuned = cli("tune", "--source", source, "--target", target, **settings)
    assert "XMIN_WORKERS=3" in tuned.stdout and "XMIN_BATCH_BYTES=65536" in tuned.stdout
    assert tuned.stdout.count("were asked for") == 2


def test_quotes_need_a_broker(cli: Cli, master: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert cli("publish", "--master", master, "--store", store).returncode == 0
    options = ("--brokers", "127.0.0.1:1", "--topic", "q", "--cycles", 1)
    finished = cli("quotes", "--store", store, *options)
    # No table of watched symbols in this store, so nothing could be sent.
    assert finished.returncode == 1
