"""The defs.yaml that is proposed for a database: what it says, and that it is never overwritten."""

from pathlib import Path

import pytest
import yaml

from replica_platform.app.adopt import AlreadyThere, plain_name, proposal, write_proposal
from replica_platform.xmin import ListedColumn, ListedTable, Survey, SurveyedTable
from replica_platform.xmin.names import TableName

ID = ListedColumn("id", "integer")


def table(schema: str, name: str, *secrets: str, refusal: str | None = None) -> SurveyedTable:
    columns = (ID, *(ListedColumn(secret, "text") for secret in secrets))
    listed = ListedTable(TableName(schema, name), "r", None, columns, key=("id",), bytes=2**20)
    return SurveyedTable(listed, secrets, refusal)


def attributes(text: str) -> list[dict[str, object]]:
    documents = list(yaml.safe_load_all(text))
    assert {one["type"] for one in documents} == {"replica_platform.components.XminTables"}
    return [one["attributes"] for one in documents]


def test_a_schema_is_taken_by_a_pattern_with_its_secrets_masked() -> None:
    found = Survey(
        "shop",
        [
            table("public", "users", "passwd"),
            table("public", "keys", "passwd", "api_token"),
            table("public", "sessions", refusal="its key is a secret"),
            table("public", "Odd name"),
        ],
        bytes_per_s=2**20,
    )
    text = proposal(found, "shop", "SHOP_DSN")
    assert attributes(text) == [
        {
            "name": "shop",
            "source": "SHOP_DSN",
            "into": "shop",
            "tables": [
                {
                    "table": "public.*",
                    "exclude": ["public.sessions"],
                    "mask": {"passwd": "null", "api_token": "null"},
                }
            ],
        }
    ]
    assert "# 3 tables, 3.0 MiB; the first copy takes about 3 s." in text
    assert "public.sessions # its key is a secret" in text
    assert "in public.users, public.keys" in text


def test_the_default_source_needs_no_variable() -> None:
    (given,) = attributes(proposal(Survey("fds", [table("fds", "a")]), "fds", None))
    assert "source" not in given


def test_a_schema_with_an_odd_name_is_listed_table_by_table() -> None:
    found = Survey(
        "d",
        [
            table("My.Shop", "a*b", "pin code password"),
            table("My.Shop", 'say "hi": #1'),
            table("My.Shop", "gone", refusal="the user may not read it"),
        ],
    )
    (given,) = attributes(proposal(found, "d", None))
    assert given["tables"] == [
        {"table": '"My.Shop"."a*b"', "mask": {"pin code password": "null"}},
        {"table": '"My.Shop"."say ""hi"": #1"'},
    ]
    names = [TableName.parse(str(one["table"])) for one in given["tables"]]  # type: ignore[attr-defined]
    assert names == [TableName("My.Shop", "a*b"), TableName("My.Shop", 'say "hi": #1')]


def test_schemas_with_tables_of_one_name_get_a_group_each() -> None:
    found = Survey("d", [table("eu", "orders"), table("us", "orders"), table("us", "people")])
    groups = attributes(proposal(found, "shop", "SHOP_DSN"))
    assert [(one["name"], one["into"]) for one in groups] == [
        ("shop_eu", "shop_eu"),
        ("shop_us", "shop_us"),
    ]


def test_a_schema_without_a_table_to_sync_is_named_only() -> None:
    found = Survey("d", [table("a", "t"), table("b", "u", refusal="the user may not read it")])
    text = proposal(found, "d", None)
    (given,) = attributes(text)
    assert given["tables"] == [{"table": "a.*"}]
    assert "# Not b.u: the user may not read it." in text


@pytest.mark.parametrize(
    ("text", "name"), [("Shop DB", "shop_db"), ("7eleven", "db_7eleven"), ("§", "source")]
)
def test_names_are_plain(text: str, name: str) -> None:
    assert plain_name(text) == name


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    file = write_proposal("one\n", "shop", tmp_path)
    assert file == tmp_path / "shop" / "defs.yaml"
    with pytest.raises(AlreadyThere, match="is not overwritten; give another --name"):
        write_proposal("two\n", "shop", tmp_path)
    assert file.read_text() == "one\n"
    assert write_proposal("two\n", "shop2", tmp_path).read_text() == "two\n"
