"""Merging rows by key into the target Postgres: the one policy for frames of any asset."""

import dagster as dg
import pandas as pd

from replica_platform.metadata import described, table_schema
from replica_platform.policies import plain_failures
from replica_platform.resources.postgres import PostgresDatabase
from replica_platform.xmin import merge_frame, read_rows


class XminMergeIOManager(dg.ConfigurableIOManager):
    """Merges a DataFrame into `schema.asset_name` of the target; rows that are equal stay.

    The asset says its key in `metadata={"key": ["symbol"]}`. What is written anew gets a new
    `xmin`, so that whoever follows the table by xmin reads the change and nothing else.
    """

    target: dg.ResourceDependency[PostgresDatabase]
    into: str = "analytics"

    def handle_output(self, context: dg.OutputContext, obj: pd.DataFrame) -> None:
        """Make the table if it is not there, then merge by key in one transaction."""
        key = context.definition_metadata.get("key")
        if not key:
            raise dg.Failure(
                f"{context.asset_key.to_user_string()} names no key; "
                'give its definition metadata={"key": ["column"]}.',
                allow_retries=False,
            )
        with plain_failures():
            report = merge_frame(self.target.dsn, self._table(context.asset_key), obj, key)
        context.add_output_metadata(
            {
                **described(
                    bool(report.rows_inserted or report.rows_updated),
                    f"{report.rows_inserted:,} inserted, {report.rows_updated:,} updated",
                ),
                "dagster/row_count": report.rows,
                "dagster/table_name": self._table(context.asset_key),
                "dagster/column_schema": table_schema(
                    (str(name), str(type_)) for name, type_ in obj.dtypes.items()
                ),
                "rows_moved": report.rows_inserted + report.rows_updated,
            }
        )

    def load_input(self, context: dg.InputContext) -> pd.DataFrame:
        """The whole table as a DataFrame."""
        with plain_failures():
            columns, rows = read_rows(self.target.dsn, self._table(context.asset_key))
        return pd.DataFrame(rows, columns=columns)

    def _table(self, key: dg.AssetKey) -> str:
        return f"{self.into}.{key.path[-1]}"
