"""Rules of purposes and of their stores: no column is published that is not listed."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from replica_platform.replica import (
    BlockStore,
    Master,
    Part,
    Publication,
    Purpose,
    load_purposes,
    publish,
    repair,
    rollback,
    status,
    unlisted_columns,
)
from replica_platform.replica.errors import PurposeWrong, WrongStore

SALT = "a secret of this deployment"
CRM = Purpose("crm", {"customer": Part(columns=("id",))})


@pytest.fixture
def master(tmp_path: Path) -> Master:
    """A master with three tables of four columns each, filled with random bytes."""
    master = Master(tmp_path / "people.duckdb")
    with master.write() as connection:
        for table in ("customer", "staff", "visitor"):
            columns = ", ".join(
                f"unhex(md5('{table}{column}' || range)) as {column}"
                for column in ("name", "card", "mail")
            )
            connection.execute(f"create table {table} as select range id, {columns} from range(9)")
    return master


def columns_of(publication: Publication) -> dict[str, list[str]]:
    with duckdb.connect(str(publication.file), read_only=True) as connection:
        rows = connection.execute(
            "select table_name, list(column_name order by column_index) "
            "from duckdb_columns() where not internal group by all"
        ).fetchall()
    return dict(rows)


def holds(publication: Publication, text: str) -> bool:
    """Return whether the file's bytes contain the random value made from that text."""
    return hashlib.md5(text.encode()).digest() in publication.file.read_bytes()


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# --- definitions


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"columns": ["id", "card"], "masks": {"card": "null"}}, "'masks'.*do you mean 'mask'"),
        ({"colums": ["id"]}, "'colums'.*do you mean 'columns'"),
        ({"columns": ["id"], "were": "id > 1"}, "'were'.*do you mean 'where'"),
        ({"columns": ["id"], "maks": {}, "wher": "true"}, "'maks'.*'mask'.*'wher'.*'where'"),
        ({"columns": ["id"], "zzz": 1}, "'zzz'.*columns, left_out, mask and where"),
        ({"columns": ["id"], True: 1}, "True"),
    ],
)
def test_an_unknown_key_of_a_part_is_refused_by_name(part: dict[Any, Any], message: str) -> None:
    with pytest.raises(PurposeWrong, match=message):
        Purpose.from_dict("crm", {"tables": {"customer": part}})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keeps": 2}, "'keeps'.*do you mean 'keep'"),
        ({"salt": SALT}, "'salt'.*do you mean 'salt_env'"),
        ({"mask": {"card": "null"}}, "'mask'"),
        ({"name": "other"}, "'name'"),
    ],
)
def test_an_unknown_key_of_a_purpose_is_refused_by_name(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(PurposeWrong, match=message) as raised:
        Purpose.from_dict("crm", {"tables": {"customer": {"columns": ["id"]}}, **fields})
    assert SALT not in str(raised.value)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (None, "columns"),
        ({}, "columns"),
        (["id"], "columns"),
        ({"where": "id > 1"}, "columns"),
        ({"mask": {"card": "null"}}, "columns"),
        ({"columns": None}, "columns"),
        ({"columns": []}, "columns"),
        ({"columns": "id"}, "columns"),
        ({"columns": {"id": "hash"}}, "columns"),
        ({"columns": [["id"]]}, "columns"),
        ({"columns": ["id", True]}, "in quotes"),
        ({"columns": ["id", "name", "id"]}, "'id' twice"),
        ({"columns": ["id", "ID"]}, "'ID' twice"),
        ({"columns": ["id"], "where": None}, "where"),
        ({"columns": ["id"], "where": ""}, "where"),
        ({"columns": ["id"], "where": "  "}, "where"),
        ({"columns": ["id"], "where": False}, "where"),
        ({"columns": ["id"], "mask": None}, "mask"),
        ({"columns": ["id"], "mask": {}}, "mask"),
        ({"columns": ["id"], "mask": ["id"]}, "mask"),
        ({"columns": ["id"], "mask": "hash"}, "mask"),
        ({"columns": ["id"], "mask": {True: "null"}}, "in quotes"),
        ({"columns": ["id"], "mask": {"id": False}}, "masked by False"),
        ({"columns": ["id"], "mask": {"id": ["null"]}}, "masked by"),
        ({"columns": ["id"], "left_out": None}, "left_out"),
        ({"columns": ["id"], "left_out": []}, "left_out"),
        ({"columns": ["id"], "left_out": "card"}, "left_out"),
        ({"columns": ["id"], "left_out": ["card", "ID"]}, "'ID'.*left_out"),
        ({"columns": "all", "left_out": ["card"]}, "left_out"),
        ({"columns": "all", "left_out": "all"}, "left_out"),
    ],
)
def test_empty_or_malformed_values_are_refused(part: Any, message: str) -> None:
    with pytest.raises(PurposeWrong, match=rf"crm: customer.*{message}"):
        Purpose.from_dict("crm", {"tables": {"customer": part}})


