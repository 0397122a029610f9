"""The health of each pillar in one sentence: what `replica status` shows.

The engines judge what they know of (`status`, `backlog`, `stats`); here the `defs.yaml` files say
what should be there and how old it may be.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from replica_platform import replica
from replica_platform.app.catalog import CatalogFolder
from replica_platform.app.configured import Configured, configured
from replica_platform.app.cron import tick_before
from replica_platform.app.entries import (
    DuckDBReplicaEntry,
    LakeMasterEntry,
    PurposeReplicasEntry,
    SqliteBackupsEntry,
    TableEntry,
    WorkerOutboxesEntry,
    XminTablesEntry,
)
from replica_platform.app.entries.base import environment_dsn
from replica_platform.app.entries.sqlite_files import names_of
from replica_platform.app.hosts import hosts_status
from replica_platform.app.lakes import lake_of
from replica_platform.app.launch import is_made
from replica_platform.app.scheduler import SchedulerStatus, scheduler_status
from replica_platform.app.settings import Settings
from replica_platform.backup import status as backup_status
from replica_platform.core.errors import PlatformError
from replica_platform.core.reports import ReportFields, format_age
from replica_platform.history import Span, read
from replica_platform.lake import status as lake_status
from replica_platform.outbox import backlog, reconcile
from replica_platform.xmin import SyncStatus
from replica_platform.xmin import status as sync_status

# Ticks of a schedule that may pass without a sync before its tables are red.
MISSED_TICKS = 3
# Where no daemon has ever run, for example after a first `replica run`, nobody expects schedules to
# run; after a day the data is too old all the same.
IDLE_S = 86_400


@dataclass(frozen=True)
class Health(ReportFields):
    """The health of a pillar.

    Attributes:
        pillar: The name of the pillar.
        ok: Whether all is well, or idle.
        sentence: What is well, or what is wrong and what to do next.
        facts: Figures by name; a name ends in `_bytes` for a size and in `_age_s` for an age.
        idle: Whether something waits for a schedule, and no daemon has ever run here.
    """

    pillar: str
    ok: bool
    sentence: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    idle: bool = False


def platform_health(settings: Settings, found: Configured | None = None) -> list[Health]:
    """Return the health of each pillar that is configured, and of Dagster's daemon.

    An error of an engine is reported as the health of its pillar.

    Args:
        settings: The settings of the platform; its databases should run.
        found: What is configured; the `defs.yaml` files of this package if left out.

    Returns:
        One report for each pillar, in the order of the README.
    """
    found = found or configured(sample=settings.sample, host=settings.host)
    if settings.target_dsn is None and not is_made(settings):
        sentence = (
            f"Nothing is in {settings.data_dir} yet; run `replica run`, or set "
            "REPLICA_DATA_DIR to the folder of a platform."
        )
        return [Health("platform", False, sentence)]
    scheduler = _scheduler(settings)
    pillars: dict[str, Inspection] = {}
    replicas = found.here(DuckDBReplicaEntry)
    for one in replicas:
        pillars["replica" if len(replicas) == 1 else one.name] = partial(_replica, settings, one)
    if purposes := found.here(PurposeReplicasEntry):
        pillars["purposes"] = partial(_purposes, settings, purposes)
    if lakes := found.here(LakeMasterEntry):
        pillars["lakes"] = partial(_lakes, settings, lakes)
    if found.of(XminTablesEntry):
        pillars["warehouse"] = partial(_warehouse, settings, found.of(XminTablesEntry), scheduler)
    if outboxes := found.here(WorkerOutboxesEntry):
        pillars["outbox"] = partial(_outbox, settings, outboxes, scheduler)
    if files := found.here(SqliteBackupsEntry):
        pillars["backups"] = partial(_backups, settings, files)
    for host, elsewhere in _elsewhere(found).items():
        pillars[f"outbox on {host}"] = partial(_outbox_elsewhere, settings, elsewhere, host)
    if found.hosts or settings.broker_url is not None:
        pillars["hosts"] = partial(_hosts, settings, found.hosts)
    pillars["dagster"] = partial(_dagster, settings)
    return [_health(pillar, inspect) for pillar, inspect in pillars.items()]


Found = tuple[bool, str, Mapping[str, Any]]
# The fourth value says whether the pillar is idle.
MaybeIdle = tuple[bool, str, Mapping[str, Any], bool]
Inspection = Callable[[], Found | MaybeIdle]


def _health(pillar: str, inspect: Inspection) -> Health:
    try:
        return Health(pillar, *inspect())
    except PlatformError as error:
        return Health(pillar, False, str(error))


def _replica(settings: Settings, entry: DuckDBReplicaEntry) -> Found:
    found = replica.status(settings.path(entry.store_folder), settings.path(entry.master))
    facts = {
        "master_bytes": found.master_bytes,
        "replica_bytes": found.replica_bytes,
        "generation": found.generation,
        "kept": list(found.kept),
        "in_sync": found.in_sync,
        "data_age_s": found.data_age_s,
        "publication_age_s": found.publication_age_s,
        "readers": [f"{one.pid} on {one.generation}" for one in found.readers],
    }
    age_s, within_s = found.publication_age_s, entry.fresh_within_s
    if found.ok and within_s and (age_s is None or age_s > within_s):
        sentence = (
            f"It was published or confirmed {format_age(age_s)} ago, but should be every "
            f"{format_age(within_s)}; see whether the schedules run (`replica dev`), or run "
            "`replica run`."
        )
        return False, sentence, facts
    return found.ok, found.sentence, facts


def _purposes(settings: Settings, entries: Sequence[PurposeReplicasEntry]) -> Found:
    states = {
        one.name if entry.name == "purposes" else f"{entry.name}/{one.name}": replica.status(
            settings.path(entry.store_folder(one.name)), settings.path(entry.master)
        )
        for entry in entries
        for one in entry.made()
    }
    if not states:
        return True, "No purpose is configured.", {}
    problems = [f"{name}: {state.sentence}" for name, state in states.items() if not state.ok]
    facts = {"generations": {name: state.generation for name, state in states.items()}}
    if problems:
        return False, " ".join(problems), facts
    return True, f"{', '.join(states)}: every purpose has its replica, in sync.", facts


def _lakes(settings: Settings, entries: Sequence[LakeMasterEntry]) -> Found:
    states = {
        one.name: lake_status(lake_of(one, settings.target, settings.path), files=False)
        for one in entries
    }
    problems = [state.sentence for state in states.values() if not state.ok]
    facts = {"snapshots": {name: state.newest for name, state in states.items()}}
    sentences = problems or [f"{name}: {state.sentence}" for name, state in states.items()]
    return not problems, " ".join(sentences), facts


def _warehouse(
    settings: Settings, groups: Sequence[XminTablesEntry], scheduler: SchedulerStatus
) -> MaybeIdle:
    """Return the health of all groups, each in its own target database."""
    problems: list[str] = []
    late: dict[str, tuple[float, str]] = {}
    left: list[str] = []
    wanted: list[str] = []
    ages: list[float] = []
    for target in dict.fromkeys(group.target for group in groups):
        dsn = environment_dsn(target) if target else settings.target
        synced = {table.target_table: table for table in sync_status(dsn)}
        tables = {
            str(group.target_of(table)): group
            for group in groups
            if group.target == target
            for table in _tables(settings, group)
        }
        problems += [
            problem for name in tables if (problem := _table_problem(name, synced.get(name)))
        ]
        late |= {
            name: (synced[name].age_s, group.cron_schedule)
            for name, group in tables.items()
            if name in synced and synced[name].there and _is_late(synced[name], group)
        }
        left += [name for name in synced if name not in tables]
        wanted += tables
        ages += [synced[name].age_s for name in tables if name in synced]
    idle = bool(late) and _is_idle(scheduler, [age_s for age_s, _ in late.values()])
    if late and not idle:
        problems += [_late(name, *found) for name, found in late.items()]
        problems.append(f"{_sentence(scheduler.hint)} Or run `replica run`.")
    facts = {"tables": wanted, "no_longer_configured": left}
    if problems:
        sentence = " ".join(problems)
    elif ages:
        sentence = (
            f"{_are(len(ages), 'table')} synced; the last sync was {format_age(min(ages))} ago, "
            f"the least recent {format_age(max(ages))} ago."
        )
    else:
        sentence = "No table is configured."
    if idle and not problems:
        sentence += f" {_sentence(scheduler.hint)}"
    if left:
        sentence += (
            f" No longer configured: {', '.join(left)}; `replica forget-table {left[0]}` removes "
            "what is remembered of it."
        )
    return not problems, sentence, facts, idle and not problems


def _is_idle(scheduler: SchedulerStatus, ages_s: Iterable[float]) -> bool:
    """Whether something is late only since no daemon has run here, and by less than a day."""
    return not scheduler.started and max(ages_s) <= IDLE_S


def _sentence(hint: str) -> str:
    return f"{hint[0].upper()}{hint[1:]}."


def _tables(settings: Settings, group: XminTablesEntry) -> list[TableEntry]:
    """Return the tables of a group, patterns as they were when definitions were loaded last."""
    known = CatalogFolder(settings.data_dir, group.source).newest()
    return group.resolved(known.tables)


def _table_problem(name: str, table: SyncStatus | None) -> str | None:
    """Return what is wrong with a table, and what to do next; None if nothing is."""
    if table is None:
        return f"{name} was never synced; run `replica run`, or wait for the schedule."
    if not table.there:
        return f"{name} is gone from the target; run `replica run` to copy it again."
    return None


def _is_late(table: SyncStatus, group: XminTablesEntry) -> bool:
    due = _due(group.cron_schedule, group.timezone)
    return due is not None and table.age_s > (datetime.now(UTC) - due).total_seconds()


def _late(name: str, age_s: float, cron: str) -> str:
    return (
        f"{name} was synced {format_age(age_s)} ago, and its schedule ({cron}) should have run "
        f"{MISSED_TICKS} times since."
    )


def _due(cron: str, timezone: str) -> datetime | None:
    """Return the tick after which a table should have been synced; None if that is unknown."""
    try:
        return tick_before(cron, datetime.now(ZoneInfo(timezone)), MISSED_TICKS - 1)
    except (ValueError, ZoneInfoNotFoundError):
        return None


def _outbox(
    settings: Settings, entries: Sequence[WorkerOutboxesEntry], scheduler: SchedulerStatus
) -> Found | MaybeIdle:
    nodes = {
        (entry.name, node): (settings.path(folder), entry.backlog_within_s)
        for entry in entries
        for node, folder in entry.nodes.items()
    }
    if not nodes:
        return True, "No outbox is configured.", {}
    empty = [
        f"There is no outbox in {folder}, the folder of {node}; start the worker that appends "
        "there, bring its file back (`replica restore-backup`), or take the node out of the "
        "defs.yaml file."
        for (_, node), (folder, _) in nodes.items()
        if not any(folder.glob("*.db"))
    ]
    folders = list(dict.fromkeys(folder for folder, _ in nodes.values() if folder.is_dir()))
    waiting = backlog(folders)
    facts = {
        "pending": waiting.pending,
        "oldest_pending_age_s": waiting.oldest_pending_age_s,
        "dead": waiting.dead,
        "file_bytes": waiting.file_bytes,
    }
    late = {
        node: one.oldest_pending_age_s
        for (_, node), (folder, within_s) in nodes.items()
        if folder.is_dir() and (one := backlog([folder])).oldest_pending_age_s > within_s
    }
    problems = [*empty, *([] if waiting.ok else [waiting.sentence])]
    if late and not problems and _is_idle(scheduler, late.values()):
        hint = f"{_sentence(scheduler.hint)} Or run `replica drain`."
        return True, f"{waiting.sentence} {hint}", facts, True
    problems += [
        f"The oldest record of {node} waits for {format_age(age_s)}; {scheduler.hint}, or run "
        "`replica drain`."
        for node, age_s in late.items()
    ]
    if problems:
        return False, " ".join(problems), facts
    delivered = [
        reconcile(sorted(set(into)), environment_dsn(target) if target else settings.target)
        for target, into in _by_target(settings, entries).items()
    ]
    sentences = " ".join(one.sentence for one in delivered)
    return all(one.ok for one in delivered), f"{waiting.sentence} {sentences}", facts


def _by_target(
    settings: Settings, entries: Sequence[WorkerOutboxesEntry]
) -> dict[str | None, list[Path]]:
    """Return the folders of outboxes by the variable of the database that they are delivered to."""
    folders: dict[str | None, list[Path]] = {}
    for entry in entries:
        own = [settings.path(folder) for folder in entry.nodes.values()]
        folders.setdefault(entry.target, []).extend(own)
    return folders


def _elsewhere(found: Configured) -> dict[str, list[WorkerOutboxesEntry]]:
    """Return the outboxes of other hosts, by host."""
    by_host: dict[str, list[WorkerOutboxesEntry]] = {}
    here = found.here(WorkerOutboxesEntry)
    for entry in found.of(WorkerOutboxesEntry):
        if entry.host and entry not in here:
            by_host.setdefault(entry.host, []).append(entry)
    return by_host


def _outbox_elsewhere(
    settings: Settings, entries: Sequence[WorkerOutboxesEntry], host: str
) -> Found:
    """Return the health of another host's outboxes, from what its runs recorded."""
    within_s = {
        f"{entry.name}/{node}": entry.backlog_within_s for entry in entries for node in entry.nodes
    }
    past = read(settings.target, ("pending", "oldest_s", "dead"), Span.HOUR, 2)
    most = {
        series: {
            name: max(known)
            for name, values in of.values.items()
            if name in within_s and (known := [value for value in values if value is not None])
        }
        for series, of in past.items()
    }
    facts = {name: dict(values) for name, values in most.items()}
    problems = [
        f"{name} was not looked at within two hours; see `replica cluster status`."
        for name in within_s
        if name not in most["pending"]
    ]
    problems += [
        f"Up to {most['dead'][name]:,.0f} records of {name} were refused within two hours; on "
        f"{host}, `replica dead --outbox FILE` lists them."
        for name in within_s
        if most["dead"].get(name)
    ]
    problems += [
        f"A record of {name} waited for {format_age(most['oldest_s'][name])} within two hours; "
        "see `replica cluster status`."
        for name, most_s in within_s.items()
        if most["oldest_s"].get(name, 0) > most_s
    ]
    if problems:
        return False, " ".join(problems), facts
    waited = sum(most["pending"].values())
    sentence = f"Up to {waited:,.0f} records waited within two hours."
    return True, sentence, facts


