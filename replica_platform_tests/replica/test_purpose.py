"""Purpose replicas: the listed tables, columns and rows, masked; nothing else is in the bytes."""

import hashlib
import shutil
from pathlib import Path

import duckdb
import pytest

from replica_platform.replica import (
    Master,
    Part,
    Purpose,
    ReplicaReader,
    load_purposes,
    publish,
    status,
)
from replica_platform.replica.errors import PurposeWrong

SALT = "a secret of this deployment"


@pytest.fixture
def people(tmp_path: Path) -> Master:
    """A master with customers, some of them deleted, and a table that must not be published."""
    master = Master(tmp_path / "people.duckdb")
    with master.write() as connection:
        connection.execute(
            "create table customer as select range id, 'NAME-' || md5(range::varchar) as name, "
            "'CARD-' || md5((range + 1)::varchar) as card, range % 2 = 0 as active from range(5000)"
        )
        connection.execute(
            "create table audit as select 'AUDIT-' || range as line from range(5000)"
        )
    with master.write() as connection:
        connection.execute("delete from customer where id >= 4000")
    return master


def test_a_subset_is_published_and_read(people: Master, tmp_path: Path) -> None:
    purpose = Purpose("crm", {"customer": Part(columns=("id", "name"), where="active")})
    publication = publish(people.path, tmp_path / "crm", purpose=purpose)
    assert publication.how == "build"
    assert set(publication.manifest.tables) == {"customer"}
    with ReplicaReader(tmp_path / "crm") as reader:
        assert reader.query("select count(*), max(id) from customer") == [(2000, 3998)]
        assert reader.query("select * from customer where id = 0")[0][0] == 0
        assert len(reader.query("select * from customer limit 1")[0]) == 2


# Values that must not be in the file, by column and rows: five of each, in the middle.
HIDDEN = {
    "deleted": ("name", range(4100, 4105)),
    "left out by a condition": ("name", range(1101, 1111, 2)),
    "of a column left out": ("card", range(1100, 1110, 2)),
    "masked by null": ("phone", range(1100, 1110, 2)),
    "masked by hash": ("mail", range(1100, 1110, 2)),
    "of a table left out": ("line", range(1100, 1105)),
}
SHOWN = ("name", range(1100, 1110, 2))
SCRUBBED = Purpose(
    "crm",
    {
        "customer": Part(
            columns=("id", "name", "phone", "mail"),
            where="active",
            mask={"phone": "null", "mail": "hash"},
        )
    },
    salt=SALT,
)


@pytest.fixture
def secrets(tmp_path: Path) -> Master:
    """A master whose values are random bytes, so that no compression hides one from a search."""
    master = Master(tmp_path / "secrets.duckdb")
    columns = ", ".join(
        f"unhex(md5('{column}' || range)) as {column}"
        for column in ("name", "card", "phone", "mail")
    )
    with master.write() as connection:
        connection.execute(
            f"create table customer as select range id, range % 2 = 0 as active, {columns} "
            "from range(5000)"
        )
        connection.execute(
            "create table audit as select unhex(md5('line' || range)) as line from range(5000)"
        )
    with master.write() as connection:
        connection.execute("delete from customer where id >= 4000")
    return master


def secret(column: str, row: int) -> bytes:
    return hashlib.md5(f"{column}{row}".encode()).digest()


def found_in(file: Path) -> dict[str, int]:
    """Count the values of each kind in the file's bytes."""
    content = file.read_bytes()
    return {
        kind: sum(secret(column, row) in content for row in rows)
        for kind, (column, rows) in {**HIDDEN, "shown": SHOWN}.items()
    }


def test_omitted_deleted_and_masked_values_are_not_in_the_bytes(
    secrets: Master, tmp_path: Path
) -> None:
    published = publish(secrets.path, tmp_path / "crm", purpose=SCRUBBED)
    # Finding the published ones shows that the search would have found the others.
    assert found_in(published.file) == {**dict.fromkeys(HIDDEN, 0), "shown": 5}
    assert SALT.encode() not in published.file.read_bytes()


def test_a_raw_copy_contains_them_all(secrets: Master, tmp_path: Path) -> None:
    """The control: a copy of the whole file, with deleted rows in its bytes."""
    raw = publish(secrets.path, tmp_path / "raw").file
    with duckdb.connect(str(raw), read_only=True) as connection:
        assert connection.execute("select max(id) from customer").fetchone() == (3999,)
    assert found_in(raw) == dict.fromkeys([*HIDDEN, "shown"], 5)


def test_views_over_a_raw_copy_hide_none_of_them(secrets: Master, tmp_path: Path) -> None:
    """The second control: views that hide columns, over a copy that contains them."""
    copy = tmp_path / "copy.duckdb"
    shutil.copy(secrets.path, copy)
    with duckdb.connect(str(copy)) as connection:
        connection.execute("create view crm as select id, name from customer where active")
        connection.execute("drop table audit")
    assert sum(found_in(copy).values()) > 20


def test_each_mask_hides_its_column(people: Master, tmp_path: Path) -> None:
    purpose = Purpose(
        "masked",
        {
            "customer": Part(
                columns=("name", "card", "active", "id"),
                where="id < 2",
                mask={"card": "redact", "name": "hash", "active": "null"},
            )
        },
        salt=SALT,
    )
    publish(people.path, tmp_path / "masked", purpose=purpose)
    with ReplicaReader(tmp_path / "masked") as reader:
        (first, second) = reader.query("select name, card, active from customer order by id")
    assert first[1:] == ("***", None)
    assert len(first[0]) == 64
    assert first[0] != second[0]


