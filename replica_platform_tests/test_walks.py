"""CONTRIBUTING.md names files and functions that are there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
# A row of a walk: the file, then the names in it.
ROWS = re.findall(r"^\| `([^`]+\.py)` \| (`[^|]+) \|", TEXT, flags=re.M)
PACKAGE = ROOT / "replica_platform"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PATHS = sorted(set(re.findall(r"`((?:replica_platform|docs|benchmarks)[\w/.]*[\w/])`", TEXT)))


def names_in(source: str) -> set[str]:
    """Every class, function, method, import and assigned name of a module."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name)
    return names


@pytest.mark.parametrize("path", PATHS)
def test_a_named_path_exists(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_named_entry_exists(page: Path) -> None:
    """The documentation names no `defs.yaml` that a user would look for in vain."""
    named = set(re.findall(r"\bdefs/[\w/]+/defs\.yaml", page.read_text()))
    there = {str(path.relative_to(PACKAGE)) for path in (PACKAGE / "defs").rglob("defs.yaml")}
    own = set(re.findall(r'title="my_platform/([^"]+)"', page.read_text()))
    assert named - there - own <= {"defs/shop/defs.yaml"}  # the user's own, in examples


@pytest.mark.parametrize(("path", "names"), ROWS)
def test_the_names_of_a_walk_are_in_their_file(path: str, names: str) -> None:
    assert set(re.findall(r"`(\w+)`", names)) - names_in((ROOT / path).read_text()) == set()


def test_the_walks_are_read() -> None:
    """A row or path that the patterns do not match would be checked by nothing."""
    assert len(ROWS) == len(re.findall(r"^\| `\S+\.py` \|", TEXT, flags=re.M)) > 15
    assert "replica_platform/core/" in PATHS


def test_a_name_that_is_gone_would_be_noticed() -> None:
    assert "gone" not in names_in("def there(): pass")
    assert "there" in names_in("def there(): pass")
