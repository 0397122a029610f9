"""Extensions come from wheels of DuckDB's own version; the sentence says what to install."""

import sys
import tomllib
from pathlib import Path

import duckdb
import pytest

import replica_platform
from replica_platform.lake import ExtensionsMissing, Lake, LakeWriter, read_lake
from replica_platform.lake.extensions import BUCKET, CATALOG, extension_file, load

PROJECT = Path(replica_platform.__file__).parent.parent


def test_they_load_without_a_network() -> None:
    with duckdb.connect(config={"autoinstall_known_extensions": False}) as connection:
        load(connection, CATALOG + BUCKET)
        loaded = connection.execute(
            "select extension_name from duckdb_extensions() where loaded"
        ).fetchall()
    assert {name for (name,) in loaded} >= {"ducklake", "postgres_scanner", "httpfs"}


def test_without_the_wheels_the_sentence_names_the_extra(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "duckdb_extension_ducklake", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for call in (lambda: read_lake(lake).__enter__(), lambda: LakeWriter(lake)):
        with pytest.raises(ExtensionsMissing, match=r"install replica-platform\[lake\]") as refused:
            call()
        assert f"duckdb-extension-ducklake=={duckdb.__version__}" in str(refused.value)


def test_wheels_of_another_version_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duckdb, "__version__", "9.9.9")
    with pytest.raises(ExtensionsMissing, match="is for DuckDB v1") as refused:
        extension_file("postgres_scanner")
    assert "install duckdb-extension-postgres-scanner==9.9.9" in str(refused.value)


def test_the_extra_installs_what_the_sentence_asks_for() -> None:
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    listed = {one.partition(">=")[0] for one in extras["lake"]}
    needed = {f"duckdb-extension-{name.replace('_', '-')}" for name in CATALOG + BUCKET}
    assert listed == needed
    pins = dict(
        line.split("==")
        for line in (PROJECT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    assert {pins[name.replace("-", "_")] for name in needed} == {pins["duckdb"]}
