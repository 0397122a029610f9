"""The master that the market's assets write, as a resource."""

import dagster as dg

from replica_platform.components.machine import current_machine
from replica_platform.resources.master import MasterDuckDB

MASTER = "master/stock_data.duckdb"  # as in replica/defs.yaml


@dg.definitions
def defs() -> dg.Definitions:
    """Return the resource `master`."""
    path = current_machine().path(MASTER)
    return dg.Definitions(resources={"master": MasterDuckDB(database=str(path))})
