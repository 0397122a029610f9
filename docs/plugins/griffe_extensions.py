"""Griffe extensions for the API reference: names on a package's face, and settings."""

from typing import Any

import griffe

logger = griffe.get_logger("faces")
SETTINGS = "replica_platform.app.settings.Settings"
ENV_PREFIX = "REPLICA_"


class FaceNames(griffe.Extension):
    """Let a function keep its name on a face although a submodule is called the same.

    `from replica_platform.replica.publish import publish` makes `replica_platform.replica.publish`
    the function, as Python has it at run time; griffe would show the module of that name instead.
    """

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        """Put the imported objects back, once every other alias has found its target."""
        loader.resolve_aliases(implicit=True, external=False)
        packages = _packages(pkg)
        for package in packages:
            _describe_other_names(package)
            # A lazy name that no `if TYPE_CHECKING` import declares is invisible here, and to mypy.
            for name in sorted({str(name) for name in package.exports or ()} - {*package.members}):
                logger.warning("%s lists %s in __all__ and does not import it", package.path, name)
        replaced = [found for package in packages for found in _hidden(package, loader)]
        for package, name, target in replaced:
            package.set_member(name, griffe.Alias(name, target, parent=package))


class FieldDescriptions(griffe.Extension):
    """Use the description of a pydantic field as its docstring, with its environment variable."""

    def on_attribute(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Give `name: type = Field(default=…, description=…)` a docstring."""
        call = attr.value
        if attr.docstring or not isinstance(call, griffe.ExprCall) or str(call.function) != "Field":
            return
        given = {
            argument.name: str(argument.value)
            for argument in call.arguments
            if isinstance(argument, griffe.ExprKeyword)
        }
        if "description" not in given:
            return
        text = _unquoted(given["description"])
        if attr.parent and attr.parent.path == SETTINGS:
            variable = _unquoted(given.get("alias", f"'{ENV_PREFIX}{attr.name.upper()}'"))
            text += f"\n\nEnvironment variable `{variable}`, {_default(given)}."
        attr.docstring = griffe.Docstring(text, parent=attr, lineno=attr.lineno)


def _describe_other_names(module: griffe.Module) -> None:
    """Give `verify = validate` a docstring, without which the reference would leave it out."""
    for attribute in module.attributes.values():
        value = None if attribute.is_alias else attribute.value
        if isinstance(value, griffe.ExprName) and not attribute.docstring:
            text = f"Another name of `{value.name}`."
            attribute.docstring = griffe.Docstring(text, parent=attribute)


def _packages(package: griffe.Module) -> list[griffe.Module]:
    inner = [member for member in package.modules.values() if not member.is_alias]
    return [package, *(found for module in inner for found in _packages(module))]


def _hidden(
    package: griffe.Module, loader: griffe.GriffeLoader
) -> list[tuple[griffe.Module, str, griffe.Object]]:
    """Return the exported names whose member is a submodule, with the objects that they mean."""
    exported = {str(name) for name in package.exports or ()}
    return [
        (package, name, loader.modules_collection[package.imports[name]])
        for name in sorted(exported & package.imports.keys() & package.modules.keys())
        if package.imports[name] != f"{package.path}.{name}"
    ]


def _default(given: dict[str, str]) -> str:
    default = given.get("default", "None")
    if default == "None":
        return "not set by default"
    return f"default `{_unquoted(default.removeprefix('Path(').removesuffix(')'))}`"


def _unquoted(source: str) -> str:
    return source.strip("'\"")