@pytest.mark.parametrize("tables", [None, {}, [], ["customer"], "customer", {True: {}}])
def test_empty_or_malformed_tables_are_refused(tables: Any) -> None:
    with pytest.raises(PurposeWrong, match="tables"):
        Purpose.from_dict("crm", {"tables": tables})
    for fields in ({}, [], None, "tables"):
        with pytest.raises(PurposeWrong, match="tables"):
            Purpose.from_dict("crm", fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "part",
    [
        Part(columns=()),
        Part(columns="id"),  # type: ignore[arg-type]
        Part(columns=None),  # type: ignore[arg-type]
        Part(columns=("id",), where=""),
        Part(columns=("id",), left_out=("id",)),
    ],
)
def test_the_rules_apply_to_a_part_made_in_python(part: Part) -> None:
    with pytest.raises(PurposeWrong, match="crm: customer"):
        Purpose("crm", {"customer": part})


@pytest.mark.parametrize(
    "part",
    [
        {"columns": ["id"]},
        {"columns": "all"},
        {"columns": ["id", "card"], "mask": {"card": "null"}},
        {"columns": ["id"], "where": "id > 1"},
    ],
)
def test_a_wildcard_for_all_tables_is_refused(part: dict[str, Any]) -> None:
    with pytest.raises(PurposeWrong, match="name each table"):
        Purpose.from_dict("crm", {"tables": {"*": part, "staff": {"columns": ["id"]}}})


@pytest.mark.parametrize("names", [("customer", "main.customer"), ("customer", "Main.Customer")])
def test_the_same_table_under_two_names_is_refused(names: tuple[str, str]) -> None:
    masked = {"columns": ["card"], "mask": {"card": "null"}}
    for first, second in (names, names[::-1]):
        tables = {first: masked, second: {"columns": ["card"]}}
        with pytest.raises(PurposeWrong, match=f"{first}.*{second}.*same table"):
            Purpose.from_dict("crm", {"tables": tables})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "crm:\n  tables:\n    customer:\n      columns: [card, mail]\n"
            "      mask: {card: redact}\n      mask: {mail: redact}\n",
            "line 6.*mask",
        ),
        (
            "crm:\n  tables:\n    customer: {columns: [id]}\n    customer: {columns: all}\n",
            "line 4.*customer",
        ),
        ("crm: {tables: {a: {columns: [b]}}}\ncrm: {tables: {a: {columns: all}}}\n", "line 2.*crm"),
    ],
)
def test_a_key_written_twice_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PurposeWrong, match=message):
        load_purposes(written(tmp_path / "purposes.yaml", text))


def test_a_yaml_alias_is_not_a_repeated_key(tmp_path: Path) -> None:
    text = (
        "crm:\n  tables:\n    customer: &part {columns: [id]}\n    staff: *part\n"
        "    visitor: {<<: *part, where: id > 1}\n"
    )
    (purpose,) = load_purposes(written(tmp_path / "purposes.yaml", text))
    part = Part(columns=("id",))
    assert purpose.tables == {
        "customer": part,
        "staff": part,
        "visitor": Part(columns=("id",), where="id > 1"),
    }


# --- any number of tables, columns and masks


@pytest.mark.parametrize(
    ("tables", "columns", "masks"),
    [(1, 1, 0), (1, 1, 1), (1, 2, 1), (2, 1, 1), (2, 2, 2), (2, 4, 0), (3, 4, 2), (3, 4, 4)],
)
def test_exactly_the_listed_tables_and_columns_are_published(
    master: Master,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tables: int,
    columns: int,
    masks: int,
) -> None:
    monkeypatch.setenv("CRM_SALT", SALT)
    listed = ["name", "card", "mail", "id"][:columns]
    masked = dict(zip(listed, ["null", "redact", "hash", "null"][:masks], strict=False))
    part = f"{{columns: [{', '.join(listed)}]"
    if masked:
        part += f", mask: {{{', '.join(f'{name}: {how}' for name, how in masked.items())}}}"
    names = ["customer", "main.staff", "visitor"][:tables]
    lines = "".join(f"    {name}: {part}}}\n" for name in names)
    path = written(tmp_path / "p.yaml", f"crm:\n  salt_env: CRM_SALT\n  tables:\n{lines}")
    (purpose,) = load_purposes(path)
    publication = publish(master.path, tmp_path / "store", purpose=purpose)
    bare = [name.removeprefix("main.") for name in names]
    assert columns_of(publication) == dict.fromkeys(bare, listed)
    shown = {
        (table, column): holds(publication, f"{table}{column}3")
        for table in ("customer", "staff", "visitor")
        for column in ("name", "card", "mail")
    }
    assert shown == {
        (table, column): table in bare and column in listed and column not in masked
        for table, column in shown
    }


