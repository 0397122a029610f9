"""What is added to the history after a sync and after checks.

The history is a convenience: what cannot be recorded is logged, and the work goes on.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from replica_platform.core.errors import PlatformError
from replica_platform.history import Sample, record

if TYPE_CHECKING:
    from replica_platform.xmin import SyncReport

log = logging.getLogger(__name__)


def record_syncs(target: str, reports: "Mapping[str, SyncReport]") -> None:
    """Record the rows that syncs moved, and those that a proof found to differ.

    Args:
        target: The DSN of the platform's target.
        reports: The report of each target table.
    """
    samples: list[Sample] = []
    for name, report in reports.items():
        moved = report.rows_inserted + report.rows_updated + report.rows_deleted
        samples.append(Sample("rows_moved", name, moved or None))
        if report.proof and report.proof.differing:
            samples.append(Sample("differing", name, report.proof.differing))
    record_samples(target, samples)


def record_integrity(target: str, scores: Mapping[str, float]) -> None:
    """Record the integrity score of target tables.

    Args:
        target: The DSN of the platform's target.
        scores: The score of each target table, 0 to 1.
    """
    record_samples(target, (Sample("integrity", name, score) for name, score in scores.items()))


def record_samples(target: str, samples: Iterable[Sample]) -> int:
    """Record samples and return how many; where that fails, log why and return 0."""
    try:
        return record(target, samples)
    except PlatformError as error:
        log.warning("Nothing was added to the history: %s", error)
        return 0
