"""Merge of rows by key into the target Postgres, for the DataFrame of any asset."""

import dagster as dg
import pandas as pd

from replica_platform.metadata import change, table_schema
from replica_platform.policies import translate_errors
from replica_platform.resources.postgres import PostgresDatabase
from replica_platform.xmin import merge_frame, read_rows


class XminMergeIOManager(dg.ConfigurableIOManager):
    """Merges a DataFrame into `schema.asset_name` of the target; equal rows are not written.

    The asset names its key in `metadata={"key": ["symbol"]}`. Only rows that differ get a new
    `xmin`, so that a sync that reads this table by xmin reads only the changes.

    Attributes:
        target: The database to write to.
        into: The schema of the tables.
    """

    target: dg.ResourceDependency[PostgresDatabase]
    into: str = "analytics"

    def handle_output(self, context: dg.OutputContext, obj: pd.DataFrame) -> None:
        """Create the table if it does not exist, then merge by key in one transaction.

        Raises:
            dg.Failure: The asset names no key, or the target refuses the rows.
        """
        key = context.definition_metadata.get("key")
        if not key:
            raise dg.Failure(
                f"{context.asset_key.to_user_string()} names no key; "
                'give its definition metadata={"key": ["column"]}.',
                allow_retries=False,
            )
        with translate_errors():
            report = merge_frame(self.target.dsn, self._table(context.asset_key), obj, key)
        context.add_output_metadata(
            {
                **change(
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
        """Return the whole table as a DataFrame."""
        with translate_errors():
            columns, rows = read_rows(self.target.dsn, self._table(context.asset_key))
        return pd.DataFrame(rows, columns=columns)

    def _table(self, key: dg.AssetKey) -> str:
        return f"{self.into}.{key.path[-1]}"