def test_all_columns_are_published_without_deleted_rows(people: Master, tmp_path: Path) -> None:
    purpose = Purpose("all", {"audit": Part(columns="all"), "customer": Part(columns="all")})
    publication = publish(people.path, tmp_path / "all", purpose=purpose)
    assert {name: table.rows for name, table in publication.manifest.tables.items()} == {
        "audit": 5000,
        "customer": 4000,
    }


def test_a_changed_purpose_is_published_although_the_master_is_not(
    people: Master, tmp_path: Path
) -> None:
    store = tmp_path / "crm"
    first = Purpose("crm", {"customer": Part(columns=("id",))})
    assert publish(people.path, store, purpose=first).how == "build"
    assert publish(people.path, store, purpose=first).how == "unchanged"
    second = Purpose("crm", {"customer": Part(columns=("id", "name"))})
    assert publish(people.path, store, purpose=second).generation == 2
    assert status(store, people.path).in_sync


def test_purposes_are_read_from_yaml(
    people: Master, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRM_SALT", SALT)
    (tmp_path / "purposes.yaml").write_text(
        """
crm:
  keep: 1
  max_age_s: 3600
  salt_env: CRM_SALT
  tables:
    customer:
      columns: [id, name]
      where: active
      mask: {name: hash}
    audit: {columns: all}
"""
    )
    (purpose,) = load_purposes(tmp_path / "purposes.yaml")
    assert (purpose.keep, purpose.max_age_s, purpose.salt) == (1, 3600, SALT)
    assert SALT not in repr(purpose)
    publication = publish(people.path, tmp_path / "crm", purpose=purpose)
    assert publication.manifest.tables["audit"].rows == 5000
    assert publication.manifest.max_age_s == 3600


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"absent": Part(columns="all")}, "no table main.absent"),
        ({"customer": Part(columns=("id", "absent"))}, "no column absent"),
        ({"customer": Part(columns=("id",), mask={"card": "null"})}, "not among the columns"),
        ({"customer": Part(columns="all", where="absent > 1")}, "cannot be built"),
    ],
)
def test_a_wrong_purpose_has_a_clear_error(
    people: Master, tmp_path: Path, tables: dict[str, Part], message: str
) -> None:
    with pytest.raises(PurposeWrong, match=message):
        publish(people.path, tmp_path / "store", purpose=Purpose("wrong", tables))
    assert status(tmp_path / "store").generation is None


def test_hash_needs_a_salt() -> None:
    with pytest.raises(PurposeWrong, match="needs a salt"):
        Purpose("crm", {"customer": Part(columns=("name",), mask={"name": "hash"})})
    with pytest.raises(PurposeWrong, match="use one of null, redact, hash"):
        Purpose("crm", {"customer": Part(columns=("name",), mask={"name": "blur"})})


def test_stale_data_is_reported(people: Master, tmp_path: Path) -> None:
    from datetime import UTC, datetime, timedelta

    purpose = Purpose("crm", {"customer": Part(columns="all")}, max_age_s=3600)
    store = tmp_path / "crm"
    publish(people.path, store, purpose=purpose, data_as_of=datetime.now(UTC))
    assert status(store).ok
    publish(people.path, store, purpose=purpose, data_as_of=datetime.now(UTC) - timedelta(hours=2))
    assert not status(store).ok
    assert "may be 3,600 s at most" in status(store).sentence


@pytest.mark.parametrize("held", [False, True])
def test_a_changed_purpose_withdraws_the_generations_of_the_earlier_one(
    people: Master, tmp_path: Path, held: bool
) -> None:
    """Also one that is read, or too young to retire; readers go on to the new one."""
    store = tmp_path / "crm"
    wide = Purpose("crm", {"customer": Part(columns=("id", "name", "card"))})
    narrow = Purpose("crm", {"customer": Part(columns=("id",))})
    publish(people.path, store, purpose=wide)
    with people.write() as connection:
        connection.execute("delete from customer where id = 7")
    # A second one leaves a spare.
    publish(people.path, store, purpose=wide, keep=1, min_age_s=0)
    reader = ReplicaReader(store, poll_s=600)
    try:
        if held:
            assert reader.query("select card from customer limit 1")
        last = publish(people.path, store, purpose=narrow)
        assert status(store).kept == [last.generation]
        files = [path for path in store.rglob("*") if path.is_file()]
        assert not any(b"CARD-" in path.read_bytes() for path in files)
        assert [path for path in store.rglob("*.duckdb") if not path.is_symlink()] == [last.file]
        reader._server.refresh()
        assert reader.query("select count(*) from customer") == [(3999,)]
        with pytest.raises(duckdb.Error, match="card"):
            reader.query("select card from customer")
    finally:
        reader.close()


def test_generations_of_one_definition_stay(people: Master, tmp_path: Path) -> None:
    purpose = Purpose("crm", {"customer": Part(columns=("id",))})
    for identifier in (7, 8):
        publish(people.path, tmp_path / "crm", purpose=purpose)
        with people.write() as connection:
            connection.execute("delete from customer where id = ?", [identifier])
    publish(people.path, tmp_path / "crm", purpose=purpose)
    assert status(tmp_path / "crm").kept == [3, 2, 1]