def _backups(settings: Settings, entries: Sequence[SqliteBackupsEntry]) -> Found:
    files = [
        (entry, file, entry.backups_of(settings.backup_dir, file, name), Path(file.path).stem)
        for entry in entries
        for file, name in zip(entry.files, names_of(entry.files), strict=True)
    ]
    if not files:
        return True, "No file is configured.", {}
    problems, ages, count, size = [], [], 0, 0
    for entry, file, folder, name in files:
        found = backup_status(folder, name)
        count, size = count + found.count, size + found.bytes
        age_s = found.newest_age_s
        if age_s is None:
            problems.append(f"{file.path} was never backed up; run `replica run`.")
        elif age_s > entry.fresh_within_s:
            problems.append(
                f"{file.path} was backed up {format_age(age_s)} ago, but should be every "
                f"{format_age(entry.fresh_within_s)}; see whether the schedules run "
                "(`replica dev`)."
            )
        elif not found.ok:
            problems.append(f"{file.path}: {found.sentence}")
        if age_s is not None:
            ages.append(age_s)
    facts = {"count": count, "total_bytes": size, "newest_age_s": min(ages, default=None)}
    if problems:
        return False, " ".join(problems), facts
    return (
        True,
        (
            f"{_are(len(files), 'file')} backed up; the least recent backup is of "
            f"{format_age(max(ages))} ago."
        ),
        facts,
    )


