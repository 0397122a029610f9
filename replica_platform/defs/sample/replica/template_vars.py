"""What the `defs.yaml` beside this file takes from the market: the rules of its tables."""

import dagster as dg

from replica_platform.market.checks import audit_rules


@dg.template_var
def market_rules() -> dict[str, str]:
    """Return every rule of every table, by a sentence that names the table."""
    return audit_rules()