def test_a_file_holds_any_number_of_purposes(tmp_path: Path) -> None:
    path = tmp_path / "purposes.yaml"
    for count in (0, 1, 2, 9):
        lines = [f"p{n}: {{tables: {{customer: {{columns: [id]}}}}}}\n" for n in range(count)]
        found = load_purposes(written(path, "".join(lines)))
        assert [purpose.name for purpose in found] == [f"p{n}" for n in range(count)]


# --- columns that are added later


def add_a_column(master: Master, table: str = "customer") -> None:
    with master.write() as connection:
        connection.execute(f"alter table {table} add column phone blob")
        connection.execute(f"update {table} set phone = unhex(md5('phone' || id))")


@pytest.mark.parametrize(
    "part",
    [
        Part(columns=("id", "name")),
        Part(columns=("id", "name"), where="id < 5"),
        Part(columns=("id", "name"), mask={"name": "null"}),
        Part(columns=("id", "name"), left_out="all"),
    ],
)
def test_a_column_added_later_is_not_published(master: Master, tmp_path: Path, part: Part) -> None:
    purpose = Purpose("crm", {"customer": part})
    publish(master.path, tmp_path / "store", purpose=purpose)
    add_a_column(master)
    later = publish(master.path, tmp_path / "store", purpose=purpose)
    assert later.generation == 2
    assert columns_of(later) == {"customer": ["id", "name"]}
    assert not holds(later, "phone3")


def test_columns_all_publishes_later_columns_too(master: Master, tmp_path: Path) -> None:
    """The control: this publishes the later column, and the search finds it."""
    purpose = Purpose.from_dict(
        "crm", {"tables": {"customer": {"columns": "all", "mask": {"card": None}}}}
    )
    first = publish(master.path, tmp_path / "store", purpose=purpose)
    assert columns_of(first) == {"customer": ["id", "name", "card", "mail"]}
    assert not holds(first, "customercard3")
    add_a_column(master)
    later = publish(master.path, tmp_path / "store", purpose=purpose)
    assert columns_of(later) == {"customer": ["id", "name", "card", "mail", "phone"]}
    assert holds(later, "phone3")
    assert not holds(later, "customercard3")


def test_unlisted_columns_are_named(master: Master) -> None:
    part = Part(columns=("id", "name"), left_out=("card", "mail"))
    purpose = Purpose("crm", {"customer": part, "main.staff": part, "visitor": Part(columns="all")})
    found = unlisted_columns(purpose, master.path)
    assert (found.ok, found.columns) == (True, ())
    add_a_column(master, "visitor")
    assert unlisted_columns(purpose, master.path).ok
    add_a_column(master, "customer")
    found = unlisted_columns(purpose, master.path)
    assert (found.ok, found.columns) == (False, ("customer.phone",))
    assert "customer.phone" in found.sentence
    add_a_column(master, "staff")
    found = unlisted_columns(purpose, master.path)
    assert found.columns == ("customer.phone", "staff.phone")
    assert "staff.phone" in found.sentence


def test_a_column_is_unlisted_until_it_is_listed_or_left_out(master: Master) -> None:
    def unlisted(part: Part) -> tuple[str, ...]:
        return unlisted_columns(Purpose("crm", {"customer": part}), master.path).columns

    assert unlisted(Part(columns=("id", "name", "card", "mail"))) == ()
    assert unlisted(Part(columns=("id", "name", "card"))) == ("customer.mail",)
    assert unlisted(Part(columns=("id",), left_out=("MAIL",))) == ("customer.card", "customer.name")
    assert unlisted(Part(columns=("id",), left_out="all")) == ()
    assert unlisted(Part(columns="all")) == ()


