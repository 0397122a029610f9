"""Two platforms in one process: neither touches the folders and databases of the other."""

from pathlib import Path

import psycopg

from replica_platform.market.sources.sample import sample_bars
from replica_platform.replica import ReplicaReader
from replica_platform_tests.defs.conftest import MakePlatform, Platform


def content(platform: Platform) -> tuple[dict[str, int], dict[str, int]]:
    """Return every file of a platform with its modification time, and its tables' row counts."""
    folder = platform.settings.data_dir
    files = {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file()
    }
    with psycopg.connect(platform.settings.target) as target:
        names = target.execute(
            "select format('%I.%I', schemaname, tablename) from pg_tables"
            " where schemaname not in ('pg_catalog', 'information_schema')"
        ).fetchall()
        tables = {
            name: target.execute(f"select count(*), sum(xmin::text::bigint) from {name}").fetchone()
            for (name,) in names
        }
    return files, tables


def test_each_platform_writes_to_its_own_settings_only(
    make_platform: MakePlatform, tmp_path: Path
) -> None:
    bars = sample_bars()
    bars[bars["symbol"] == "IBM"].to_csv(tmp_path / "ibm.csv", index=False)
    one = make_platform("one")
    other = make_platform("other", bars=tmp_path / "ibm.csv", keep_generations=2)
    untouched = content(other)
    assert untouched[1] == {}

    assert one.materialise().success
    assert content(other) == untouched
    finished = content(one)
    assert finished[1]["raw_data.prices"][0] == 12154

    result = other.materialise()
    assert result.success, [e.message for e in result.all_events if e.is_failure]
    assert content(one) == finished
    assert {"outbox.record", "raw_data.prices", "analytics.watchlist_prices"} <= set(
        content(other)[1]
    )
    assert list(other.settings.backup_dir.glob("*.db"))
    for platform, symbols in ((one, 5), (other, 1)):
        with ReplicaReader(platform.settings.store) as reader:
            assert reader.query("select count(*) from symbols") == [(symbols,)]
