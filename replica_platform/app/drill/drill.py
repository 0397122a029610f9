"""A fault drill: damage everything in a sandbox, and wait until its daemon has healed it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from replica_platform.app.drill.faults import FAULTS, Fault
from replica_platform.app.drill.sandbox import Sandbox, daemon, sandbox
from replica_platform.core.errors import TerminalError
from replica_platform.core.reports import ReportFields

WITHIN_S = 300.0


@dataclass(frozen=True)
class FaultDone(ReportFields):
    """What came of one damage.

    Attributes:
        fault: Its name.
        what: What was done.
        noticed_by: What notices it, and how often that looks.
        noticed_s: After how many seconds it was noticed; None if it was not.
        healed_s: After how many seconds everything was as before; None if it was not.
    """

    fault: str
    what: str
    noticed_by: str
    noticed_s: float | None
    healed_s: float | None

    @property
    def ok(self) -> bool:
        """Whether it was noticed and healed."""
        return self.noticed_s is not None and self.healed_s is not None


@dataclass(frozen=True)
class FaultReport(ReportFields):
    """What came of a drill.

    Attributes:
        faults: Each damage.
        seconds: How long the drill took, the sandbox included.
        folder: The folder of the sandbox, if it was kept.
    """

    faults: Sequence[FaultDone]
    seconds: float
    folder: Path | None = None

    @property
    def ok(self) -> bool:
        """Whether everything was noticed and healed."""
        return all(one.ok for one in self.faults)

    @property
    def sentence(self) -> str:
        """What was healed, or what was not and what to do next."""
        if self.ok:
            slowest = max(one.healed_s or 0.0 for one in self.faults)
            return f"Everything was noticed and healed, the last damage after {slowest:.0f} s."
        unnoticed = [one.fault for one in self.faults if one.noticed_s is None]
        unhealed = [one.fault for one in self.faults if one.healed_s is None]
        parts = [f"not noticed: {', '.join(unnoticed)}"] if unnoticed else []
        parts += [f"not healed: {', '.join(unhealed)}"] if unhealed else []
        text = "; ".join(parts)
        log = (
            f"{self.folder}/daemon.log" if self.folder else "its daemon.log, kept by --keep FOLDER"
        )
        return f"{text[0].upper()}{text[1:]}; see {log}."


def run_drill(
    names: Sequence[str] = (),
    *,
    off: Sequence[str] = (),
    within_s: float = WITHIN_S,
    keep: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> FaultReport:
    """Do damage in a sandbox and measure how soon its daemon notices and heals it.

    Nothing of the platform that calls it is read or written.

    Args:
        names: The damages, by name; all if there are none.
        off: Schedules and sensors of the sandbox to switch off.
        within_s: The seconds in which everything should be healed.
        keep: An empty folder for the sandbox, which is kept; a temporary one if left out.
        progress: Told each step in a few words.

    Raises:
        TerminalError: There is no damage or sensor of that name, or the folder is not empty.
        EmbeddedPostgresFailed: The sandbox's Postgres could not be started.
        DaemonNotUp: The sandbox's daemon did not come up.
    """
    faults = _chosen(names)
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise TerminalError(f"{keep} is not empty; give an empty folder for the sandbox.")
    began = time.monotonic()
    progress("making a sandbox")
    with sandbox(keep) as box:
        progress("starting its daemon")
        with daemon(box, off) as instance:
            done = _damage_and_wait(box, instance, faults, within_s, progress)
    return FaultReport(done, time.monotonic() - began, keep)


def _chosen(names: Sequence[str]) -> list[Fault]:
    for name in names:
        if name not in FAULTS:
            raise TerminalError(f"There is no damage {name!r}; there are {', '.join(FAULTS)}.")
    return [FAULTS[name] for name in dict.fromkeys(names or FAULTS)]


def _damage_and_wait(
    box: Sandbox,
    instance: dg.DagsterInstance,
    faults: Sequence[Fault],
    within_s: float,
    progress: Callable[[str], None],
) -> list[FaultDone]:
    since: dict[str, float] = {}
    for fault in faults:
        if not fault.is_healed(box):
            raise TerminalError(f"The sandbox was not whole before {fault.name}; run it again.")
    for fault in faults:
        progress(fault.what)
        since[fault.name] = time.time()
        fault.damage(box)
    noticed: dict[str, float] = {}
    healed: dict[str, float] = {}
    while len(healed) < len(faults) and time.time() - min(since.values()) < within_s:
        time.sleep(1)
        for fault in faults:
            began = since[fault.name]
            if fault.name not in noticed and (at := fault.noticed_at(instance, began)):
                noticed[fault.name] = at - began
            # Reading everything costs time, which before it was noticed is in vain.
            if fault.name in noticed and fault.name not in healed and fault.is_healed(box):
                healed[fault.name] = time.time() - began
                progress(f"{fault.name} is healed")
    return [
        FaultDone(one.name, one.what, one.noticed_by, noticed.get(one.name), healed.get(one.name))
        for one in faults
    ]
