"""A wrong line of a `defs.yaml` ends `run`, `dev` and `status` in one sentence with its place."""

import shutil
from pathlib import Path

import pytest

import replica_platform
from replica_platform_tests.conftest import Cli

PACKAGE = Path(replica_platform.__file__).parent
TABLES = "type: replica_platform.components.XminTables\nattributes:\n  tables:\n"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, whose `defs.yaml` files can be changed."""
    copy = tmp_path / "copy"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, copy / "replica_platform", ignore=ignored)
    for name in ("pyproject.toml", "dagster.yaml"):
        shutil.copy(PACKAGE.parent / name, copy)
    return copy


@pytest.mark.parametrize("command", ["run", "dev", "status"])
@pytest.mark.parametrize(
    ("text", "line", "cause"),
    [
        (f"{TABLES}    - tabel: fds.prices\n", 4, "table: Field required"),
        (f"{TABLES}    - table: fds.prices\n      mood: full\n", 5, "no such attribute"),
        (f"{TABLES}    - table: fds.prices\n      mode: fast\n", 5, "'auto', 'scan'"),
        (f"{TABLES}    - table: [fds.prices\n", 5, "this is not YAML"),
    ],
)
def test_a_wrong_line(
    cli: Cli, package: Path, folder: Path, command: str, text: str, line: int, cause: str
) -> None:
    file = package / "replica_platform" / "defs" / "warehouse" / "defs.yaml"
    file.write_text(text)
    finished = cli(command, PYTHONPATH=str(package))
    assert finished.returncode == 1
    (sentence,) = finished.stderr.strip().splitlines()
    assert f"{file}, line {line}: " in sentence
    assert cause in sentence
    assert list(folder.iterdir()) == []


def test_what_only_dagster_finds_is_one_sentence_too(cli: Cli, package: Path) -> None:
    file = package / "replica_platform" / "defs" / "warehouse" / "defs.yaml"
    file.write_text(f"{TABLES}    - table: s.a\n    - table: t.a\n")
    finished = cli("run", PYTHONPATH=str(package))
    assert finished.returncode == 1
    (sentence,) = finished.stderr.strip().splitlines()
    assert "s.a and t.a both arrive as raw_data.a" in sentence


def test_a_type_that_does_not_exist_is_one_sentence_too(cli: Cli, package: Path) -> None:
    file = package / "replica_platform" / "defs" / "warehouse" / "defs.yaml"
    file.write_text("type: replica_platform.components.XminTabels\nattributes: {}\n")
    finished = cli("run", PYTHONPATH=str(package))
    assert finished.returncode == 1
    (sentence,) = finished.stderr.strip().splitlines()
    assert f"{file}, line 1: there is no component" in sentence
    assert "XminTabels" in sentence
