"""One SQLite library through one import point; the system's library gives a warning."""

import ast
import subprocess
import sys
from pathlib import Path

import replica_platform.outbox

WITHOUT = (
    "import sys\n"
    "sys.modules['pysqlite3'] = None\n"
    "import warnings\n"
    "with warnings.catch_warnings(record=True) as caught:\n"
    "    warnings.simplefilter('always')\n"
    "    from replica_platform.outbox import Outbox, backlog\n"
    "from pathlib import Path\n"
    "from replica_platform.core.sqlite import WAL_RESET_FIXED_IN, sqlite3\n"
    "path = Path(sys.argv[1])\n"
    "with Outbox(path) as box:\n"
    "    box.append('note', {})\n"
    "    box.append_many('note', [{}, {}])\n"
    "warned = any('pysqlite3' in str(one.message) for one in caught)\n"
    "print(sqlite3.__name__, backlog([path]).pending)\n"
    "print(warned == (sqlite3.sqlite_version_info < WAL_RESET_FIXED_IN))\n"
)


def test_the_system_library_is_used_with_a_warning(path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(path)], check=True, capture_output=True, text=True
    )
    assert answer.stdout.split() == ["sqlite3", "3", "True"]


def test_the_engine_imports_it_from_one_place() -> None:
    for source in Path(replica_platform.outbox.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                assert not {"sqlite3", "apsw", "pysqlite3"} & {name.name for name in node.names}
            if isinstance(node, ast.ImportFrom):
                assert node.module not in ("sqlite3", "apsw", "pysqlite3"), source
