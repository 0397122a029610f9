"""The master's name: views and macros that use it work through the links and the reader."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest

from replica_platform.replica import (
    BlockStore,
    Master,
    Publication,
    ReplicaReader,
    prepare,
    publish,
)
from replica_platform.replica.copy.file_format import catalog_name
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Manifest, NotAManifest

ROWS = "select count(*) from newest"


@pytest.fixture
def views(master: Master) -> Master:
    """The master with a view and two macros that name its catalog, as dbt writes them."""
    with master.write() as connection:
        connection.execute("create view newest as select * from stock_data.main.bars")
        connection.execute("create macro bar_count() as (select count(*) from stock_data.bars)")
        connection.execute("create macro bars_of(s) as table from stock_data.main.bars")
    return master


def assert_views_open(connection: duckdb.DuckDBPyConnection) -> None:
    for sql in (ROWS, "select bar_count()", "select count(*) from bars_of('IBM')"):
        assert connection.execute(sql).fetchall() == [(3,)]


def test_views_and_macros_open_through_the_link_of_the_masters_name(
    views: Master, store: Path
) -> None:
    published = publish(views.path, store)
    with duckdb.connect(str(store / "stock_data.duckdb"), read_only=True) as connection:
        assert_views_open(connection)
    with duckdb.connect(str(store / "stock_data_replica.db"), read_only=True) as connection:
        assert_views_open(connection)
    # The control: the same bytes under another name. DuckDB 2.0 omits the name from new views.
    other = Path(shutil.copy(published.file, store / "other.duckdb"))
    with (
        duckdb.connect(str(other), read_only=True) as connection,
        pytest.raises(duckdb.Error, match="stock_data"),
    ):
        connection.execute("select bar_count()")


def test_views_and_macros_open_in_a_reader(views: Master, store: Path) -> None:
    publish(views.path, store)
    with ReplicaReader(store, poll_s=600) as reader:
        for sql in (ROWS, "select bar_count()", "select count(*) from bars_of('IBM')"):
            assert reader.query(sql) == [(3,)]
        with reader.snapshot() as snapshot:
            assert snapshot.query(ROWS) == [(3,)]


def test_views_open_in_a_candidate(views: Master, store: Path) -> None:
    candidate = prepare(views.path, store)
    with candidate.read() as connection:
        assert_views_open(connection)
        with pytest.raises(duckdb.Error, match="read-only"):
            connection.execute("delete from bars")


def test_views_open_in_a_pulled_store(views: Master, store: Path, tmp_path: Path) -> None:
    publish(views.path, store)
    block_store = BlockStore(tmp_path / "blocks")
    block_store.push(store)
    block_store.pull(tmp_path / "elsewhere")
    with ReplicaReader(tmp_path / "elsewhere") as reader:
        assert reader.query(ROWS) == [(3,)]
    assert (tmp_path / "elsewhere" / "stock_data.duckdb").is_symlink()


def test_both_links_follow_each_publication(
    publish_next: Callable[..., Publication], store: Path
) -> None:
    for day in (3, 4):
        file = publish_next(day).file
        for name in ("stock_data.duckdb", "stock_data_replica.db"):
            assert (store / name).resolve() == file


def test_a_schema_called_replica_is_not_ambiguous(master: Master, store: Path) -> None:
    with master.write() as connection:
        connection.execute("create schema replica")
        connection.execute("create table replica.bars as select 1 i")
    publish(master.path, store)
    with ReplicaReader(store) as reader:
        assert reader.query("select count(*) from replica.bars") == [(1,)]


def test_a_renamed_master_gives_the_readers_its_new_name(master: Master, store: Path) -> None:
    publish(master.path, store)
    renamed = Master(master.path.with_name("prices.duckdb"))
    with ReplicaReader(store, poll_s=600) as reader:
        assert reader.query("select count(*) from stock_data.bars") == [(3,)]
        master.path.rename(renamed.path)
        with renamed.write() as connection:
            connection.execute("create view newest as select * from prices.bars")
        assert publish(renamed.path, store).broken_views == {}
        reader._server.refresh()
        assert reader.query(ROWS) == [(3,)]
    assert not (store / "stock_data.duckdb").is_symlink()
    assert (store / "prices.duckdb").exists()


def test_a_file_with_the_name_of_the_link_is_left_alone(master: Master, store: Path) -> None:
    """The master lies in the store's folder."""
    store.mkdir()
    inside = Path(shutil.copy(master.path, store / "stock_data.duckdb"))
    publish(inside, store)
    assert not inside.is_symlink()
    assert (store / "stock_data_replica.db").is_symlink()


def test_a_publication_names_each_view_that_does_not_open(views: Master, store: Path) -> None:
    with views.write() as connection:
        connection.execute("create table gone as select 1 i")
        connection.execute('create view "of gone" as select i from gone')
        connection.execute("drop table gone")
    published = publish(views.path, store)
    assert list(published.broken_views) == ["of gone"]
    assert "gone does not exist" in published.broken_views["of gone"]
    assert "of gone" in published.sentence
    assert "gone does not exist" in published.sentence
    again = publish(views.path, store)
    assert (again.how, again.broken_views) == ("unchanged", published.broken_views)


def test_a_view_of_another_file_is_not_called_broken(views: Master, store: Path) -> None:
    """Whether a reader has that file, or that extension, is not known here."""
    csv = store.with_name("rates.csv")
    csv.write_text("a\n1\n")
    with views.write() as connection:
        connection.execute(f"create view rates as select * from read_csv('{csv}')")
    csv.unlink()
    assert publish(views.path, store).broken_views == {}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path


@pytest.mark.parametrize(
    "name",
    [
        *("stock_data.duckdb", "a.b.duckdb", "main.db", "temp.duckdb", "system.db", "noext"),
        *(".hidden.duckdb", "we ird-1.duckdb", "Ünï.db", "x..db"),
    ],
)
def test_the_catalogs_name_is_duckdbs(folder: Path, name: str) -> None:
    with duckdb.connect(str(folder / name)) as connection:
        row = connection.execute("select current_database()").fetchone()
    assert row == (catalog_name(name),)


def test_a_master_with_the_name_of_duckdbs_own_catalog_is_readable(tmp_path: Path) -> None:
    master = Master(tmp_path / "memory.db")
    with master.write() as connection:
        connection.execute("create table bars as select 1 i")
    publish(master.path, tmp_path / "store")
    with ReplicaReader(tmp_path / "store") as reader:
        assert reader.query("select count(*) from bars") == [(1,)]


def test_a_manifest_of_a_later_version_is_read(master: Master, store: Path) -> None:
    import hashlib
    import json

    fields = json.loads(publish(master.path, store).manifest.to_json())
    del fields["checksum"]
    fields["from_the_future"] = 1
    body = json.dumps(fields, sort_keys=True)
    fields["checksum"] = hashlib.sha256(body.encode()).hexdigest()
    assert Manifest.from_json(json.dumps(fields)) == Layout(store).current()
    with pytest.raises(NotAManifest):
        Manifest.from_json(json.dumps({**fields, "master": "../../etc/passwd"}))
