"""The user's project, outside any clone: found in the working folder, and made by `replica init`.

It is an ordinary `dg` project whose registry lists this package's components: a package of its own
with a `defs/` folder, `dagster.yaml` beside it, and settings in `.env`.
"""

import keyword
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from replica_platform.core.errors import TerminalError

REGISTRY = "replica_platform.components"
INSTANCE = Path(__file__).with_name("dagster.yaml")
CLUSTER_INSTANCE = Path(__file__).with_name("cluster.yaml")
_NAME = re.compile(r"[a-z][a-z0-9_]*")


class WrongProject(TerminalError):
    """The project's `pyproject.toml` cannot be read, or names a package that is not there."""


class CannotInit(TerminalError):
    """The folder is taken, or its name cannot be the name of a package."""


@dataclass(frozen=True)
class Project:
    """A project that uses this package.

    Attributes:
        folder: The folder of `pyproject.toml` and `dagster.yaml`.
        module: The name of its package.
    """

    folder: Path
    module: str

    @property
    def package(self) -> Path:
        """The folder of its package."""
        return self.folder.joinpath(*self.module.split("."))

    @property
    def defs(self) -> Path:
        """The folder of its definitions."""
        return self.package / "defs"


def find_project(folder: Path | None = None) -> Project | None:
    """Return the project in a folder, the working folder if none is given.

    Returns:
        None where the folder holds none; a clone of this package is no project of a user.

    Raises:
        WrongProject: Its `pyproject.toml` is not TOML, or its package has no `defs/` folder.
    """
    folder = folder or Path.cwd()
    file = folder / "pyproject.toml"
    if not file.is_file():
        return None
    try:
        dg = tomllib.loads(file.read_text()).get("tool", {}).get("dg", {}).get("project", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WrongProject(
            f"{file} cannot be read: {error}. Correct it, or go elsewhere."
        ) from None
    module = dg.get("root_module", "")
    if module == REGISTRY.partition(".")[0] or REGISTRY not in dg.get("registry_modules", ()):
        return None
    project = Project(folder, module)
    if not module or not project.defs.is_dir():
        raise WrongProject(
            f"{file} names the package {module!r}, but there is no folder {project.defs}; "
            "correct `root_module`, or make the folder."
        )
    return project


def init_project(folder: Path, *, sample: bool = True, cluster: bool = False) -> list[Path]:
    """Make a new project and return its files.

    Args:
        folder: The new folder; its name becomes that of the package.
        sample: Whether its `.env` keeps the sample's assets beside the user's own.
        cluster: Whether its runs go to the workers of several hosts.

    Raises:
        CannotInit: The folder holds files, or its name cannot be the name of a package.
    """
    folder = folder.absolute()
    name = folder.name.replace("-", "_")
    if not _NAME.fullmatch(name) or keyword.iskeyword(name) or name == "replica_platform":
        raise CannotInit(
            f"{folder.name!r} cannot be the name of a package: take lower-case letters, digits and "
            "underscores, with a letter first, such as my_platform."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CannotInit(f"{folder} exists and is not empty; give another name.")
    made = []
    for path, text in _files(name, sample, cluster):
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        # `.env` will hold passwords.
        file.touch(mode=0o600 if path == ".env" else 0o644)
        file.write_text(text)
        made.append(file)
    return made


def _files(name: str, sample: bool, cluster: bool) -> Iterator[tuple[str, str]]:
    """Yield each file of a new project: its path and its text."""
    yield "pyproject.toml", _PYPROJECT.format(name=name)
    yield "dagster.yaml", (CLUSTER_INSTANCE if cluster else INSTANCE).read_text()
    yield "workspace.yaml", _WORKSPACE.format(name=name)
    yield ".env", _ENV.format(sample="on" if sample else "off")
    yield ".gitignore", _IGNORED
    yield f"{name}/__init__.py", ""
    yield f"{name}/definitions.py", _DEFINITIONS
    yield f"{name}/defs/__init__.py", ""


_PYPROJECT = """\
[project]
name = "{name}"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["replica-platform"]

[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[tool.dg]
directory_type = "project"

[tool.dg.project]
root_module = "{name}"
code_location_name = "{name}"
# By this line the `replica` command knows the project, when it is called in this folder.
registry_modules = ["replica_platform.components"]
"""

_WORKSPACE = """\
# For dagster-webserver and dagster-daemon (-w workspace.yaml); `dg` reads pyproject.toml.
load_from:
  - python_module:
      module_name: {name}.definitions
      location_name: {name}
      working_directory: .
"""

_ENV = """\
# Settings; a database without a DSN is in an embedded Postgres below data/. `replica env` prints
# what is in force.
# The sample's assets and input; off when you have entries of your own.
REPLICA_SAMPLE={sample}
# REPLICA_SOURCE_DSN=postgresql://reader:…@db.example.com/shop
# REPLICA_TARGET_DSN=postgresql://writer:…@warehouse.example.com/warehouse
# REPLICA_DAGSTER_DSN=postgresql://dagster:…@warehouse.example.com/dagster
# Where failures are told, beside the log.
# REPLICA_ALERT_WEBHOOK=https://hooks.example.com/…
# The Redis through which runs reach the workers of other hosts (`replica init --cluster`):
# REPLICA_BROKER_URL=redis://:…@broker.example.com:6379/0
"""

_IGNORED = """\
.env
.venv/
__pycache__/
data/
history/
logs/
schedules/
storage/
.tmp_dagster_home_*/
"""

_DEFINITIONS = '''\
"""The platform: what `defs/` configures, with the settings in the environment and in `.env`."""

from pathlib import Path

import dagster as dg

from replica_platform.app.settings import Settings
from replica_platform.definitions import build_defs


@dg.definitions
def defs() -> dg.Definitions:
    """Return the definitions, for `dg` and the Dagster pages."""
    return build_defs(Settings(), project=Path(__file__).parents[1])
'''
