"""A user's project: what makes one, what is refused, and whose definitions count."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from replica_platform.app.adopt import write_proposal
from replica_platform.app.configured import configured
from replica_platform.app.entries import DuckDBReplicaEntry, WrongEntry
from replica_platform.app.launch import PROJECT, NotAProject, project_dir
from replica_platform.app.project import (
    INSTANCE,
    CannotInit,
    WrongProject,
    find_project,
    init_project,
)
from replica_platform.cli.main import replica

ENTRY = """
type: replica_platform.components.DuckDBReplica
attributes: {name: sales, master: sales.duckdb}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new project, which is the working folder."""
    folder = tmp_path / "my-shop"
    init_project(folder, sample=False)
    monkeypatch.chdir(folder)
    return folder


def test_a_new_project_is_found_in_the_working_folder_only(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find_project()
    assert found is not None
    assert (found.folder, found.module, found.defs) == (
        project,
        "my_shop",
        project / "my_shop" / "defs",
    )
    assert project_dir() == project
    assert "REPLICA_SAMPLE=off" in (project / ".env").read_text()
    assert (project / ".env").stat().st_mode & 0o077 == 0
    monkeypatch.chdir(found.defs)
    assert find_project() is None
    monkeypatch.chdir(PROJECT)
    assert find_project() is None
    assert project_dir() == PROJECT


def test_its_instance_is_that_of_the_clone() -> None:
    assert INSTANCE.read_text() == (PROJECT / "dagster.yaml").read_text()


def test_its_entries_count_beside_those_of_the_package(project: Path) -> None:
    assert write_proposal(ENTRY, "sales") == project / "my_shop" / "defs" / "sales" / "defs.yaml"
    (only,) = configured(sample=False).entries
    assert isinstance(only[1], DuckDBReplicaEntry)
    both = [one.name for one in configured(sample=True).of(DuckDBReplicaEntry)]
    assert both == ["market_replica", "sales"]
    write_proposal(ENTRY.replace("sales", "market_replica"), "other")
    with pytest.raises(WrongEntry, match="another DuckDBReplica has the name"):
        configured(sample=True)


@pytest.mark.parametrize("name", ["1shop", "Shop", "my shop", "class", "replica_platform"])
def test_a_name_that_no_package_can_have_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(CannotInit, match="such as my_platform"):
        init_project(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_files_is_left_alone(project: Path) -> None:
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    refused = CliRunner().invoke(replica, ["init", str(project)])
    assert isinstance(refused.exception, CannotInit)
    assert "is not empty; give another name" in str(refused.exception)
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("[tool.dg", "cannot be read"),
        (
            '[tool.dg.project]\nroot_module = "gone"\n'
            'registry_modules = ["replica_platform.components"]',
            "correct `root_module`",
        ),
    ],
)
def test_a_wrong_pyproject_is_named(project: Path, wrong: str, says: str) -> None:
    (project / "pyproject.toml").write_text(wrong)
    with pytest.raises(WrongProject, match=says):
        configured()


def test_a_project_without_an_instance_is_refused(project: Path) -> None:
    (project / "dagster.yaml").unlink()
    with pytest.raises(NotAProject, match=r"copy .*dagster\.yaml to it"):
        project_dir()
    (project / "dagster.yaml").write_text(INSTANCE.read_text())
    assert project_dir() == project


def test_nothing_configured_is_said(project: Path) -> None:
    from replica_platform.app.runs import NothingConfigured, materialise_all
    from replica_platform.app.settings import Settings
    from replica_platform.definitions import load_defs

    definitions = load_defs(Settings(data_dir=project / "data", sample=False))
    with pytest.raises(NothingConfigured, match="replica adopt DSN --write"):
        materialise_all(definitions)
