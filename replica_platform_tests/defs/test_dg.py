"""Components as `dg` sees them: listed, scaffolded as files that load, checked line by line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import replica_platform
from replica_platform import components

PACKAGE = Path(replica_platform.__file__).parent
DG = Path(sys.executable).parent / "dg"
LOAD = """
from replica_platform.definitions import defs
loaded = defs()
loaded.get_repository_def()
print(*sorted(k.to_user_string() for k in loaded.resolve_asset_graph().get_all_asset_keys()))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project without its sample."""
    ignored = shutil.ignore_patterns("__pycache__", "sample")
    shutil.copytree(PACKAGE, tmp_path / "replica_platform", ignore=ignored)
    for name in ("pyproject.toml", "dagster.yaml"):
        shutil.copy(PACKAGE.parent / name, tmp_path)
    return tmp_path


def run(project: Path, *command: object) -> str:
    """Run a command in the project and return what it prints."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REPLICA_")}
    finished = subprocess.run(
        [str(part) for part in command],
        cwd=project,
        env=kept
        | {
            "PYTHONPATH": str(project),
            "REPLICA_DATA_DIR": str(project / "data"),
            "VIRTUAL_ENV": sys.prefix,
            "PATH": f"{DG.parent}{os.pathsep}{kept['PATH']}",
        },
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    return finished.stdout


def test_dg_lists_and_scaffolds_every_component(project: Path) -> None:
    listed = {
        one["key"]: one["summary"]
        for one in json.loads(run(project, DG, "list", "components", "--json"))["items"]
    }
    for number, name in enumerate(components.__all__):
        key = f"replica_platform.components.{name}"
        assert listed[key] == getattr(components, name).__doc__.partition("\n")[0]
        run(project, DG, "scaffold", "defs", key, f"my_{number}")
    assert "validated successfully" in run(project, DG, "check", "yaml")
    keys = set(run(project, sys.executable, "-W", "ignore", "-c", LOAD).split())
    # The table of a pattern is not known without the source; its list is an asset already.
    assert keys >= {
        *("my_0", "my_1", "my_1_master", "my_2/support", "my_3/app", "my_4", "my_5_catalog")
    }


def test_dg_checks_every_line(project: Path) -> None:
    """A wrong attribute is refused at its line."""
    run(project, DG, "scaffold", "defs", "replica_platform.components.SqliteBackups", "mine")
    file = project / "replica_platform" / "defs" / "mine" / "defs.yaml"
    file.write_text(file.read_text().replace("cron_schedule", "cron_shedule"))
    with pytest.raises(AssertionError, match="cron_shedule") as refused:
        run(project, DG, "check", "yaml")
    lines = [line.strip() for line in file.read_text().splitlines()]
    line = lines.index("cron_shedule: 0 3 * * *") + 1
    assert f"defs.yaml:{line}" in str(refused.value)
