"""Where a reader's answers come from, and how old the data is."""

from dataclasses import dataclass
from datetime import datetime

from replica_platform.core.reports import ReportFields


@dataclass(frozen=True)
class ReaderStatus(ReportFields):
    """How the last answer was obtained, and how old the data is.

    Attributes:
        served_from: current, previous, kept, memory or default; None before the first answer of a
            store without a generation.
        generation: The generation that is attached.
        data_age_s: The age of the data in seconds; None when the publisher did not say.
        publication_age_s: Seconds since a publisher last found the generation to be current.
        data_as_of: The time that the data describes.
        published_at: When the generation was published.
        last_error: The last problem.
        refused: Why and when each generation that is not used was refused.
    """

    served_from: str | None
    generation: int | None
    data_age_s: float | None
    publication_age_s: float | None
    data_as_of: datetime | None
    published_at: datetime | None
    last_error: str | None
    refused: list[str]

    @property
    def ok(self) -> bool:
        """Whether answers come from the current generation, or the one that was asked for."""
        return self.served_from in ("current", "kept")

    @property
    def sentence(self) -> str:
        """Where answers come from and, if not from the current generation, why."""
        if self.ok:
            which = "current" if self.served_from == "current" else "kept"
            return f"Answers come from generation {self.generation}, the {which} one."
        source = {
            "previous": f"the previous generation {self.generation}",
            "memory": "the last good answers",
            "default": "the caller's defaults",
        }.get(self.served_from or "", "nowhere yet")
        return (
            f"Answers come from {source} ({self.last_error or 'nothing is published yet'}); "
            "publish again."
        )

    @property
    def rung(self) -> str | None:
        """The former name of `served_from`."""
        return self.served_from
