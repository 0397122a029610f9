"""The options of a publication, and the timer of its steps."""

import time
from dataclasses import dataclass
from datetime import datetime
from typing import TypedDict

from replica_platform.core.reports import Progress
from replica_platform.replica.master import PATIENCE_S
from replica_platform.replica.purpose.definition import Purpose
from replica_platform.replica.store.candidate import Step
from replica_platform.replica.store.retention import Retention


class PublishKeywords(TypedDict, total=False):
    """The keyword arguments of `publish` and `prepare`, as `PublishOptions` describes them."""

    keep: int | None
    min_age_s: float | None
    data_as_of: datetime | None
    run_id: str | None
    progress: Progress | None
    patience_s: float
    new_lineage: bool
    required: tuple[str, ...]
    purpose: Purpose | None
    max_age_s: float | None
    step: Step | None
    link: str | None


@dataclass(frozen=True, kw_only=True)
class PublishOptions:
    """How to publish.

    Attributes:
        keep: How many generations stay; None for the purpose's number, or 3.
        min_age_s: How long, in seconds, each stays at least; None for the purpose's, or 60.
        data_as_of: The time that the data describes.
        run_id: The run that publishes.
        progress: Told the blocks that are copied.
        patience_s: How long to wait, in seconds, for a writer of the master.
        new_lineage: Whether another database, or an older one, is accepted.
        required: Tables that must exist and are read to the end; `*` for all.
        purpose: The part of the master to build; None for all of it.
        max_age_s: The age in seconds beyond which the data is stale; a purpose has its own.
        step: Told the name of each step before it begins.
        link: The name of the link to the current generation's file; None for the default one.
    """

    keep: int | None = None
    min_age_s: float | None = None
    data_as_of: datetime | None = None
    run_id: str | None = None
    progress: Progress | None = None
    patience_s: float = PATIENCE_S
    new_lineage: bool = False
    required: tuple[str, ...] = ()
    purpose: Purpose | None = None
    max_age_s: float | None = None
    step: Step | None = None
    link: str | None = None

    @property
    def retention(self) -> Retention:
        """Which generations stay."""
        default = self.purpose or Retention()
        return Retention(
            default.keep if self.keep is None else self.keep,
            default.min_age_s if self.min_age_s is None else self.min_age_s,
        )

    @property
    def purpose_name(self) -> str | None:
        """The purpose's name; None for the whole master."""
        return self.purpose.name if self.purpose else None

    @property
    def recipe(self) -> str | None:
        """The digest of the purpose's definition; None for the whole master."""
        return self.purpose.recipe if self.purpose else None

    @property
    def stale_after_s(self) -> float | None:
        """The age in seconds beyond which the data is stale, the purpose's if there is one."""
        return self.purpose.max_age_s if self.purpose else self.max_age_s


class StepTimer:
    """Reports each step before it begins, and measures it.

    Attributes:
        seconds: How long each finished step took, by name.
    """

    def __init__(self, on_step: Step | None) -> None:
        self._on_step = on_step
        self._name: str | None = None
        self._since = 0.0
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str) -> None:
        """Finish the last step and begin the next one."""
        self.finish()
        self._name, self._since = name, time.monotonic()
        if self._on_step:
            self._on_step(name)

    def finish(self) -> dict[str, float]:
        """Finish the last step, and return `seconds`."""
        if self._name is not None:
            took = time.monotonic() - self._since
            self.seconds[self._name] = self.seconds.get(self._name, 0.0) + took
            self._name = None
        return self.seconds
