"""The command line and the output of the replica's benchmarks."""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path


def measure(
    description: str, run: Callable[..., dict[str, object]], **options: float | str
) -> None:
    """Call `run` with a temporary folder, `--mb` and the options, and print its result.

    Args:
        description: The help text.
        run: The benchmark.
        **options: The default of each option, which also gives its type.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", action="store_true")
    for name, default in {"mb": 1000, **options}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    given = vars(parser.parse_args())
    parent, as_json = given.pop("folder"), given.pop("json")
    with tempfile.TemporaryDirectory(prefix="rp-bench-", dir=parent) as folder:
        found = run(Path(folder), **given)
    if as_json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:18} {value}")
