"""The Containerfile as a list of instructions, and the rules that it has to keep."""

import re
from dataclasses import dataclass
from pathlib import Path

from replica_platform.app.launch import PROJECT

PATH = PROJECT / "deploy" / "Containerfile"
SECRET = re.compile(r"passw|secret|token|dsn|_key\b|credential", re.IGNORECASE)
# Of the project's folder, which holds `.env` and `data/` too, only these enter the image.
OF_THE_PROJECT = {"pyproject.toml", "requirements.tx[t]", "$PROJECT"}


@dataclass(frozen=True)
class Instruction:
    """One instruction: its name, its words without options, its options, and its stage."""

    name: str
    words: tuple[str, ...]
    options: dict[str, str]
    stage: int

    @property
    def text(self) -> str:
        return " ".join(self.words)


def instructions(text: str) -> list[Instruction]:
    """Return the instructions; comments are left out and continued lines are joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    found: list[Instruction] = []
    stage = -1
    for line in filter(None, re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines()):
        name, *words = line.split()
        stage += name == "FROM"
        given = {
            word.partition("=")[0]: word.partition("=")[2]
            for word in words
            if word.startswith("--")
        }
        options = given if name in ("FROM", "COPY") else {}
        rest = tuple(w for w in words if not (options and w.startswith("--")))
        found.append(Instruction(name, rest, options, stage))
    return found


def image_environment(text: str) -> dict[str, str]:
    """Return the variables that a container of the image starts with."""
    found = instructions(text)
    last = found[-1].stage
    pairs = [word for one in found if (one.name, one.stage) == ("ENV", last) for word in one.words]
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def broken_rules(text: str, root: Path = PROJECT) -> list[str]:
    """Return a sentence for each rule that the text breaks."""
    found = instructions(text)
    last = found[-1].stage
    broken = []
    for one in found:
        if one.name == "FROM" and not re.search(r"^[\w.]+/[\w./-]+:\d+\.\d+\.\d+", one.words[0]):
            broken.append(f"{one.words[0]} is not pinned to a patch release of a named registry")
        if one.name in ("ENV", "ARG") and SECRET.search(one.text):
            broken.append(f"{one.name} {one.text} looks like a secret")
        if one.name in ("ADD", "ENTRYPOINT"):
            broken.append(f"{one.name} is not used here")
        if one.name == "COPY":
            broken += _broken_copy(one, root)
        if one.name == "RUN":
            broken += _broken_run(one)
    users = [one.text for one in found if (one.name, one.stage) == ("USER", last)]
    if not users or not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", users[-1]):
        broken.append("the last stage needs a USER by number, other than root")
    return broken


def _broken_copy(one: Instruction, root: Path) -> list[str]:
    *sources, _ = one.words
    origin = one.options.get("--from")
    if origin == "project":
        wrong = [source for source in sources if source not in OF_THE_PROJECT]
        return [f"COPY takes {source} of the project" for source in wrong]
    if origin is None:
        return [
            f"there is no {source} to COPY" for source in sources if not (root / source).exists()
        ]
    return []


def _broken_run(one: Instruction) -> list[str]:
    broken = []
    if "pip install" in one.text:
        for option in ("--no-cache-dir", "--constraint constraints.txt"):
            if option not in one.text:
                broken.append(f"pip install without {option}")
    if re.search(r"\b(curl|wget|apt-get|sudo)\b", one.text):
        broken.append(f"RUN {one.text} takes something that is not pinned")
    return broken
