"""The worker's import is light: no Postgres driver, no Dagster, no data frames."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import replica_platform.outbox
from replica_platform.outbox import Outbox
from replica_platform_tests.test_layering import imports_of

# dataclasses imports inspect, which took a sixth of the import's time.
HEAVY = {
    "dataclasses",
    "psycopg",
    "dagster",
    "pandas",
    "duckdb",
    "pydantic",
    "numpy",
    "click",
    "rich",
    "yaml",
}


def test_nothing_heavy_is_imported() -> None:
    program = (
        "import sys; before = set(sys.modules)\n"
        "from replica_platform.outbox import Outbox\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})\n"
        "print(len(set(sys.modules) - before))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert HEAVY & set(answer[0].split()) == set()
    assert int(answer[1]) < 120


def test_only_the_delivery_imports_the_driver() -> None:
    engine = Path(replica_platform.outbox.__file__).parent
    modules = [path for path in engine.glob("*.py") if path.name != "__init__.py"]  # the face
    assert len(modules) >= 10
    for module in modules:
        for imported in imports_of(module):
            assert not imported.startswith("psycopg"), module
            assert not imported.startswith("replica_platform.core.postgres"), module
            assert not imported.startswith("replica_platform.outbox.delivery"), module


def test_the_backlog_is_read_without_the_driver(path: Path) -> None:
    Outbox(path).close()
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from replica_platform.outbox import backlog\n"
        "print(backlog([Path(sys.argv[1])]).ok, 'psycopg' in sys.modules)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, path], check=True, capture_output=True, text=True
    )
    assert answer.stdout.split() == ["True", "False"]


def test_every_public_name_can_be_imported() -> None:
    outbox = replica_platform.outbox
    aliases = {"status": "backlog", "settle": "dismiss_conflicts"}
    for name in outbox.__all__:
        assert getattr(outbox, name).__name__ == aliases.get(name, name)


def test_the_names_imported_in_the_docs_exist() -> None:
    page = Path(__file__).parents[2] / "docs" / "outbox.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    imports = [
        node
        for block in blocks
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("replica_platform")
    ]
    assert len(imports) >= 2
    for node in imports:
        module = import_module(str(node.module))
        for name in node.names:
            assert hasattr(module, name.name), name.name
