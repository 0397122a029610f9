"""MkDocs hook: the reference of commands, settings, components, metrics, checks and schedules.

A page of docs/reference/ says where: `<!-- generated: NAME -->`, with a name of `SECTIONS`. Each
section comes from what the program itself uses: click's commands, the fields of settings and
entries, the tables of metrics, and the definitions that Dagster loads from the sample and from one
entry of each component, whose names in capitals stand for those of a user.
"""

import importlib
import inspect
import json
import logging
import os
import pkgutil
import re
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, get_args, get_origin

import click
import dagster as dg
from pydantic import BaseModel

from replica_platform import app, components
from replica_platform.app.catalog import Catalog, CatalogFolder
from replica_platform.app.entries import Entry
from replica_platform.app.metrics import PREFIX
from replica_platform.app.project import init_project
from replica_platform.app.settings import Settings
from replica_platform.cli.main import PILLARS, replica
from replica_platform.components.scaffolding import example_of
from replica_platform.definitions import build_defs
from replica_platform.xmin import ListedColumn, ListedTable
from replica_platform.xmin.names import TableName

# An attribute in a docstring, with the lines that go on below it.
DESCRIBED = re.compile(r"^    (\w+): (.*(?:\n        .*)*)", re.MULTILINE)
KINDS = {str: "text", int: "number", float: "number", bool: "true or false", Any: "anything"}
MARK = re.compile(r"<!-- generated: (\w+) -->")
NOWHERE = "postgresql://127.0.0.1:1/reference"
# Read by what needs them, without being a field of the settings.
OTHER_VARIABLES = {
    "REPLICA_BACKUP_KEY": "The keys that encrypt backups kept as blocks, 64 hexadecimal digits "
    "each, separated by spaces: the first encrypts, all decrypt.",
}
ENTRIES = {
    "XminTables": """
        name: GROUP
        source: REFERENCE_DSN
        into: SCHEMA
        shards: 2
        tables: [{table: public.*}]
        shards: 2
    """,
    "DuckDBReplica": """
        name: REPLICA
        fresh_within_s: 3600
        rules: {a rule: from t where false}
        purposes: {PURPOSE: {tables: {t: {columns: [id]}}}}
        regions: [{host: HOST}]
    """,
    "WorkerOutboxes": """
        name: RECORDS
        nodes: {local: outbox}
    """,
    "SqliteBackups": """
        name: FILES
        files: [{path: FILE.db}, {path: REMOTE.db, pulled_from: "ssh://user@host/REMOTE.db"}]
    """,
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put each section where a page asks for it."""
    return MARK.sub(lambda found: SECTIONS[found[1]](), markdown)


def commands() -> str:
    """Return every command with its help and its options, pillar by pillar."""
    parts = []
    for pillar, listed in PILLARS.items():
        parts.append(f"## {pillar}\n")
        for command in listed:
            context = click.Context(command, info_name=str(command.name), parent=_program())
            usage = " ".join(command.collect_usage_pieces(context))
            records = [
                record
                for option in command.get_params(context)
                if isinstance(option, click.Option)
                and "--help" not in option.opts
                and (record := option.get_help_record(context))
            ]
            parts += [
                f"### replica {command.name}\n",
                f"`replica {command.name} {usage}`\n",
                f"{_paragraphs(command.help or '')}\n",
                table(("option", "meaning"), [(f"`{name}`", text) for name, text in records]),
            ]
    return "\n".join(parts)


def settings() -> str:
    """Return every environment variable with its default, its bounds and its meaning."""
    rows = []
    for name, field in Settings.model_fields.items():
        bounds = {
            word: getattr(constraint, word)
            for constraint in field.metadata
            for word in ("ge", "le")
            if hasattr(constraint, word)
        }
        allowed = ", ".join(
            f"{'at least' if word == 'ge' else 'at most'} {bound}" for word, bound in bounds.items()
        )
        default = {None: "", True: "`on`", False: "`off`"}.get(field.default, f"`{field.default}`")
        rows.append((f"`{variable(name)}`", default, allowed, field.description or ""))
    rows += [(f"`{name}`", "", "", text) for name, text in OTHER_VARIABLES.items()]
    return table(("variable", "default", "allowed", "meaning"), rows)


def metrics() -> str:
    """Return every metric with its labels and its meaning, by the module that has its table."""
    parts = []
    for module, listed in tables_of_metrics():
        what, _, _ = inspect.cleandoc(module.__doc__ or "").partition("\n\n")
        rows = (
            (f"`{PREFIX}_{name}`", ", ".join(f"`{label}`" for label in labels), text)
            for name, (labels, text) in listed.items()
        )
        parts += [f"{' '.join(what.split())}\n", table(("metric", "labels", "meaning"), rows)]
    return "\n".join(parts)


def tables_of_metrics() -> Iterator[tuple[ModuleType, Mapping[str, tuple[tuple[str, ...], str]]]]:
    """Yield each table of names, labels and meanings with its module."""
    for found in pkgutil.iter_modules(app.__path__, f"{app.__name__}."):
        if found.name.endswith("metrics"):
            module = importlib.import_module(found.name)
            for name, value in vars(module).items():
                if name.endswith("METRICS"):
                    yield module, value


def checks() -> str:
    """Return every check of an asset, with whether it blocks what comes after the asset."""
    rows = [
        (f"`{asset}`", f"`{name}`", "yes" if blocks else "no", text)
        for asset, name, blocks, text in listed_checks()
    ]
    return table(("asset", "check", "blocks", "what holds when it is green"), rows)


def component(name: str) -> str:
    """Return what a component does, an example, and its attributes with those of its parts."""
    found = getattr(components, name)
    text, _, _ = re.split(r"\n\n(Example|Attributes):\n", inspect.getdoc(found) or "", maxsplit=1)
    example = textwrap.indent(example_of(found), "  ")
    return "\n\n".join(
        (
            text,
            f"```yaml\ntype: {found.__module__.rpartition('.')[0]}.{name}\n"
            f"attributes:\n{example}\n```",
            *(attributes(model) for model in [found, *parts_of(found)]),
        )
    )


def attributes(model: type[BaseModel]) -> str:
    """Return the attributes of an entry, or of a part of one, with kinds and defaults."""
    texts = "\n".join(inspect.cleandoc(base.__doc__ or "") for base in reversed(model.__mro__))
    described = dict(DESCRIBED.findall(texts))
    rows = []
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = "(required)" if field.is_required() else f"`{json.dumps(default, default=list)}`"
        rows.append((f"`{name}`", kind_of(field.annotation), shown, described[name]))
    title = "" if issubclass(model, Entry) else f"**{model.__name__}**\n\n"
    return title + table(("attribute", "kind", "default", "meaning"), rows)


def parts_of(model: type[BaseModel]) -> list[type[BaseModel]]:
    """Return the models that the attributes of a model consist of, and their parts."""
    found: list[type[BaseModel]] = []
    for field in model.model_fields.values():
        for inner in innermost(field.annotation):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                found += [inner, *parts_of(inner)]
    return found


def innermost(annotation: Any) -> Iterator[Any]:
    """Yield the types that an annotation is made of."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal or not arguments:
        yield annotation
    for argument in arguments if get_origin(annotation) is not Literal else ():
        yield from innermost(argument)


def kind_of(annotation: Any) -> str:
    """Return an annotation in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind_of(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"map of {kind_of(arguments[1])}"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"list of {kind_of(arguments[0])}"
    if arguments:
        return " or ".join(kind_of(one) for one in arguments if one is not type(None))
    return KINDS.get(annotation, getattr(annotation, "__name__", ""))


def schedules() -> str:
    """Return every schedule, sensor and job."""
    defs = loaded()
    jobs = {job.name: job.description or "" for job in defs.jobs or () if hasattr(job, "name")}
    return "\n".join(
        (
            "## Schedules\n",
            table(
                ("schedule", "when (cron)", "time zone", "what"),
                sorted(
                    (f"`{one.name}`", f"`{one.cron_schedule}`", one.execution_timezone or "UTC",
                     one.description or jobs.get(one.job_name, ""))
                    for one in defs.schedules or ()
                    if isinstance(one, dg.ScheduleDefinition)
                ),
            ),
            "## Sensors\n",
            table(
                ("sensor", "looks every", "what"),
                sorted(
                    (f"`{one.name}`", f"{one.minimum_interval_seconds or 30} s",
                     one.description or "")
                    for one in defs.sensors or ()
                ),
            ),
        )
    )  # fmt: skip


SECTIONS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "settings": settings,
    "metrics": metrics,
    "checks": checks,
    "schedules": schedules,
    **{name: partial(component, name) for name in components.__all__},
}


def variable(field: str) -> str:
    """Return the environment variable of a setting."""
    return Settings.model_fields[field].alias or f"REPLICA_{field.upper()}"


def listed_checks() -> Iterator[tuple[str, str, bool, str]]:
    """Yield asset, name, whether it blocks, and description of each check."""
    graph = loaded().get_repository_def().asset_graph
    for key in sorted(graph.asset_check_keys, key=str):
        spec = graph.get_check_spec(key)
        yield key.asset_key.to_user_string(), key.name, spec.blocking, spec.description or ""


@cache
def loaded() -> dg.Definitions:
    """Return the definitions of the sample and of one entry of each component."""
    with tempfile.TemporaryDirectory() as home, _own_environment():
        project = Path(home) / "reference_project"
        init_project(project)
        for kind, attributes in ENTRIES.items():
            file = project / project.name / "defs" / kind.lower() / "defs.yaml"
            file.parent.mkdir()
            file.write_text(f"type: replica_platform.components.{kind}\nattributes:{attributes}")
        data = project / "data"
        # The list of tables that a source gave before it was away.
        listed = ListedTable(
            TableName("public", "TABLE"), "r", None, (ListedColumn("id", "integer", None),), ("id",)
        )
        CatalogFolder(data, "REFERENCE_DSN").store(Catalog.of([listed]))
        os.environ["REFERENCE_DSN"] = NOWHERE
        sys.path.insert(0, str(project))
        away = {f"{name}_dsn": NOWHERE for name in ("source", "target", "dagster")}
        return build_defs(Settings(_env_file=None, data_dir=data, **away), project)


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown; nothing where there are no rows."""
    lines = [" | ".join(" ".join(cell.split()) or " " for cell in row) for row in rows]
    if not lines:
        return ""
    names = tuple(columns)
    head = [" | ".join(names), " | ".join("---" for _ in names)]
    return "".join(f"| {line} |\n" for line in head + lines)


@cache
def _program() -> click.Context:
    return click.Context(replica, info_name="replica")


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


@contextmanager
def _own_environment() -> Iterator[None]:
    kept, path = dict(os.environ), list(sys.path)
    logging.disable(logging.WARNING)  # the source is away, as it should be
    for name in kept:
        if name.startswith(("REPLICA_", "XMIN_", "DAGSTER_")):
            del os.environ[name]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)
        sys.path[:] = path
        logging.disable(logging.NOTSET)
