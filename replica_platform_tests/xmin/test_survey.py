"""A look at a database before its tables are synced."""

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from replica_platform.xmin import ListedColumn, survey
from replica_platform.xmin.copy.survey import looks_secret
from replica_platform_tests.xmin.helpers import execute


@pytest.mark.parametrize(
    ("name", "type_", "secret"),
    [
        ("passwd", "character varying(60)", True),
        ("userPassword", "text", True),
        ("password_hash", "bytea", True),
        ("APIKey", "text", True),
        ("stripe_api_key", "text", True),
        ("refresh_token", "public.citext", True),
        ("card_number", "text", True),
        ("tls_psk", "character varying(512)", True),
        ("token_count", "integer", False),
        ("password_changed_at", "timestamp with time zone", False),
        ("passenger", "text", False),
        ("key", "text", False),
        ("number", "text", False),
        ("secretary", "text", False),
        ("keynote_address", "text", False),
    ],
)
def test_secrets_are_known_by_name_and_type(name: str, type_: str, secret: bool) -> None:
    assert looks_secret(ListedColumn(name, type_)) is secret


def test_keys_sizes_secrets_and_views(source: str) -> None:
    execute(
        source,
        "create table users (id int primary key, name text, passwd text, api_token uuid)",
        "create table sessions (token text primary key, started timestamptz)",
        "create table log (line text)",
        "create view v as select 1 as one",
        "insert into log select repeat('x', 80) from generate_series(1, 5000)",
    )
    found = survey(source)
    assert [(str(t.name), t.secrets, t.refusal is None) for t in found.tables] == [
        ("public.log", (), True),
        ("public.sessions", (), False),
        ("public.users", ("passwd", "api_token"), True),
    ]
    assert [str(view) for view in found.views] == ["public.v"]
    assert found.bytes > 5000 * 80
    assert not found.measured
    assert "3 tables, of which 2 can be synced" in found.sentence
    assert "1 without a key, 1 with columns that look like secrets" in found.sentence
    assert found.tables[1].refusal == (
        "token looks like a secret and is part of the key, so it cannot be masked"
    )


def test_the_speed_is_measured_where_a_target_is(source: str, target: str) -> None:
    found = survey(source, target)
    assert found.measured
    assert found.bytes_per_s > 1e5
    with psycopg.connect(target) as connection:
        assert connection.execute("select count(*) from pg_class where relname like 'replica%'")


def test_a_target_that_is_away_costs_the_measurement_only(source: str) -> None:
    assert not survey(source, "postgresql://127.0.0.1:1/away").measured


def test_only_the_schemas_that_are_asked_for(source: str) -> None:
    execute(source, "create schema shop", "create table shop.a (id int)", "create table b (id int)")
    assert [str(one.name) for one in survey(source, schemas=["shop"]).tables] == ["shop.a"]


def test_a_table_without_rights_is_left_out_with_the_grant(source: str) -> None:
    execute(
        source,
        "create table mine (id int primary key)",
        "create table yours (id int primary key)",
        "create role survey_reader login",
        "grant usage on schema public to survey_reader",
        "grant select on yours to survey_reader",
        "create schema shut",
        'create table shut."Odd" (id int primary key)',
    )
    try:
        reader = make_conninfo(source, user="survey_reader")
        found = survey(reader)
        assert [(str(one.name), one.refusal is None) for one in found.tables] == [
            ("public.mine", False),
            ("public.yours", True),
            ('shut."Odd"', False),
        ]
        # The remedy that each sentence names works.
        for one in found.tables:
            grants = str(one.refusal or "; run ").partition("; run ")[2]
            execute(source, *filter(None, grants.split("; ")))
        assert len(survey(reader).proposed) == 3
    finally:
        execute(source, "drop owned by survey_reader", "drop role survey_reader")
