"""Each component has an example that is an entry, and a page that describes every attribute."""

from pathlib import Path

import dagster as dg
import pytest
import yaml

from replica_platform import components
from replica_platform.app.configured import configured
from replica_platform.components.scaffolding import ExampleScaffolder, example_of


def scaffold(folder: Path, name: str) -> None:
    """Scaffold an entry as `dg scaffold defs` does."""
    folder.mkdir()
    request = dg.ScaffoldRequest(
        type_name=f"replica_platform.components.{name}",
        target_path=folder,
        scaffold_format="yaml",
        project_root=None,
        params=None,
    )
    ExampleScaffolder().scaffold(request)


def test_the_examples_are_entries_that_carry_the_name_of_their_folder(tmp_path: Path) -> None:
    for number, name in enumerate(components.__all__):
        scaffold(tmp_path / f"my-{number}", name)
    found = configured(tmp_path).entries
    assert [type(entry).__name__.removesuffix("Entry") for _, entry in found] == [
        *components.__all__
    ]
    names = [getattr(entry, "name", "") for _, entry in found]
    assert names == [f"my_{number}" for number in range(len(names))]


@pytest.mark.parametrize("name", components.__all__)
def test_each_page_has_an_example_and_says_what_every_attribute_is(name: str) -> None:
    component = getattr(components, name)
    assert yaml.safe_load(example_of(component))["name"] == "shop"
    described = component.__doc__.partition("\nAttributes:\n")[2]
    for attribute in component.model_fields:
        assert f"\n    {attribute}: " in f"\n{described}", attribute
