"""No password in an error, in a list of databases, or in what a definition shows of itself."""

import traceback

import duckdb
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from replica_platform.app.embedded import Server
from replica_platform.core.errors import PlatformError
from replica_platform.lake import Lake, LakeUnavailable, LakeWriter, WrongLake, read_lake, status
from replica_platform.lake.definition import bucket_options

PASSWORD = "s3cr'et pass/word"


def told(call) -> str:
    """Everything that a failing call tells, with the traceback and its causes."""
    try:
        call()
    except (PlatformError, duckdb.Error):
        return traceback.format_exc()
    raise AssertionError("the call went through")


@pytest.mark.parametrize("host", ["127.0.0.1", "/nowhere"])
def test_no_connection_error_shows_the_password(host: str, tmp_path) -> None:
    for dsn in (
        make_conninfo(host=host, port=1, user="u", password=PASSWORD, dbname="d"),
        f"postgresql://u:s3cr%27et%20pass%2Fword@{host.replace('/', '%2F')}:1/d",
    ):
        lake = Lake(dsn, "lake", str(tmp_path))
        for call in (
            lambda lake=lake: read_lake(lake).__enter__(),
            lambda lake=lake: LakeWriter(lake),
            lambda lake=lake: status(lake),
        ):
            text = told(call)
            assert "Connection refused" in text or "No such file" in text
            for form in (PASSWORD, PASSWORD.replace("'", "''"), "s3cr%27et", "s3cr"):
                assert form not in text
        assert "s3cr" not in repr(lake)


def test_a_wrong_password_is_not_shown(server: Server, target: str, tmp_path) -> None:
    """The control: DuckDB's own error of an attached DSN does show it."""
    dsn = make_conninfo(target, password=PASSWORD, dbname="not_there")
    lake = Lake(dsn, "lake", str(tmp_path))
    text = told(lambda: read_lake(lake).__enter__())
    assert "not_there" in text and "does not exist" in text and "s3cr" not in text
    with pytest.raises(LakeUnavailable, match="Check the catalog's server"), read_lake(lake):
        pass
    with duckdb.connect() as plain:
        from replica_platform.lake.extensions import CATALOG, load

        load(plain, CATALOG)
        given = dsn.replace("'", "''")
        naive = told(lambda: plain.execute(f"attach 'ducklake:postgres:{given}' as lake"))
    assert "s3cr" in naive.split("_duckdb.")[-1]


def test_a_login_with_a_password_works_and_shows_it_nowhere(
    server: Server, target: str, tmp_path
) -> None:
    with psycopg.connect(target, autocommit=True) as admin:
        admin.execute("drop role if exists lake_writer")
        admin.execute(
            sql.SQL("create role lake_writer login password {}").format(sql.Literal(PASSWORD))
        )
        name = sql.Identifier(admin.info.dbname)
        admin.execute(sql.SQL("grant create on database {} to lake_writer").format(name))
    try:
        given = make_conninfo(target, user="lake_writer", password=PASSWORD, sslmode="prefer")
        lake = Lake(given, "lake", str(tmp_path / "data"))
        with LakeWriter(lake) as writer:
            writer.write(lambda connection: connection.execute("create table t (i int)"))
            shown = writer._connection.execute(
                "select database_name, path, options::varchar from duckdb_databases()"
            ).fetchall()
            shown += writer._connection.execute(
                "select secret_string from duckdb_secrets()"
            ).fetchall()
            wrong = told(lambda: writer.write(lambda c: c.execute(f"select '{PASSWORD}'")))
        assert "s3cr" not in str(shown)
        assert "s3cr" not in wrong.splitlines()[-1]
    finally:
        with psycopg.connect(target, autocommit=True) as admin:
            admin.execute("drop owned by lake_writer cascade")
            admin.execute("drop role lake_writer")


@pytest.mark.parametrize(
    ("catalog", "data", "cause"),
    [
        ("dbname=d", "gs://bucket/x", "no place for a lake's data"),
        ("dbname=d", "https://u:s3cret@host/x", "no place for a lake's data"),
        ("dbname=d", "s3:///", "no place for a lake's data"),
        ("host=h pasword=s3cret", "/x", "the lake lake is no connection string"),
        ("postgresql//u:s3cret@h/d", "/x", "the lake lake is no connection string"),
    ],
)
def test_a_wrong_definition_is_refused(catalog: str, data: str, cause: str) -> None:
    with pytest.raises(WrongLake, match=cause) as refused:
        Lake(catalog, "lake", data)
    assert "s3cret" not in str(refused.value)


def test_the_environment_gives_the_credentials_of_a_bucket() -> None:
    environment = {
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_REGION": "eu-north-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9000/",
    }
    assert bucket_options(environment) == {
        "key_id": "k",
        "secret": "s",
        "region": "eu-north-1",
        "endpoint": "127.0.0.1:9000",
        "url_style": "path",
        "use_ssl": "false",
    }
    assert bucket_options({}) == {}