def _are(count: int, noun: str) -> str:
    return f"1 {noun} is" if count == 1 else f"{count} {noun}s are"


def _hosts(settings: Settings, named: Sequence[str]) -> Found:
    if settings.broker_url is None:
        names = ", ".join(named)
        return True, f"{names}: no broker is set, so that everything runs on this machine.", {}
    found = hosts_status(settings.dagster, named)
    facts = {
        "live_workers": sum(len(host.workers) for host in found.hosts),
        "running": sum(len(host.running) for host in found.hosts),
        "waiting": sum(len(host.waiting) for host in found.hosts),
    }
    return found.ok, found.sentence, facts


def _scheduler(settings: Settings) -> SchedulerStatus:
    """Return the state of Dagster's daemon; one that never ran if its database does not answer."""
    if settings.dagster_dsn is None and not is_made(settings):
        return SchedulerStatus()
    try:
        return scheduler_status(settings.dagster)
    except PlatformError:  # `_dagster` reports it
        return SchedulerStatus()


def _dagster(settings: Settings) -> Found:
    if settings.dagster_dsn is None and not is_made(settings):
        return True, "Dagster has no database here yet; `replica dev` makes it.", {}
    found = scheduler_status(settings.dagster)
    return found.ok, found.sentence, {"heartbeat_age_s": found.heartbeat_age_s}
