"""The fenced blocks of the documentation, and what a comment before a block says about it.

Every block names its language. What is done with it:

| language | |
|---|---|
| `console` | each line after `$ ` is run by bash; lines below it are its output, `…` any lines |
| `python`, `sql` | run; all Python of a page is one program |
| `yaml`, `toml`, `ini`, `json` | loaded: a `defs.yaml` and a `.env` by the platform's own models |
| `text` | a drawing or an output: nothing |

A title (```` ```yaml title="a/b.yaml" ````) makes the block a file, which later commands of the
page find. Comments directly before a block:

| comment | |
|---|---|
| `<!-- not run: REASON -->` | it is not run; how many may say so is limited |
| `<!-- run by: FILE::TEST -->` | another test runs it; before the first heading: the whole page |
| `<!-- before: COMMANDS -->` | bash that is run first and not shown |
| `<!-- read as: KIND -->` | a YAML file that is no `defs.yaml`: see `test_snippets.LOADERS` |
| `<!-- stopped after: N s -->` | commands that run until Ctrl-C, which they get after N seconds |
| `<!-- database: NAME -->` | SQL is run in this database, `warehouse` otherwise |
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

LANGUAGES = {"console", "python", "sql", "yaml", "toml", "ini", "json", "text"}
MARKS = {"not run", "run by", "before", "read as", "stopped after", "database"}
OPENING = re.compile(r'^ *```(?P<language>[\w-]*)(?: title="(?P<title>[^"]+)")? *$')
FENCE = re.compile(r"^ *```")
COMMENT = re.compile(r"<!-- ([a-z ]+): (.*?)\s*-->", re.DOTALL)
# Comments before the heading of a page.
WHOLE = re.compile(r"(?:<!--(?:(?!-->).)*-->\s*)+(?=# )", re.DOTALL)


class WrongPage(ValueError):
    """A page has a block or a comment that the tests cannot use; the text says where."""


@dataclass(frozen=True)
class Command:
    """A line after a prompt, and the lines below it; `…` stands for any lines."""

    line: str
    output: tuple[str, ...]


@dataclass(frozen=True)
class Snippet:
    """A fenced block.

    Attributes:
        page: The page's path in the repository.
        line: The line of its fence, from 1.
        language: The word after the fence.
        title: The file that it is; empty for none.
        text: The lines between the fences, without the block's indentation.
        marks: What comments before it say, by their first word.
    """

    page: str
    line: int
    language: str
    title: str
    text: str
    marks: dict[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """The page and the line, for a message."""
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[Command]:
        """The commands of a `console` block with the output that the page shows."""
        parts = re.split(r"^\$ ", self.text, flags=re.MULTILINE)
        if parts[0].strip() or len(parts) == 1:
            raise WrongPage(f"{self.where}: a console block begins with `$ ` and a command")
        found = []
        for part in parts[1:]:
            line, *output = part.rstrip("\n").splitlines()
            while line.endswith("\\") and output:
                line += "\n" + output.pop(0)
            found.append(Command(line, tuple(output)))
        return found

    @property
    def is_run(self) -> bool:
        """Whether this harness runs or loads it."""
        return not {"not run", "run by"} & self.marks.keys()


def snippets(text: str, page: str) -> list[Snippet]:
    """Return the blocks of a page.

    Raises:
        WrongPage: A block has no known language or no end, or a comment is misspelt.
    """
    return list(_snippets(text, page))


def _snippets(text: str, page: str) -> Iterator[Snippet]:
    lines = text.splitlines()
    top = WHOLE.match(text)
    whole = _marks(top[0] if top else "", page, 1)
    number, begin = 0, 0
    while number < len(lines):
        if not FENCE.match(lines[number]):
            number += 1
            continue
        opening = OPENING.match(lines[number])
        language = opening["language"] if opening else ""
        if language not in LANGUAGES:
            names = ", ".join(sorted(LANGUAGES))
            raise WrongPage(f"{page}:{number + 1}: a block's language is one of {names}")
        end = next((n for n in range(number + 1, len(lines)) if FENCE.match(lines[n])), None)
        if end is None:
            raise WrongPage(f"{page}:{number + 1}: the block does not end")
        indent = len(lines[number]) - len(lines[number].lstrip())
        body = "".join(f"{line[indent:]}\n" for line in lines[number + 1 : end])
        before = "\n".join(lines[begin:number])
        marks = whole | _marks(_last_comments(before), page, number + 1)
        assert opening
        yield Snippet(page, number + 1, language, opening["title"] or "", body, marks)
        number = begin = end + 1


def _last_comments(before: str) -> str:
    """Return the comments that end a text."""
    found = re.search(r"(?:<!--(?:(?!-->).)*-->\s*)+\Z", before, re.DOTALL)
    return found[0] if found else ""


def _marks(comments: str, page: str, line: int) -> dict[str, str]:
    marks = dict(COMMENT.findall(comments))
    unknown = marks.keys() - MARKS
    if unknown or (comments.strip() and not marks):
        raise WrongPage(f"{page}:{line}: a comment before it says none of {sorted(MARKS)}")
    return marks


def is_shown(shown: tuple[str, ...], output: str) -> bool:
    """Whether an output is what a page shows of it; a page that shows nothing of it agrees."""
    if not shown:
        return True
    lines = [".*" if line == "…" else re.escape(line.rstrip()) + " *\n" for line in shown]
    return re.fullmatch("".join(lines), output, re.DOTALL) is not None


def pages(project: Path) -> list[Path]:
    """Return the pages whose blocks are run, those of the site and the README among them."""
    return [
        *(project / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
        *sorted((project / "docs").rglob("*.md")),
    ]
