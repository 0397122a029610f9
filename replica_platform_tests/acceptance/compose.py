"""The Compose file, with the variables of a `.env` put in as Compose does."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from replica_platform.app.launch import PROJECT

COMPOSE = PROJECT / "deploy" / "compose" / "compose.yaml"
CLUSTER = COMPOSE.with_name("cluster.yaml")
ENVIRONMENT = {
    "POSTGRES_PASSWORD": "letters",
    "REPLICA_SOURCE_DSN": "postgresql://reader@source.example.com/shop",
    "BROKER_PASSWORD": "figures",
    "BUCKET_SECRET_KEY": "signs123",
}
_VARIABLE = re.compile(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}")


def variables(text: str) -> list[str]:
    """Return the names of the variables in a Compose file."""
    return [match[1] for match in _VARIABLE.finditer(text)]


def interpolated(text: str, environment: Mapping[str, str]) -> str:
    """Put variables in: `${A}`, `${A:-default}` and `${A:?what to do}`.

    Raises:
        KeyError: A variable that must be set is not, or is empty.
    """

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        given = environment.get(name, "")
        if not given and kind == ":?":
            raise KeyError(f"{name}: {rest}")
        return given or (rest if kind == ":-" else "")

    return _VARIABLE.sub(value, text).replace("$$", "$")


def compose(environment: Mapping[str, str] = ENVIRONMENT, *, cluster: bool = False) -> Any:
    """Return the Compose file as Compose would read it, with that of a cluster on top or without.

    Compose merges mappings, and takes the rest from the later file.
    """
    found: Any = {}
    for path in [COMPOSE, CLUSTER] if cluster else [COMPOSE]:
        found = merged(found, yaml.safe_load(interpolated(path.read_text(), environment)))
    return found


def merged(below: Any, above: Any) -> Any:
    """Return two files as one: mappings are merged, and the rest is of the file above."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {key: merged(below.get(key), value) for key, value in above.items()}
