"""Imports go down only: the order of the packages, and of the folders inside an engine."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import replica_platform

ROOT = Path(replica_platform.__file__).parent
ENGINES = ("market", "replica", "lake", "xmin", "outbox", "backup", "history")

# From the bottom up; packages in one row do not import one another.
LAYERS = [
    ("core",),
    # Blocks in an object store, which two engines keep there.
    ("blocks",),
    ENGINES,
    ("pictures",),
    ("app",),
    ("metadata", "policies"),
    ("resources",),
    ("io_managers",),
    ("components",),
    ("defs",),
    ("definitions",),
    ("cluster",),
    ("cli",),
]
RANK = {package: rank for rank, row in enumerate(LAYERS) for package in row}

# Inside an engine, from the bottom up: first the modules that all of it shares, then its folders,
# last ("") the modules of its story.
FOLDERS = {
    "replica": [
        *("errors", "copy", "store", "probe", "serving", "compare", "journal", "master", "purpose"),
        *("remote", ""),
    ],
    "xmin": [
        *("errors", "names", "reports", "session", "source", "target", "copy", "blocks"),
        *("integrity", "", "continuous"),
    ],
    "outbox": [
        *(
            "errors",
            "encoding",
            "file",
            "slots",
            "reserve",
            "joined",
            "group",
            "box",
        ),  # the worker's side
        *("reports", "queue", "breaker", "inspect", "delivery", ""),
    ],
    "market": [
        *("errors", "sessions", "reader", "indicators", "watch", "sources"),
        *("tables", "quotes", ""),
    ],
    "backup": ["errors", "manifest", "child", "blocks", "folder", "destination", "remote", ""],
    "history": ["errors", "series", ""],
    "lake": [
        *("errors", "definition", "extensions", "catalog", "session", "files", "write"),
        *("status", ""),
    ],
}
NOT_BELOW_DAGSTER = {"dagster", "dagster_duckdb", "dagster_postgres", "click", "rich"}
MOST_MODULES = 13  # a dozen, and __init__


def imports_of(path: Path) -> Iterator[str]:
    """Every absolute module that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                inner = ROOT.parent.joinpath(*node.module.split("."), name.name)
                is_module = inner.is_dir() or inner.with_suffix(".py").exists()
                yield f"{node.module}.{name.name}" if is_module else node.module


def place_of(module: str, engine: str) -> int:
    """The rank of a module inside its engine."""
    order = FOLDERS[engine]
    inner = module.removeprefix(f"replica_platform.{engine}").lstrip(".").split(".")[0]
    return order.index(inner) if inner in order else order.index("")


def modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def dotted(path: Path) -> str:
    return ".".join(("replica_platform", *path.relative_to(ROOT).with_suffix("").parts))


def test_packages_import_only_what_is_below_them() -> None:
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        package = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if package == "__init__":
            continue
        for imported in imports_of(path):
            parts = imported.split(".")
            if parts[0] != "replica_platform" or len(parts) == 1 or parts[1] == package:
                continue
            if RANK[parts[1]] >= RANK[package]:
                wrong.append(f"{dotted(path)} imports {imported}")
    assert wrong == []


def test_engines_and_core_know_nothing_of_dagster_or_the_terminal() -> None:
    wrong = [
        f"{dotted(path)} imports {imported}"
        for path in modules("core", "blocks", *ENGINES)
        for imported in imports_of(path)
        if imported.split(".")[0] in NOT_BELOW_DAGSTER
    ]
    assert wrong == []


@pytest.mark.parametrize("engine", FOLDERS)
def test_folders_of_an_engine_import_only_what_is_below_them(engine: str) -> None:
    wrong = []
    for path in modules(engine):
        if path == ROOT / engine / "__init__.py":
            continue  # the face
        module = dotted(path)
        for imported in imports_of(path):
            if not imported.startswith(f"replica_platform.{engine}."):
                continue
            if place_of(imported, engine) > place_of(module, engine):
                wrong.append(f"{module} imports {imported}")
    assert wrong == []


@pytest.mark.parametrize("engine", ENGINES)
def test_a_folder_lists_at_most_a_dozen_modules(engine: str) -> None:
    folders = [ROOT / engine, *(path for path in (ROOT / engine).rglob("*") if path.is_dir())]
    full = {
        str(folder.relative_to(ROOT)): count
        for folder in folders
        if (count := len(list(folder.glob("*.py")))) > MOST_MODULES
    }
    assert full == {}


def test_an_import_upwards_would_be_noticed(tmp_path: Path) -> None:
    upwards = tmp_path / "upwards.py"
    source = "def f():\n    from replica_platform.cli import main\n    import dagster.x\n"
    upwards.write_text(source)
    assert list(imports_of(upwards)) == ["replica_platform.cli.main", "dagster.x"]
    assert RANK["cli"] > RANK["core"]
    assert place_of("replica_platform.replica.publish", "replica") > place_of(
        "replica_platform.replica.copy.blocks", "replica"
    )
