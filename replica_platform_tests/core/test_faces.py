"""Late names of a face: the function, whatever was imported before it."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from replica_platform import backup, replica, xmin
from replica_platform.core.faces import load_late

MODULE = "def publish():\n    return 'published'\n"
LATE = """
from importlib import import_module

def __getattr__(name):
    if name == "publish":
        return import_module(f"{__name__}.publish").publish
    raise AttributeError(name)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a package with a module and a function of one name."""
    folder = tmp_path / "late_face"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "publish.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in ("late_face", "late_face.publish"):
        sys.modules.pop(name, None)


def test_a_module_does_not_hide_the_function_of_its_name(package: Path) -> None:
    importlib.import_module("late_face")
    load_late("late_face", {"publish": "publish", "release": "publish:publish"})
    importlib.import_module("late_face.publish")
    face = importlib.import_module("late_face")
    assert face.publish() == face.release() == "published"
    with pytest.raises(AttributeError, match="has no attribute 'absent'"):
        _ = face.absent


def test_without_it_the_function_is_hidden(package: Path) -> None:
    (package / "__init__.py").write_text(LATE)
    importlib.import_module("late_face.publish")
    face = importlib.import_module("late_face")
    assert not callable(face.publish)


@pytest.mark.parametrize("face", [backup, replica, xmin], ids=lambda face: face.__name__)
def test_every_name_of_a_face_can_be_loaded(face: object) -> None:
    kinds = {name: type(getattr(face, name)).__name__ for name in face.__all__}  # type: ignore[attr-defined]
    assert {name for name, kind in kinds.items() if kind == "module"} == set()
