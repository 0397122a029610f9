"""Names of a package's face that are loaded on first use, even where a module is called alike."""

import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


class _Face(ModuleType):
    """A package whose late names are not hidden by modules of the same name.

    Python sets a module that it has imported as an attribute of its package: `replica.publish`
    would be the function or the module, by what was imported first.
    """

    _late: Mapping[str, str]

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in self._late):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name not in self._late:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        module, _, other_name = self._late[name].partition(":")
        found = getattr(import_module(f"{self.__name__}.{module}"), other_name or name)
        super().__setattr__(name, found)
        return found


def load_late(package: str, late: Mapping[str, str]) -> None:
    """Let a package load some of its names on first use.

    Args:
        package: The package's `__name__`.
        late: By name, the module below the package that defines it; `module:other` where it has
            another name there.
    """
    face = sys.modules[package]
    face.__dict__["_late"] = dict(late)
    face.__class__ = _Face
