"""The example in a component's docstring: shown on its page, and written by `dg scaffold defs`."""

import importlib
import inspect
import re
import textwrap

import dagster as dg

# The name that an example has, and that the folder of a scaffolded entry replaces.
NAME = "shop"


class ExampleScaffolder(dg.Scaffolder):
    """Writes the example of a component, under the name of its folder."""

    def scaffold(self, request: dg.ScaffoldRequest) -> None:
        """Write or extend the `defs.yaml`."""
        module, _, name = request.type_name.rpartition(".")
        component = getattr(importlib.import_module(module), name)
        name_of_entry = re.sub(r"\W", "_", request.target_path.name)
        example = example_of(component)
        attributes = textwrap.indent(re.sub(rf"\b{NAME}\b", name_of_entry, example), "  ")
        text = f"type: {request.type_name}\nattributes:\n{attributes}\n"
        file = request.target_path / "defs.yaml"
        if request.append:
            text = f"{file.read_text()}---\n{text}"
        file.write_text(text)


def example_of(component: type) -> str:
    """Return the YAML attributes under `Example:` in a component's docstring."""
    _, _, example = inspect.getdoc(component).partition("\nExample:\n")  # type: ignore[union-attr]
    return textwrap.dedent(example.partition("\n\n")[0]).strip("\n")


def with_attributes(component: type) -> type:
    """Add the descriptions of its entry's attributes to a component's docstring, for its page."""
    sections = [
        attributes
        for base in component.__mro__
        if base.__module__.startswith("replica_platform.app.entries")
        and (attributes := inspect.getdoc(base).partition("\nAttributes:\n")[2])  # type: ignore
    ]
    text = "\n".join(section.rstrip() for section in sections)
    component.__doc__ = f"{inspect.getdoc(component)}\n\nAttributes:\n{text}\n"
    return component
