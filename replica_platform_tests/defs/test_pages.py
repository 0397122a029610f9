"""What the pages of assets show: columns, where they come from, and a picture of a comparison."""

import re

import dagster as dg
import psycopg
import pytest

from replica_platform.components.worker_outboxes import COLUMNS
from replica_platform.metadata import MOST_COLUMNS, key_part, replica_columns
from replica_platform.replica import PublishedColumn
from replica_platform_tests.defs.conftest import Platform


@pytest.fixture
def made(platform: Platform) -> dict[str, dict[str, object]]:
    """The metadata of each asset's materialisation, by its key."""
    result = platform.materialise()
    assert result.success
    return {
        event.asset_key.to_user_string(): {
            name: value.value for name, value in event.materialization.metadata.items()
        }
        for event in result.get_asset_materialization_events()
        if event.asset_key
    }


def test_pages_show_columns_where_they_come_from_and_the_past(
    made: dict[str, dict[str, object]], platform: Platform
) -> None:
    schema, lineage = (
        made["market_replica"][f"dagster/{name}"] for name in ("column_schema", "column_lineage")
    )
    assert isinstance(schema, dg.TableSchema)
    assert isinstance(lineage, dg.TableColumnLineage)
    columns = {column.name: column.type for column in schema.columns}
    assert columns["ohlcv.close"] == "DOUBLE"
    assert columns["symbols.symbol"] == "VARCHAR"
    assert lineage.deps_by_column["ohlcv.close"] == [
        dg.TableColumnDep(dg.AssetKey("ohlcv"), "close")
    ]
    purpose = made["purposes/quotes"]["dagster/column_schema"]
    assert isinstance(purpose, dg.TableSchema)
    assert [column.name for column in purpose.columns] == [
        f"watchlist.{name}" for name in ("symbol", "last_price", "change", "as_of")
    ]
    # The table of the outbox is described by hand.
    with psycopg.connect(platform.settings.target) as target:
        there = target.execute(
            "select attname, format_type(atttypid, atttypmod) from pg_attribute"
            " where attrelid = 'outbox.record'::regclass and attnum > 0 order by attnum"
        ).fetchall()
    assert [(column.name, column.type) for column in COLUMNS.columns] == there
    # A chart of the past, where there is one.
    calendar = str(made["backups/gym_system"]["history"])
    assert calendar.startswith("![Age of the newest kept backup, by day](data:image/svg+xml,")
    assert "history" not in made["conversations"]  # nothing was looked at yet


def test_a_check_shows_the_ages_of_rows_as_a_picture(platform: Platform) -> None:
    assert platform.run_only("raw_data/prices").success
    found = platform.check("raw_data/prices", "is_intact").description or ""
    sentence, _, picture = found.partition("\n\n")
    assert sentence.startswith("raw_data.prices is in sync")
    assert picture.startswith(
        "![Rows by the age of their xmin in transactions](data:image/svg+xml,"
    )


def test_columns_of_views_and_other_schemas_have_no_parent_of_their_name() -> None:
    found = replica_columns(
        [
            PublishedColumn("other", "t", "a", "INTEGER", "The a"),
            PublishedColumn("main", "v", "b", "DATE"),
        ],
        [dg.AssetKey(["raw", "t"])],
    )
    assert [(c.name, c.description) for c in found["dagster/column_schema"].columns] == [
        ("other.t.a", "The a"),
        ("v.b", None),
    ]
    lineage = found["dagster/column_lineage"].deps_by_column
    assert lineage == {"other.t.a": [dg.TableColumnDep(dg.AssetKey(["raw", "t"]), "a")]}


@pytest.mark.parametrize("name", ["Odd: name", "a.b", "ä", 'say "hi"'])
def test_an_odd_name_becomes_a_part_of_a_key_that_dagster_takes(name: str) -> None:
    part = key_part(name)
    dg.AssetsDefinition(specs=[dg.AssetSpec(dg.AssetKey(["raw", part]))])
    assert re.fullmatch(r"[A-Za-z0-9_]+", dg.AssetKey(["raw", part]).to_python_identifier())
    assert key_part(name.replace(" ", "_")) != part or " " not in name


def test_a_plain_name_stays_as_it_is() -> None:
    assert [key_part(name) for name in ("prices", "My-Table_2")] == ["prices", "My-Table_2"]


def test_a_replica_of_very_many_columns_shows_none() -> None:
    many = [PublishedColumn("main", "t", f"c{n}", "INTEGER") for n in range(MOST_COLUMNS + 1)]
    assert replica_columns(many, []) == {}
    assert replica_columns(many[1:], []) != {}