def test_naming_a_column_as_left_out_changes_no_byte(master: Master, tmp_path: Path) -> None:
    publish(master.path, tmp_path / "store", purpose=CRM)
    explicit = Purpose("crm", {"customer": Part(columns=("id",), left_out=("card",))})
    assert publish(master.path, tmp_path / "store", purpose=explicit).how == "unchanged"


# --- one owner for each store

Act = Callable[[Path, Path], object]


def publish_all(master: Path, store: Path) -> object:
    return publish(master, store)


def publish_crm(master: Path, store: Path) -> object:
    return publish(master, store, purpose=CRM)


def publish_another(master: Path, store: Path) -> object:
    return publish(master, store, purpose=Purpose("hr", {"staff": Part(columns=("id",))}))


def as_it_is(store: Path) -> None:
    del store


def lose_the_pointer(store: Path) -> None:
    (store / "current.json").unlink()


def tear_the_pointer(store: Path) -> None:
    (store / "current.json").write_bytes(b"{")


def lose_the_file(store: Path) -> None:
    (store / "stock_data_replica.db").resolve().unlink()


@pytest.mark.parametrize("state", [as_it_is, lose_the_pointer, tear_the_pointer, lose_the_file])
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (publish_crm, publish_all, "purpose crm.*the whole master"),
        (publish_crm, publish_another, "purpose crm.*purpose hr"),
        (publish_all, publish_crm, "the whole master.*purpose crm"),
    ],
)
def test_a_store_belongs_to_one_purpose_or_to_the_master(
    master: Master,
    tmp_path: Path,
    first: Act,
    second: Act,
    message: str,
    state: Callable[[Path], None],
) -> None:
    store = tmp_path / "store"
    first(master.path, store)
    add_a_column(master)
    state(store)
    before = sorted(path.name for path in (store / "generations").iterdir())
    with pytest.raises(WrongStore, match=message):
        second(master.path, store)
    assert sorted(path.name for path in (store / "generations").iterdir()) == before
    first(master.path, store)
    assert status(store).generation == 2
    second(master.path, tmp_path / "its own")


def test_a_purposes_store_is_not_repaired_with_the_whole_master(
    master: Master, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    lost = publish(master.path, store, purpose=CRM)
    lost.file.unlink()
    with pytest.raises(WrongStore, match="purpose crm"):
        repair(store, master=master.path)
    assert publish(master.path, store, purpose=CRM).generation == 2


def test_blocks_of_another_purpose_are_neither_pushed_nor_pulled(
    master: Master, tmp_path: Path
) -> None:
    crm, market = tmp_path / "crm", tmp_path / "market"
    publish(master.path, crm, purpose=CRM)
    publish(master.path, market)
    crm_blocks, market_blocks = BlockStore(tmp_path / "1"), BlockStore(tmp_path / "2")
    crm_blocks.push(crm)
    market_blocks.push(market)
    with pytest.raises(WrongStore, match=r"purpose crm.*the whole master"):
        crm_blocks.push(market)
    with pytest.raises(WrongStore, match=r"the whole master.*purpose crm"):
        market_blocks.push(crm)
    with pytest.raises(WrongStore, match=r"purpose crm.*the whole master"):
        market_blocks.pull(crm)
    with pytest.raises(WrongStore, match=r"the whole master.*purpose crm"):
        crm_blocks.pull(market)
    assert crm_blocks.generations() == market_blocks.generations() == [1]
    assert crm_blocks.pull(crm).manifest.purpose == "crm"
    assert market_blocks.pull(tmp_path / "elsewhere").manifest.purpose is None


def mix(master: Master, tmp_path: Path) -> Path:
    """Return a store with generation 2 of the purpose and generation 1 of the whole master."""
    store, full = tmp_path / "store", tmp_path / "full"
    publish(master.path, store, purpose=CRM)
    add_a_column(master)
    publish(master.path, store, purpose=CRM, min_age_s=0)
    for path in (store / "generations").glob("*.000001-*"):
        path.unlink()
    for path in publish(master.path, full).file.parent.iterdir():
        shutil.copy2(path, store / "generations")
    return store


def test_a_purposes_store_is_not_rolled_back_to_the_whole_master(
    master: Master, tmp_path: Path
) -> None:
    store = mix(master, tmp_path)
    with pytest.raises(WrongStore, match=r"purpose crm.*the whole master"):
        rollback(store, 1)
    assert status(store).generation == 2


def test_a_mixed_store_is_refused(master: Master, tmp_path: Path) -> None:
    store = mix(master, tmp_path)
    for act in (publish_crm, publish_all):
        with pytest.raises(WrongStore, match="remove"):
            act(master.path, store)
