"""The fault drill as a job, to be launched by a person or by a schedule of the user's."""

import dagster as dg

from replica_platform.app.drill.drill import run_drill
from replica_platform.metadata import markdown_rows
from replica_platform.policies import translate_errors


@dg.op
def damage_a_sandbox(context: dg.OpExecutionContext) -> None:
    """Damage each pillar in a sandbox, and fail unless its daemon heals everything."""
    with translate_errors():
        report = run_drill(progress=context.log.info)
    rows = [(one.what, one.noticed_by, one.noticed_s, one.healed_s) for one in report.faults]
    columns = ("damage", "noticed by", "noticed after s", "healed after s")
    context.add_output_metadata({"damages": dg.MetadataValue.md(markdown_rows(rows, columns))})
    if not report.ok:
        raise dg.Failure(report.sentence, allow_retries=False)
    context.log.info(report.sentence)


@dg.job(
    description="Damages each pillar in a sandbox of its own, and measures how soon its daemon "
    "notices and heals it; fails when something was not. Nothing of the platform is touched.",
)
def drill() -> None:
    """Run a fault drill."""
    damage_a_sandbox()
